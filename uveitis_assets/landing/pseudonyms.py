"""Pseudonyms of patients: a keyed hash that only the installation's secret key can confirm.

The key is beside the ledger, readable by its owner only, and is made on first use. A lost key is not replaced: another
one changes every pseudonym, but no split.
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from uveitis_assets.storage.files import write_if_absent
from uveitis_assets.storage.store import ArtefactStore

_KEY_BYTES = 32


class PatientKeyError(ValueError):
    """The key of the pseudonyms is damaged or lost; the message names the file and says what to do."""


def patient_key(store: ArtefactStore) -> bytes:
    """Read the secret key, or make it where no pseudonym exists; racing processes agree on one.

    Raises:
        PatientKeyError: the key file does not hold 64 hex digits, or is gone although manifests hold pseudonyms.
    """
    path = store.patient_key_file()
    if not path.exists():
        # Looked for again: another process may have made the key and a manifest since.
        if store.lanes_with_manifests() and not path.exists():
            raise PatientKeyError(
                f"{path}: expected the key that the manifests' pseudonyms were made with, found none; restore it "
                "(UVEITIS_PATIENT_KEY_FILE says where it is looked for), or put 64 other hex digits there to give "
                "every patient a new pseudonym"
            )
        _make_key(path)
    try:
        text = path.read_bytes().strip().decode("ascii")
        key, found = bytes.fromhex(text), f"{len(text)} characters"
    except UnicodeDecodeError:
        key, found = b"", "bytes that are no text"
    except ValueError:
        key, found = b"", f"{len(text)} characters that are not all hex digits"
    except IsADirectoryError:
        key, found = b"", "a folder"
    if len(key) != _KEY_BYTES:
        raise PatientKeyError(
            f"{path}: expected {2 * _KEY_BYTES} hex digits, found {found}; restore the key from the backup, another "
            "one changes every pseudonym (UVEITIS_PATIENT_KEY_FILE says where it is looked for)"
        )
    return key


def _make_key(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_if_absent(path, f"{secrets.token_hex(_KEY_BYTES)}\n".encode(), mode=0o600)


def pseudonym(key: bytes, *parts: str, prefix: str = "p") -> str:
    """Turn a patient (dataset tag, raw id) into ``p`` and 16 hex digits by keyed BLAKE2b."""
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8, key=key)
    return prefix + digest.hexdigest()
