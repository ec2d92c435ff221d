"""The ledger's file as a table: its columns, and the one way in which it is read.

The ledger cannot be made again: whoever reads a damaged one is told which file to restore. Damage may lie anywhere in
the file, so that it shows only when the rows are read. It knows nothing of landing folders and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

LEDGER_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "image_id": pl.String,
    "relative_path": pl.String,
    "dataset": pl.String,
    "patient": pl.String,
    "eye": pl.String,
    "label_format": pl.String,
    "label_paths": pl.List(pl.String),
    "notes": pl.String,
    "official_split": pl.String,
    "content_hash": pl.String,
    "size": pl.Int64,
    "mtime_ns": pl.Int64,
    "ctime_ns": pl.Int64,
    "width": pl.Int32,
    "height": pl.Int32,
    "quarantine_reason": pl.String,
    "quarantine_detail": pl.String,
    "batch": pl.String,
    "state": pl.String,
    "duplicate_of": pl.String,
    "label_fingerprint": pl.String,
    "label_stamps": pl.List(pl.String),
    "split_dataset": pl.String,
    "split_patient": pl.String,
    "patient_official_split": pl.String,
}


class LedgerError(ValueError):
    """The ledger is damaged or lost; the message names the file and says what to do."""


def read_ledger_table(path: Path, columns: Sequence[str] = tuple(LEDGER_SCHEMA)) -> pl.DataFrame:
    """The given columns of all entries.

    Raises:
        LedgerError: the file is damaged.
    """
    table = scan_ledger(path, columns)
    with ledger_read_errors(path):
        return table.collect()


def scan_ledger(path: Path, columns: Sequence[str] = tuple(LEDGER_SCHEMA)) -> pl.LazyFrame:
    """The ledger's table as it is now: what is read from it later does not change when images are registered.

    For those who need few of its rows; they collect them under ``ledger_read_errors``.

    Raises:
        LedgerError: the file is damaged.
    """
    # An open file stays the one it is when another takes its name.
    with ledger_read_errors(path), path.open("rb") as file:
        table = pl.scan_parquet(file)
        found = table.collect_schema()
    for column in columns:
        if column not in found:
            raise _damaged(path, f"no column {column}")
        if found[column] != LEDGER_SCHEMA[column]:
            raise _damaged(path, f"the column {column} of type {found[column]}")
    return table.select(columns)


@contextmanager
def ledger_read_errors(path: Path) -> Iterator[None]:
    """Name the ledger where what is read from it cannot be.

    Raises:
        LedgerError: instead of the reader's own error.
    """
    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise _damaged(path, str(error).partition("\n")[0]) from error


def _damaged(path: Path, found: str) -> LedgerError:
    return LedgerError(
        f"{path}: expected the ledger of {path.stem}, found {found}; restore the file from the backup of the folder "
        f"{path.parent}: it cannot be made again"
    )
