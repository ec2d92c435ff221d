"""Reads landed files: links stay below the raw root, pipes are refused, sizes are bounded."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path, PurePath

from uveitis_assets.landing.quarantine import QuarantineError

MAX_FILE_BYTES = 1 << 30


def read_landed_file(root: Path, relative_path: str, name: str | None = None) -> bytes:
    """Read one file below ``root``, following symlinks that stay below it.

    The opened file itself is checked, so that a link swapped between check and use gains nothing. Pipes and devices
    are refused without waiting for them.

    Args:
        root: folder that must not be left, the raw root.
        relative_path: path below it (an absolute path below it works too).
        name: what messages call the file; its path unless given.

    Raises:
        QuarantineError: ``missing``, ``broken_symlink``, ``escapes_root``, ``too_large`` or ``unreadable``.
    """
    return read_landed_file_and_stat(root, relative_path, name)[0]


def read_landed_file_and_stat(root: Path, relative_path: str, name: str | None = None) -> tuple[bytes, os.stat_result]:
    """Read one file like `read_landed_file`; the second value is its state just before the read."""
    path = root / relative_path
    name = name or relative_path
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # noqa: TID251  it reads
    except OSError as error:
        raise _open_failure(path, name, error) from error
    state = os.fstat(handle)
    if not stat.S_ISREG(state.st_mode):
        os.close(handle)
        raise QuarantineError("unreadable", f"{name}: expected a regular file; remove it")
    with os.fdopen(handle, "rb") as stream:
        place = _place_of(handle, path)
        if not place.is_relative_to(os.path.realpath(root)):
            raise QuarantineError(
                "escapes_root", f"{name}: leads out of the raw folder; copy the file below it instead"
            )
        if state.st_size > MAX_FILE_BYTES:
            raise QuarantineError(
                "too_large", f"{name}: expected at most {MAX_FILE_BYTES} bytes, found {state.st_size}"
            )
        try:
            return stream.read(), state
        except OSError as error:
            raise QuarantineError("unreadable", f"{name}: {error.strerror}; check the disk") from error


def _place_of(handle: int, path: Path) -> PurePath:
    """Real place of the opened file, from the kernel, or resolved again where it cannot be asked."""
    try:
        return Path(f"/proc/self/fd/{handle}").readlink()
    except OSError:
        return PurePath(os.path.realpath(path))


def _open_failure(path: Path, name: str, error: OSError) -> QuarantineError:
    if error.errno == errno.ELOOP:
        return QuarantineError("broken_symlink", f"{name}: the symlink leads to itself; replace it")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if path.is_symlink():
            return QuarantineError("broken_symlink", f"{name}: the symlink's target is gone; replace it")
        return QuarantineError("missing", f"{name}: no such file; restore it or register again")
    return QuarantineError("unreadable", f"{name}: {error.strerror}; make the file readable")
