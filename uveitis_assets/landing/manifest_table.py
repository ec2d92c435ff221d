"""Columns of the manifest, and how its parts are read, checked and written."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path

import polars as pl

from uveitis_assets.landing.ledger import registered_batches
from uveitis_assets.messages import enumeration
from uveitis_assets.storage.files import write_bytes
from uveitis_assets.storage.store import ArtefactStore

LEGACY_COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "image_id": pl.String,
    "filepath": pl.String,
    "dataset": pl.String,
    "split": pl.String,
    "eye": pl.String,
    "labels_path": pl.String,
    "label_format": pl.String,
    "width": pl.Int32,
    "height": pl.Int32,
    "patient_id": pl.String,
    "notes": pl.String,
}


MANIFEST_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    **LEGACY_COLUMNS,
    "content_hash": pl.String,
    "quarantine_reason": pl.String,
    "quarantine_detail": pl.String,
    "duplicate_of": pl.String,
    "relative_path": pl.String,
    "label_paths": pl.List(pl.String),
    "label_hashes": pl.List(pl.String),
    "batch": pl.String,
    "split_name": pl.String,
    "fold_splits": pl.List(pl.String),
    "split_fingerprint": pl.String,
}


# Only in parts that hold samples of several files: where they are, as ``filepath``, and their content hashes.
FILES_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "files": pl.List(pl.String),
    "file_hashes": pl.List(pl.String),
}


# Parquet metadata of a part: digest of what was registered about the batch when the part was made.
_STATE_METADATA = "registered_state"


# What every part has, however long ago it was made.
_FIRST_COLUMNS = frozenset((*LEGACY_COLUMNS, "content_hash", "quarantine_reason", "batch", "fold_splits"))


# Batches that a message names.
_LISTED = 10


EXPORTED_COLUMNS = (*LEGACY_COLUMNS, "content_hash", "quarantine_reason")


def manifest_state(part: Path) -> str | None:
    """Digest of what was registered about the batch when the part was made (see registered_states).

    None where there is no part, or one that tells nothing of it.
    """
    try:
        return pl.read_parquet_metadata(part).get(_STATE_METADATA)
    except (FileNotFoundError, pl.exceptions.PolarsError):
        return None


def read_manifest(store: ArtefactStore, lane: str) -> pl.DataFrame:
    """All parts of a lane, one row per image id (the latest batch holds), sorted by image id.

    Waits while the lane's export assigns its parts to splits again.
    """
    with store.lock(manifest_lock_name(lane)):
        parts = read_parts(store, lane)
    return one_row_per_image(parts)


def require_parts(store: ArtefactStore, lane: str, stages: Collection[str], made_before: Collection[str] = ()) -> None:
    """Refuse a lane whose manifest was never made or lost parts: results would lose their images.

    A batch that has only landed has no part yet and is not missed: its images follow when it was run.

    Args:
        store: where ledger, parts and stage indexes lie.
        lane: the lane's name.
        stages: stages whose indexes tell that a batch was run.
        made_before: batches whose manifest is known to have been made; those with a stage index are known by that.

    Raises:
        ValueError: says what to materialize.
    """
    parts = {part.stem for part in store.manifest_parts(lane)}
    missing = [batch for batch in registered_batches(store, lane) if batch not in parts]
    if parts:
        made = set(made_before).union(*(store.indexed_batches(lane, stage) for stage in stages))
        missing = [batch for batch in missing if batch in made]
    if missing:
        raise ValueError(
            f"{lane}: found no manifest of {enumeration(missing, _LISTED, 'batches')} in "
            f"{store.manifest_part(lane, missing[0]).parent}; materialize {lane}/manifest first"
        )


def batches_assigned_otherwise(manifest: pl.DataFrame, fingerprint: str) -> list[str]:
    """Batches with rows that were not assigned to splits by the configuration of this fingerprint, sorted."""
    others = manifest.filter(pl.col("split_fingerprint").ne_missing(fingerprint))
    batches: list[str] = others["batch"].unique().sort().to_list()
    return batches


def require_one_split_assignment(lane: str, manifest: pl.DataFrame) -> None:
    """Refuse rows assigned by several split configurations: patients may be in two splits.

    Raises:
        ValueError: says what to materialize.
    """
    if manifest["split_fingerprint"].n_unique() > 1:
        newest = str(manifest.sort("batch")["split_fingerprint"].last())
        raise ValueError(
            f"{lane}/manifest: expected all batches to be assigned by one split configuration, found "
            f"{', '.join(batches_assigned_otherwise(manifest, newest))} assigned by another than the last one; "
            f"materialize any batch of {lane}/manifest again: that assigns all of them alike. If the message stays, "
            f"register {lane}, "
            "materialize the manifest of all batches, and remove "
            f"index/{lane}/manifest/<batch>.parquet of batches that the ledger does not know"
        )


def manifest_lock_name(lane: str) -> str:
    """Name of the lock held while a part is written or several are read: readers see parts assigned alike."""
    return f"{lane}.manifest"


def read_part(part: Path) -> pl.DataFrame:
    """Rows of one part. One that was made before a column was added lacks it.

    Raises:
        ValueError: the file is not a manifest part; the message names it.
    """
    try:
        rows = pl.read_parquet(part)
        absent = _FIRST_COLUMNS.difference(rows.columns)
        problem = f"no column {', '.join(sorted(absent))}" if absent else None
    except pl.exceptions.PolarsError as error:
        problem = str(error).partition("\n")[0]
    if problem:
        raise ValueError(
            f"{part}: expected the manifest rows of a batch, found {problem}; delete the file and materialize "
            f"{part.parts[-3]}/manifest[{part.stem}] again"
        )
    return rows


def split_names_of_part(part: Path) -> set[str]:
    """Split names of a part that is about to be replaced; none of a missing, damaged or very old one."""
    try:
        return set(pl.read_parquet(part, columns=["split_name"])["split_name"].drop_nulls())
    except (FileNotFoundError, pl.exceptions.PolarsError):
        return set()


def read_parts(store: ArtefactStore, lane: str, *, without: str | None = None) -> pl.DataFrame:
    """Rows of all parts, or all but one, in the order of batches; null where a part lacks a column."""
    parts = [read_part(part) for part in store.manifest_parts(lane) if part.stem != without]
    return pl.concat([pl.DataFrame(schema=MANIFEST_SCHEMA), *parts], how="diagonal")


def one_row_per_image(parts: pl.DataFrame) -> pl.DataFrame:
    """Rows sorted by image id; of several with one id, that of the latest batch."""
    return parts.unique("image_id", keep="last", maintain_order=True).sort("image_id")


def write_manifest_table(path: Path, frame: pl.DataFrame, state: str | None = None) -> None:
    """Write a part or an export, with the digest of what was registered about its batch."""
    if "files" in frame.columns and not frame["files"].list.len().sum():
        frame = frame.drop(FILES_SCHEMA)
    buffer = io.BytesIO()
    frame.write_parquet(buffer, metadata=None if state is None else {_STATE_METADATA: state})
    write_bytes(path, buffer.getbuffer())
