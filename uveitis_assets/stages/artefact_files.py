"""Size and checksum of artefacts: as they stand in stage indexes, and compared with the files.

The checksum is CRC-32: it finds every damage of up to 32 bits in a row, and all but one of 4 billion others. It is no
protection against who changes files on purpose.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from isal import isal_zlib

from uveitis_assets.imaging.png_integrity import png_finding

# Column of every stage index: the files of the image's stage. Null where the image is not usable, or in an index of a
# version that did not write it.
FILES = "files"
FILES_TYPE = pl.List(pl.Struct({"name": pl.String, "size": pl.Int64, "crc32": pl.UInt32}))


class FileStamp(NamedTuple):
    """Size in bytes and CRC-32 of a file."""

    size: int
    crc32: int


class DamagedArtefactError(ValueError):
    """A file is not as it was written; ``path`` names it, ``finding`` says what was expected and found."""

    def __init__(self, path: Path, finding: str) -> None:
        super().__init__(f"{path}: {finding}; materialize the stage that makes it again")
        self.path = path
        self.finding = finding


def file_stamp(data: bytes) -> FileStamp:
    """Size and checksum of a file's bytes."""
    return FileStamp(len(data), isal_zlib.crc32(data))


def recorded_stamps(row: Mapping[str, Any]) -> dict[str, FileStamp]:
    """Stamps in an index row, by the files' names below the store's root; empty where none are recorded."""
    return {file["name"]: FileStamp(file["size"], file["crc32"]) for file in row.get(FILES) or ()}


def files_column(stamps: Mapping[str, FileStamp]) -> list[dict[str, Any]]:
    """The index column of these files, sorted by name."""
    return [{"name": name, "size": stamps[name].size, "crc32": stamps[name].crc32} for name in sorted(stamps)]


def compare_size(path: Path, stamp: FileStamp) -> None:
    """Compares a file's size with the recorded one, without opening it.

    Raises:
        DamagedArtefactError: the file is missing or has another size.
    """
    try:
        size = os.stat(path).st_size  # noqa: PTH116 - half the time of Path.stat
    except FileNotFoundError:
        raise DamagedArtefactError(path, f"expected {stamp.size} bytes, found no file") from None
    if size != stamp.size:
        raise DamagedArtefactError(path, f"expected {stamp.size} bytes, found {size}")


def read_artefact(path: Path, stamp: FileStamp | None) -> bytes:
    """Reads a file and compares its bytes with what was written.

    Without a stamp, what its format allows is compared: a PNG's own checksums, whether JSON can be parsed.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedArtefactError: the bytes are not those that were written.
    """
    data = path.read_bytes()
    check_artefact(path, data, stamp)
    return data


def check_artefact(path: Path, data: bytes, stamp: FileStamp | None) -> None:
    """Compares the bytes that were read from a file with what was written, as ``read_artefact``.

    Raises:
        DamagedArtefactError: the bytes are not those that were written.
    """
    finding = _format_finding(path, data) if stamp is None else _stamp_finding(data, stamp)
    if finding is not None:
        raise DamagedArtefactError(path, finding)


def damaged_files(
    root: Path, row: Mapping[str, Any], *, contents: Callable[[Path], bool]
) -> list[DamagedArtefactError]:
    """Findings about the recorded files of an index row.

    Sizes are compared, and all bytes of the files for which ``contents`` holds.
    """
    found = []
    for name, stamp in recorded_stamps(row).items():
        path = root / name
        try:
            compare_size(path, stamp)
            if contents(path):
                read_artefact(path, stamp)
        except DamagedArtefactError as error:
            found.append(error)
    return found


def described(root: Path, errors: Iterable[DamagedArtefactError]) -> str:
    """Files and findings in one line, files by their names below the root."""
    return "; ".join(
        f"{error.path.relative_to(root).as_posix() if error.path.is_relative_to(root) else error.path}: {error.finding}"
        for error in errors
    )


def _stamp_finding(data: bytes, stamp: FileStamp) -> str | None:
    if len(data) != stamp.size:
        return f"expected {stamp.size} bytes, found {len(data)}"
    found = isal_zlib.crc32(data)
    return None if found == stamp.crc32 else f"expected CRC-32 {stamp.crc32:08x}, found {found:08x}"


def _format_finding(path: Path, data: bytes) -> str | None:
    if not data:
        return "expected data, found an empty file"
    if path.suffix == ".png":
        finding = png_finding(data)
        return None if finding is None else f"expected a PNG, {finding}"
    if path.suffix == ".json":
        try:
            json.loads(data)
        except ValueError as error:
            return f"expected JSON, found {error}"
    return None
