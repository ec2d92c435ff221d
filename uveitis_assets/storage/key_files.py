"""Files with keys, which environment variables name; a mounted secret is bound to its variable.

The engine mounts every secret of a container in ``/run/secrets``. A variable that named another's file would
send, say, the database's password to the service that it is no key of.
"""

from __future__ import annotations

import os
from pathlib import Path

SECRETS_FOLDER = Path("/run/secrets")


def key_file(variable: str, secrets_folder: Path = SECRETS_FOLDER) -> Path | None:
    """The file that ``<NAME>_FILE`` names, or None where the variable is not set.

    Where the secret ``<name>`` is mounted, or the file is one of ``secrets_folder`` (links resolved), only
    ``<secrets_folder>/<name>`` is accepted. Elsewhere, on a machine without mounted secrets, any file is.

    Raises:
        ValueError: the variable names another secret, or another file than the mounted one.
    """
    name = os.environ.get(variable, "")
    if not name:
        return None
    own = secrets_folder / variable.removesuffix("_FILE").lower()
    path = Path(name)
    resolved = path.resolve()
    if resolved != own.resolve() and (_is_there(own) or resolved.is_relative_to(secrets_folder.resolve())):
        raise ValueError(
            f"{variable}={name}: expected {own}, its own secret, because a key file may not be another secret or file "
            "here; correct the variable, or unset it"
        )
    return path


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        # A folder of the host that another user's containers share; nothing of it is mounted for this process.
        return False
