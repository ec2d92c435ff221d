"""The ledger's file as a table: its columns, and the one way in which it is read.

The ledger cannot be made again: every reader of a damaged one reports which file to restore. Damage may lie anywhere in
the file, so that it shows only when the rows are read.
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


# Only in ledgers of lanes that hold samples of several files.
FILES_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "files": pl.List(pl.String),
    "file_stamps": pl.List(pl.String),
}
# Only in ledgers of lanes that have, or had, another source of patients than file names.
RULE_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {"patient_rule": pl.String}
OPTIONAL_SCHEMA = FILES_SCHEMA | RULE_SCHEMA
_SCHEMA = LEDGER_SCHEMA | OPTIONAL_SCHEMA


class LedgerError(ValueError):
    """The ledger is damaged or lost; the message names the file and says what to do."""


def read_ledger_table(path: Path, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """The given columns of all entries; without any given, all that the ledger has.

    Raises:
        LedgerError: the file is damaged.
    """
    table = scan_ledger(path, columns)
    with ledger_read_errors(path):
        return table.collect()


def scan_ledger(path: Path, columns: Sequence[str] | None = None) -> pl.LazyFrame:
    """The ledger's table as it is now: registering images does not change what is read from it later.

    For readers that need few of its rows; they collect them under ``ledger_read_errors``.

    Args:
        path: the ledger.
        columns: to read; without any given, all that the ledger has. Columns of OPTIONAL_SCHEMA that it lacks are
            empty lists or empty text.

    Raises:
        LedgerError: the file is damaged.
    """
    # An open file stays the one it is when another takes its name.
    with ledger_read_errors(path), path.open("rb") as file:
        table = pl.scan_parquet(file)
        found = table.collect_schema()
    if columns is None:
        columns = [*LEDGER_SCHEMA, *(name for name in OPTIONAL_SCHEMA if name in found)]
    absent = [name for name in columns if name in OPTIONAL_SCHEMA and name not in found]
    for column in columns:
        if column in absent:
            continue
        if column not in found:
            raise _damaged(path, f"no column {column}")
        if found[column] != _SCHEMA[column]:
            raise _damaged(path, f"the column {column} of type {found[column]}")
    if absent:
        table = table.with_columns(
            pl.lit([] if name in FILES_SCHEMA else "", OPTIONAL_SCHEMA[name]).alias(name) for name in absent
        )
    return table.select(columns)


@contextmanager
def ledger_read_errors(path: Path) -> Iterator[None]:
    """Report errors of reading a ledger with its name and what to do.

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
