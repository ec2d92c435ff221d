"""Back up what cannot be made again: the database, the ledger, the key of the pseudonyms.

A backup is a folder of its own: ``database.dump`` (pg_dump's custom format), ``ledger/`` and, last, ``backup.json``
with the SHA-256 of every file. A folder without ``backup.json`` is no backup. Files are readable by their owner only;
they hold raw patient ids and the key, and are not encrypted.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Self, cast

from uveitis_assets.deployment.postgres_tools import PostgresTools
from uveitis_assets.storage.files import json_bytes, open_atomically, read_json, write_bytes
from uveitis_assets.storage.store import ArtefactStore

FORMAT = 1
DUMP = "database.dump"
LEDGER = "ledger"
RECORD = "backup.json"
KEY = "patient_key"


class BackupError(ValueError):
    """A folder is no backup, or holds other bytes than were backed up; the message names the file."""


@dataclass(frozen=True, slots=True)
class Backup:
    """A complete backup; ``files`` holds the SHA-256 of each file by its name below ``folder``."""

    folder: Path
    made_at: str
    files: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a backup and compare every file with what was backed up.

        Raises:
            BackupError: the folder holds no complete backup, or a file is missing or changed.
        """
        record = folder / RECORD
        try:
            content = read_json(record)
            found = content["format"], content["made_at"], content["files"]
        except FileNotFoundError:
            raise BackupError(
                f"{folder}: expected {RECORD}, found none: it is no backup, or one that ended early"
            ) from None
        except (KeyError, ValueError) as error:
            raise BackupError(
                f"{record}: expected format, made_at and files, found {error}; take another backup"
            ) from None
        if found[0] != FORMAT or not isinstance(found[2], dict):
            raise BackupError(f"{record}: expected format {FORMAT}, found {found[0]!r}; take the version that wrote it")
        backup = cls(folder, str(found[1]), found[2])
        for name, expected in sorted(backup.files.items()):
            backup._check(name, expected)
        return backup

    @property
    def ledger_files(self) -> list[str]:
        """Names below the ledger's folder, sorted."""
        return sorted(name.removeprefix(f"{LEDGER}/") for name in self.files if name.startswith(f"{LEDGER}/"))

    def _check(self, name: str, expected: str) -> None:
        parts = Path(name).parts
        if Path(name).is_absolute() or ".." in parts or (name != DUMP and parts[0] != LEDGER):
            raise BackupError(
                f"{self.folder / RECORD}: expected files of a backup, found {name!r}; take another backup"
            )
        try:
            with (self.folder / name).open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except FileNotFoundError:
            raise BackupError(f"{self.folder / name}: found no such file; take another backup") from None
        if digest != expected:
            raise BackupError(
                f"{self.folder / name}: expected SHA-256 {expected[:12]}, found {digest[:12]}: it was changed or "
                "damaged; take another backup"
            )


def back_up(
    tools: PostgresTools, store: ArtefactStore, target: Path, *, owner: tuple[int, int] | None = None
) -> Backup:
    """Make a backup in a new folder below ``target``, while the deployment runs.

    The ledger is read after the database's snapshot: sensors add to the ledger first, and add partitions that a
    database lacks. Each file of the ledger is replaced as a whole, so that each is read whole.

    Args:
        tools: of the database.
        store: of the artefacts, whose ledger folder is backed up.
        target: folder of the backups.
        owner: uid and gid of the backup's files, for a caller that is root.

    Raises:
        PostgresToolError: the database could not be read.
        BackupError: the folder lies where runs may write.
        OSError: a file could not be read or written.
    """
    if target.resolve().is_relative_to(store.root):
        raise BackupError(f"{target}: expected a folder outside {store.root}, where runs may write; choose another one")
    now = datetime.now(UTC)
    folder = target / f"uveitis-{now:%Y%m%dT%H%M%S.%fZ}"
    folder.mkdir(mode=0o700, parents=True)
    try:
        _write(tools, store, folder, now.isoformat())
        if owner is not None:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, *owner)
        return Backup.read(folder)
    except BaseException:
        shutil.rmtree(folder)
        raise


def _write(tools: PostgresTools, store: ArtefactStore, folder: Path, made_at: str) -> None:
    files: dict[str, str] = {}
    with open_atomically(folder / DUMP, mode=0o600) as stream:
        hashing = _HashingStream(stream)
        tools.dump(cast("BinaryIO", hashing))
    files[DUMP] = hashing.sha256.hexdigest()
    (folder / LEDGER).mkdir(mode=0o700)
    for file in _ledger_files(store):
        data = file.read_bytes()
        name = KEY if file == store.patient_key_file() else file.relative_to(store.root / LEDGER).as_posix()
        write_bytes(folder / LEDGER / name, data, mode=0o600)
        files[f"{LEDGER}/{name}"] = hashlib.sha256(data).hexdigest()
    write_bytes(folder / RECORD, json_bytes({"format": FORMAT, "made_at": made_at, "files": files}), mode=0o600)


def _ledger_files(store: ArtefactStore) -> list[Path]:
    """Files of the ledger's folder, those that are being written left out, and the key wherever it is."""
    folder = store.root / LEDGER
    found = {path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}
    key = store.patient_key_file()
    if key.is_file():
        found.discard(folder / KEY)
        found.add(key)
    return sorted(found)


class _HashingStream:
    """A file to write to that also digests what is written."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._stream.write(data)
