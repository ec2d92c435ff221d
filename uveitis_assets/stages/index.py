"""Index of one stage and batch: a Parquet file of one row per item, written at the end of a run.

The columns are the caller's; every index has ``image_id``. While a batch is running, its ``journal`` has the rows.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from uveitis_assets.storage.files import write_bytes

Row = dict[str, Any]


def read_stage_index(path: Path) -> dict[str, Row]:
    """Rows of a stage index by image id; empty when there is no index yet.

    Raises:
        ValueError: the file is not a stage index; the message names it.
    """
    if not path.exists():
        return {}
    return {row["image_id"]: row for row in read_index_table(path).to_dicts()}


def read_index_table(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """A stage index that exists, or some of its columns, ``image_id`` among them.

    Raises:
        ValueError: the file is not a stage index, or lacks a column; the message names it.
    """
    try:
        table = pl.read_parquet(path, columns=columns, memory_map=False)
        table.get_column("image_id")
    except pl.exceptions.PolarsError as error:
        lane, stage = path.parts[-3:-1]
        # Predictions are indexed below the lane that they are of, and are assets of the detector's lane.
        is_prediction = stage.startswith("predictions_")
        asset = f"{stage.removeprefix('predictions_')}/predictions" if is_prediction else f"{lane}/{stage}"
        found = str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: expected a stage index, found {found}; delete the file and materialize {asset}[{path.stem}] again"
        ) from error
    return table


def read_index_metadata(path: Path, name: str) -> str | None:
    """A value of an index's file metadata; None where there is no such value or no readable index."""
    try:
        return pl.read_parquet_metadata(path).get(name)
    except (FileNotFoundError, pl.exceptions.PolarsError):
        return None


def write_stage_index(
    path: Path, schema: pl.Schema, rows: Iterable[Row], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write rows, sorted by image id, as Parquet; equal rows give equal bytes.

    Args:
        path: of the index.
        schema: the stage's columns, ``image_id`` among them.
        rows: one per item.
        metadata: values that hold for all rows, kept in the file's metadata.
    """
    frame = pl.DataFrame(sorted(rows, key=lambda row: str(row["image_id"])), schema=schema)
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", statistics=True, metadata=dict(metadata) if metadata else None)
    write_bytes(path, buffer.getbuffer())
