"""The books of a preprocessing stage: one row per image in a Parquet index, and a journal while a batch is running.

The index is written once, at the end of a batch. Until then every finished image is a line of the journal, so that a
killed run is continued where it stopped. It knows the columns, not how the values come about.
"""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import polars as pl

from uveitis_assets.fundus.configuration import PreprocessStage
from uveitis_assets.storage import write_bytes

Row = dict[str, Any]

# Parquet metadata of the indexes that depend on the reference colours.
_REFERENCE_METADATA = "reference_color"

_COMMON = {
    "image_id": pl.String,
    "key": pl.String,
    "dataset": pl.String,
    "content_hash": pl.String,
    "fingerprint": pl.String,
    "quarantine_reason": pl.String,
    "quarantine_detail": pl.String,
}
STAGE_SCHEMAS: dict[PreprocessStage, pl.Schema] = {
    "roi_masks": pl.Schema(
        _COMMON
        | {
            "method": pl.String,
            "fallbacks": pl.List(pl.String),
            "area_ratio": pl.Float64,
            "border_touch_ratio": pl.Float64,
            "width": pl.Int32,
            "height": pl.Int32,
        }
    ),
    "normalized_crops": pl.Schema(
        _COMMON
        | dict.fromkeys(("x0", "y0", "x1", "y1"), pl.Int32)
        | {"method": pl.String}
        | dict.fromkeys(("mean_r", "mean_g", "mean_b", "std_r", "std_g", "std_b"), pl.Float64)
    ),
    "tiles": pl.Schema(
        _COMMON
        | {
            "n_tiles": pl.Int32,
            "global_size": pl.Int32,
            "frame": pl.String,
            "reconstruction_abs_error": pl.Float64,
            "black_ratio": pl.Float64,
        }
    ),
}


def whole_row(stage: PreprocessStage, columns: Mapping[str, Any]) -> Row:
    """The columns given, and None in the stage's others: what a quarantined image's row looks like in the index."""
    return dict.fromkeys(STAGE_SCHEMAS[stage]) | dict(columns)


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
        found = str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: expected a stage index, found {found}; delete the file and materialize "
            f"{lane}/{stage}[{path.stem}] again"
        ) from error
    return table


def read_index_reference(path: Path) -> str | None:
    """Digest of the reference colours that an index's rows were made with; None where there are none."""
    try:
        return pl.read_parquet_metadata(path).get(_REFERENCE_METADATA)
    except (FileNotFoundError, pl.exceptions.PolarsError):
        return None


def write_stage_index(
    path: Path, stage: PreprocessStage, rows: Iterable[Row], *, reference_color: str | None = None
) -> None:
    """Write rows, sorted by image id, as Parquet; equal rows give equal bytes.

    Args:
        path: of the index.
        stage: the stage; it names the columns.
        rows: one per image.
        reference_color: digest of the reference colours that all rows were made with, None where there are none.
    """
    frame = pl.DataFrame(sorted(rows, key=lambda row: str(row["image_id"])), schema=STAGE_SCHEMAS[stage])
    buffer = io.BytesIO()
    metadata = None if reference_color is None else {_REFERENCE_METADATA: reference_color}
    frame.write_parquet(buffer, compression="zstd", statistics=True, metadata=metadata)
    write_bytes(path, buffer.getbuffer())


def read_stage_journal(path: Path) -> dict[str, Row | None]:
    """Latest row of each image in a journal; None where the image's artefacts were begun but not finished.

    Lines that a killed process left unfinished are passed over.
    """
    if not path.exists():
        return {}
    rows: dict[str, Row | None] = {}
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
            rows[entry["image_id"]] = entry["row"]
        except (ValueError, TypeError, KeyError):
            continue
    return rows


class StageJournal:
    """Append-only journal of one stage of one running batch; lines are whole or, after a kill, torn at the end.

    Raises:
        OSError: a line did not fit on the disk.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def begin(self, image_id: str) -> None:
        """Note that the image's earlier artefacts are about to be overwritten: no earlier row holds any more."""
        self._append(image_id, None)

    def finish(self, image_id: str, row: Mapping[str, Any]) -> None:
        """Note that all of the image's artefacts are in their places."""
        self._append(image_id, row)

    def _append(self, image_id: str, row: Mapping[str, Any] | None) -> None:
        # A line break before it, too: a line that a kill or a full disk left torn must not swallow this one.
        line = b"\n" + json.dumps({"image_id": image_id, "row": row}, allow_nan=False).encode() + b"\n"
        if os.write(self._handle, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._handle)
