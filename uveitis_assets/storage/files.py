"""Atomic writes, JSON, and paths that stay below their root."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TEMPORARY_SUFFIX = ".partial"


_ABANDONED_AFTER_S = 86400


class PathEscapesRootError(ValueError):
    """A path from a CSV file, label or configuration points outside the folder it has to stay in."""


def resolve_inside(root: Path, name: str | Path) -> Path:
    """Resolve ``name`` below ``root``, following symlinks.

    Raises:
        PathEscapesRootError: the result lies outside ``root`` (``..``, an absolute path or a symlink).
    """
    resolved_root = root.resolve()
    path = (resolved_root / name).resolve()
    if not path.is_relative_to(resolved_root):
        raise PathEscapesRootError(f"{name}: expected a path below {root}, found {path}; put the file below it")
    return path


def write_bytes(path: Path, data: bytes | bytearray | memoryview, *, mode: int = 0o644) -> None:
    """Write a file atomically with the given permissions and make its folder; readers see all or nothing."""
    temporary = _temporary(path)
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk tells no name
            error.filename = str(path)
        raise


def write_if_absent(path: Path, data: bytes, *, mode: int = 0o644) -> bool:
    """Write a file atomically where none is, never over another process's; returns whether it did."""
    temporary = _temporary(path)
    write_bytes(temporary, data, mode=mode)
    try:
        # A hard link is made only where no file is, unlike a rename.
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _temporary(path: Path) -> Path:
    """A file beside ``path`` that names its writer, so that others can tell whether it was abandoned."""
    writer = f"{os.getpid()}-{_process_table()}-{secrets.token_hex(4)}"
    return path.with_name(f"{temporary_beginning(path.name)}.{writer}{TEMPORARY_SUFFIX}")


def temporary_beginning(name: str) -> str:
    """First part of the names of the temporary files that are renamed to ``name``.

    It is cut, so that the writer's own part fits in.
    """
    return f".{name[:200]}"


@functools.cache
def _process_table() -> str:
    """Digest of the process table in which this process has its id.

    Containers and machines have tables of their own.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        table = os.readlink("/proc/self/ns/pid")  # noqa: PTH115  not a path
    except OSError:
        boot, table = platform.node(), ""
    return hashlib.blake2b(f"{boot}{table}".encode(), digest_size=4).hexdigest()


def remove_half_files(folder: Path) -> None:
    """Remove what killed processes left of files in a folder that only the caller writes to."""
    for half_file in sorted(folder.glob(f".*{TEMPORARY_SUFFIX}")):
        half_file.unlink(missing_ok=True)


def is_abandoned(temporary: Path) -> bool:
    """Say whether no process writes a temporary file any more."""
    try:
        age_s = time.time() - temporary.stat().st_mtime
    except FileNotFoundError:
        return False
    if age_s > _ABANDONED_AFTER_S:
        return True
    writer = temporary.name.removesuffix(TEMPORARY_SUFFIX).rpartition(".")[2].split("-")
    if len(writer) != 3 or not writer[0].isdigit() or writer[1] != _process_table():
        return False
    try:
        os.kill(int(writer[0]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def json_bytes(value: Mapping[str, Any] | Sequence[Any], *, indent: int | None = 2) -> bytes:
    """Serialize with the keys in the given order, UTF-8, one final newline; NaN is refused."""
    return (json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Mapping[str, Any] | Sequence[Any], *, indent: int | None = 2) -> None:
    """Write JSON atomically."""
    write_bytes(path, json_bytes(value, indent=indent))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: the file does not hold a JSON object; the message names the file.
    """
    return parse_json(path.read_bytes(), path)


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in the bytes of a file.

    Raises:
        ValueError: they are no JSON object; the message names the file.
    """
    try:
        value = json.loads(data)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{error.lineno}: expected JSON, found {error.msg}; delete or repair the file"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected JSON, found bytes that are no text; delete or repair the file") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}; delete or repair the file")
    return value


def move(source: Path, target: Path) -> None:
    """Renames a file or a folder within one file system.

    Replaces a file, refuses to replace a folder with files.
    """
    source.rename(target)
