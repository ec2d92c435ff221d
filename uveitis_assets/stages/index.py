"""Index of one stage and batch: a Parquet file of one row per item, written at the end of a run.

The columns are the caller's; every index has ``image_id``. While a batch is running, its ``journal`` has the rows.

An index holds its own CRC-32, and a copy of it lies below ``index_copies``: readers of a damaged index take the copy
and log a warning, and the next run of the batch writes the index again. An index that is missing was deleted on
purpose, or never made: its copy is not read.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
from isal import isal_zlib

from uveitis_assets.storage.files import write_bytes

Row = dict[str, Any]


# In the file's metadata: CRC-32 of the file with zeros in place of these digits. Files written by others have none.
_CHECKSUM = "checksum"
_NO_CHECKSUM = b"crc32:00000000"
_log = logging.getLogger(__name__)


class DamagedIndexError(ValueError):
    """A file is not a stage index, or is damaged; the message names it."""


def read_stage_index(path: Path) -> dict[str, Row]:
    """Rows of a stage index by image id; empty when there is no index yet.

    Of a damaged index, those of its copy.

    Raises:
        ValueError: the file is not a stage index and has no copy; the message names it.
    """
    if not path.exists():
        return {}
    return rows_by_id(read_index_table(path))


def read_index_table(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """A stage index that exists, or some of its columns, ``image_id`` among them.

    Of a damaged index, its copy.

    Raises:
        ValueError: the file is not a stage index, or lacks a column, and has no copy that is one; the message names it.
    """
    try:
        return read_intact_index(path, columns)
    except DamagedIndexError as error:
        try:
            table = read_intact_index(index_copy(path), columns)
        except (FileNotFoundError, DamagedIndexError):
            raise error from None
        _log.warning("%s; its copy %s is read until then", error, index_copy(path))
        return table


def read_intact_index(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """A stage index, or some of its columns, ``image_id`` among them; never its copy.

    Raises:
        FileNotFoundError: there is none.
        DamagedIndexError: the file is not a stage index, lacks a column or is damaged; the message names it.
    """
    data = path.read_bytes()
    try:
        expected = pl.read_parquet_metadata(io.BytesIO(data)).get(_CHECKSUM)
        table = pl.read_parquet(io.BytesIO(data), columns=columns)
        table.get_column("image_id")
    except (pl.exceptions.PolarsError, OSError, UnicodeError) as error:
        raise DamagedIndexError(_damaged(path, str(error).partition("\n")[0])) from error
    except BaseException as error:
        # A reader in Rust that panics raises a class of its own, which derives from BaseException.
        if type(error).__name__ != "PanicException":
            raise
        raise DamagedIndexError(_damaged(path, "data that cannot be read")) from error
    if expected is not None and expected != _checksum(data.replace(expected.encode(), _NO_CHECKSUM)):
        raise DamagedIndexError(_damaged(path, f"other bytes than were written with {expected}"))
    return table


def index_finding(path: Path) -> str | None:
    """Says what is wrong with an index that exists; None where there is none or it is intact."""
    try:
        read_intact_index(path, ["image_id"])
    except FileNotFoundError:
        return None
    except DamagedIndexError as error:
        return str(error)
    return None


def index_copy(path: Path) -> Path:
    """The copy of an index, in a folder of its own: ``index_copies`` instead of ``index``."""
    index = path.parents[2]
    if index.name != "index":
        return path.with_suffix(".copy")
    return index.with_name("index_copies") / path.relative_to(index)


def has_equal_copy(path: Path) -> bool:
    """Whether an index and its copy are there and equal."""
    try:
        return path.read_bytes() == index_copy(path).read_bytes()
    except FileNotFoundError:
        return False


def rows_by_id(table: pl.DataFrame) -> dict[str, Row]:
    """Rows of an index by image id."""
    return {row["image_id"]: row for row in table.to_dicts()}


def _damaged(path: Path, found: str) -> str:
    lane, stage = path.parts[-3:-1]
    # Predictions are indexed below the lane that they are of, and are assets of the detector's lane.
    is_prediction = stage.startswith("predictions_")
    asset = f"{stage.removeprefix('predictions_')}/predictions" if is_prediction else f"{lane}/{stage}"
    return f"{path}: expected a stage index, found {found}; materialize {asset}[{path.stem}] again"


def _checksum(data: bytes) -> str:
    return f"crc32:{isal_zlib.crc32(data):08x}"


def read_index_metadata(path: Path, name: str) -> str | None:
    """A value of an index's file metadata; None where there is no such value or no readable index."""
    try:
        return pl.read_parquet_metadata(path).get(name)
    except (FileNotFoundError, pl.exceptions.PolarsError):
        return None


def write_stage_index(
    path: Path, schema: pl.Schema, rows: Iterable[Row], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write rows, sorted by image id, as Parquet, and a copy before; equal rows give equal bytes.

    Args:
        path: of the index.
        schema: the stage's columns, ``image_id`` among them.
        rows: one per item.
        metadata: values that hold for all rows, kept in the file's metadata.
    """
    frame = pl.DataFrame(sorted(rows, key=lambda row: str(row["image_id"])), schema=schema)
    buffer = io.BytesIO()
    metadata = {**(metadata or {}), _CHECKSUM: _NO_CHECKSUM.decode()}
    frame.write_parquet(buffer, compression="zstd", statistics=True, metadata=metadata)
    data = buffer.getvalue()
    data = data.replace(_NO_CHECKSUM, _checksum(data).encode())
    write_bytes(index_copy(path), data)
    write_bytes(path, data)
