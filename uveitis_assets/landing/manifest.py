"""The manifest: one row per live image, in parts per batch and exported for the whole lane.

Rows come from the ledger alone; of each file only existence and size are checked again. Raw patient ids stay in the
ledger: here they are pseudonyms, and where file names name patients (``identify_by_content``) ``filepath``,
``labels_path``, ``label_paths`` and ``relative_path`` are empty. ``filepath`` and ``labels_path`` (several joined by
``;``) are written as every path in artefacts; ``relative_path`` and ``label_paths`` start at the dataset's raw folder.

Parts are made batch by batch; the export assigns all of them again by the present configuration and ledger, so that
no patient is in two splits. A lane whose split name changes is then removed from the former name's splits files.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from uveitis_assets.landing.configuration import DatasetConfiguration, SplitConfiguration
from uveitis_assets.landing.file_stamps import stamped_hash, stamped_size
from uveitis_assets.landing.ledger import message_name
from uveitis_assets.landing.ledger_table import ledger_read_errors, scan_ledger
from uveitis_assets.landing.manifest_table import (
    EXPORTED_COLUMNS,
    FILES_SCHEMA,
    MANIFEST_SCHEMA,
    manifest_lock_name,
    manifest_state,
    one_row_per_image,
    read_part,
    read_parts,
    split_names_of_part,
    write_manifest_table,
)
from uveitis_assets.landing.pseudonyms import patient_key, pseudonym
from uveitis_assets.landing.registration_digest import registered_states
from uveitis_assets.landing.samples import SPLITS
from uveitis_assets.landing.split_assignment import assign_splits, read_split_assignment
from uveitis_assets.landing.splits_files import remove_lane_from_splits_files
from uveitis_assets.storage.files import write_bytes
from uveitis_assets.storage.store import ArtefactStore

_ASSIGNED_COLUMNS = ("split", "split_name", "fold_splits", "split_fingerprint")


@dataclass(frozen=True, slots=True)
class ManifestSummary:
    """Counts over the rows of one part or lane.

    Splits (fold 0), label formats and eyes count usable images only. ``reassigned_batches`` are other batches whose
    splits had to be changed.
    """

    n_images: int
    n_usable: int
    n_quarantined: int
    n_duplicates: int
    n_patients: int
    quarantine_reasons: dict[str, int]
    splits: dict[str, int]
    label_formats: dict[str, int]
    eyes: dict[str, int]
    problems: tuple[str, ...] = ()
    reassigned_batches: tuple[str, ...] = ()


def build_manifest_part(
    store: ArtefactStore, dataset: DatasetConfiguration, splits: SplitConfiguration, batch: str
) -> ManifestSummary:
    """Write the manifest rows of one batch from the ledger; no image is opened.

    Where the lane's other parts were assigned by another split configuration, they are assigned again first.

    A file that is gone or has another size than when it was registered is listed with ``missing`` or
    ``changed_since_registration``. A damaged part of the batch itself is replaced.

    Raises:
        ValueError: the batch is not in the ledger, the pinned splits file is wrong, or another part is damaged.
    """
    with store.lock(manifest_lock_name(dataset.name)):
        part, problems, state = _manifest_rows(store, dataset, splits, batch)
        # Before this part is seen: a run of many batches would mix two assignments until its export.
        reassigned_batches: tuple[str, ...] = ()
        path = store.manifest_part(dataset.name, batch)
        former_names = split_names_of_part(path) - {splits.name}
        if not _is_assigned(store, dataset.name, splits, without=batch):
            _, reassigned_batches, others = _reassign_parts(store, dataset.name, splits, without=batch)
            former_names |= others
        write_manifest_table(path, part, state)
    remove_lane_from_splits_files(store, former_names, splits)
    return dataclasses.replace(summarize(part, problems), reassigned_batches=reassigned_batches)


def _manifest_rows(
    store: ArtefactStore, dataset: DatasetConfiguration, splits: SplitConfiguration, batch: str
) -> tuple[pl.DataFrame, tuple[str, ...], str]:
    path = store.ledger_file(dataset.name)
    if not path.exists():
        raise ValueError(f"{path}: expected the ledger of {dataset.name}, found none; register the dataset first")
    ledger = scan_ledger(path)
    with ledger_read_errors(path):
        members = ledger.filter(pl.col("batch") == batch).collect()
    if members.is_empty():
        raise ValueError(f"{path}: found no batch {batch}; register the dataset again")
    assignment = read_split_assignment(store.root, splits)
    with ledger_read_errors(path):
        assigned, problems = assign_splits(ledger, assignment, batch)
    key = patient_key(store)
    state = registered_states(members, key)[batch]
    live = members.with_columns(assigned["fold_splits"]).filter(pl.col("state") == "live").sort("image_id")
    folder = store.raw_folder(dataset.folder)
    rows = [_manifest_row(store, dataset, folder, member, key) for member in live.iter_rows(named=True)]
    schema = MANIFEST_SCHEMA | (FILES_SCHEMA if "files" in live.columns else {})
    frame = pl.DataFrame(rows, schema=schema).with_columns(
        split_name=pl.lit(splits.name), split_fingerprint=pl.lit(assignment.fingerprint)
    )
    return frame, problems, state


def _manifest_row(
    store: ArtefactStore, dataset: DatasetConfiguration, folder: Path, member: Mapping[str, Any], key: bytes
) -> dict[str, Any]:
    """One ledger row as the manifest tells it, without what is the same in the whole part."""
    hides_names = dataset.image_folder.identify_by_content
    relative_path = member["relative_path"]
    path = folder / relative_path
    reason, detail = member["quarantine_reason"], member["quarantine_detail"]
    if reason is None:
        reason, detail = _changed_since(folder, dataset, member)
    label_paths = [] if hides_names else member["label_paths"]
    row = {
        "image_id": member["image_id"],
        "filepath": "" if hides_names else store.name_of(path),
        "dataset": member["dataset"],
        "split": member["fold_splits"][0],
        "eye": member["eye"],
        "labels_path": ";".join(store.name_of(folder / label) for label in label_paths),
        "label_format": member["label_format"],
        "width": member["width"],
        "height": member["height"],
        "patient_id": pseudonym(key, member["dataset"], member["patient"]),
        "notes": member["notes"],
        "content_hash": member["content_hash"],
        "quarantine_reason": reason,
        "quarantine_detail": detail,
        "duplicate_of": member["duplicate_of"],
        "relative_path": "" if hides_names else relative_path,
        "label_paths": label_paths,
        "label_hashes": [stamped_hash(stamp) for stamp in member["label_stamps"][: len(label_paths)]],
        "batch": member["batch"],
        "fold_splits": member["fold_splits"],
    }
    if "files" in member:
        row["files"] = [] if hides_names else [store.name_of(folder / file) for file in member["files"]]
        row["file_hashes"] = [stamped_hash(stamp) for stamp in member["file_stamps"]]
    return row


def export_manifest(store: ArtefactStore, dataset: DatasetConfiguration, splits: SplitConfiguration) -> ManifestSummary:
    """Assign all parts of the lane to splits and write ``manifests/<lane>.jsonl``, ``.csv``, ``.parquet``.

    Parts made under another split configuration, or before images landed that changed a patient's split, get the splits
    that configuration and ledger give now; parts that have them already are left alone. Columns are the earlier ones
    in their order, then ``content_hash`` and ``quarantine_reason``; quarantined images are listed. Lanes running at
    the same time take turns.

    Raises:
        ValueError: the pinned splits file is wrong.
    """
    with store.lock(manifest_lock_name(dataset.name)):
        parts, reassigned_batches, former_names = _reassign_parts(store, dataset.name, splits)
        manifest = one_row_per_image(parts)
        exported = manifest.select(EXPORTED_COLUMNS)
        write_bytes(store.manifest_export(dataset.name, "jsonl"), exported.write_ndjson().encode())
        write_bytes(store.manifest_export(dataset.name, "csv"), exported.write_csv().encode())
        write_manifest_table(store.manifest_export(dataset.name, "parquet"), exported)
    remove_lane_from_splits_files(store, former_names, splits)
    return dataclasses.replace(summarize(manifest), reassigned_batches=reassigned_batches)


def _reassign_parts(
    store: ArtefactStore, lane: str, splits: SplitConfiguration, *, without: str | None = None
) -> tuple[pl.DataFrame, tuple[str, ...], set[str]]:
    """Bring the splits of all parts, or of all but one batch's, up to configuration and ledger.

    An image that the ledger now knows under another id is found by its content. A row that it does not know at all
    keeps its splits and their fingerprint: the check of the manifest lists it.

    Returns:
        All their rows, the batches that changed, and the split names that none of the rows has any more.
    """
    parts = read_parts(store, lane, without=without)
    ledger = store.ledger_file(lane)
    if parts.is_empty() or not ledger.exists():
        return parts, (), set()
    assignment = read_split_assignment(store.root, splits)
    with ledger_read_errors(ledger):
        assigned, _ = assign_splits(scan_ledger(ledger), assignment)
    updated = _with_splits(parts, assigned, splits.name, assignment.fingerprint)
    differs = [_comparable(parts, column).ne_missing(_comparable(updated, column)) for column in _ASSIGNED_COLUMNS]
    changed = updated.filter(functools.reduce(operator.or_, differs))["batch"].unique().sort().to_list()
    for batch in changed:
        path = store.manifest_part(lane, batch)
        # Other splits do not bring the rest of the part up to what is registered now.
        write_manifest_table(path, updated.filter(pl.col("batch") == batch).rechunk(), manifest_state(path))
    former_names = set(parts["split_name"].drop_nulls()).difference(updated["split_name"])
    return updated, tuple(changed), former_names


def _with_splits(parts: pl.DataFrame, assigned: pl.DataFrame, split_name: str, fingerprint: str) -> pl.DataFrame:
    """The rows of parts with the splits of the image they are about, found by its id, else by its content."""
    by_id = assigned.unique(["batch", "image_id"], keep="last").select("batch", "image_id", by_id="fold_splits")
    read = assigned.filter(pl.col("content_hash") != "")
    by_content = read.unique(["batch", "content_hash"], keep="last").select(
        "batch", "content_hash", by_content="fold_splits"
    )
    splits = pl.coalesce("by_id", "by_content")
    return (
        parts.join(by_id, on=["batch", "image_id"], how="left", maintain_order="left")
        .join(by_content, on=["batch", "content_hash"], how="left", maintain_order="left")
        .with_columns(
            fold_splits=pl.coalesce(splits, "fold_splits"),
            split=pl.coalesce(splits.list.first(), "split"),
            split_name=pl.when(splits.is_null()).then("split_name").otherwise(pl.lit(split_name)),
            split_fingerprint=pl.when(splits.is_null()).then("split_fingerprint").otherwise(pl.lit(fingerprint)),
        )
        .select(parts.columns)
    )


def _is_assigned(store: ArtefactStore, lane: str, splits: SplitConfiguration, *, without: str) -> bool:
    """Say whether the lane's parts without one batch's have the present splits."""
    # They are assigned in order: the last one tells.
    fingerprint = read_split_assignment(store.root, splits).fingerprint
    for path in reversed(store.manifest_parts(lane)):
        part = pl.DataFrame() if path.stem == without else read_part(path)
        if part.height:
            return "split_fingerprint" in part.columns and fingerprint in part["split_fingerprint"]
    return True


def _comparable(frame: pl.DataFrame, column: str) -> pl.Series:
    values = frame[column]
    return values.list.join(",") if values.dtype == pl.List else values


def summarize(manifest: pl.DataFrame, problems: tuple[str, ...] = ()) -> ManifestSummary:
    """Count the rows of a manifest part or of a whole manifest."""
    usable = manifest.filter(pl.col("quarantine_reason").is_null())
    return ManifestSummary(
        n_images=manifest.height,
        n_usable=usable.height,
        n_quarantined=manifest.height - usable.height,
        n_duplicates=usable["duplicate_of"].count(),
        n_patients=manifest["patient_id"].n_unique(),
        quarantine_reasons=_counts(manifest["quarantine_reason"].drop_nulls()),
        splits={split: int((usable["split"] == split).sum()) for split in SPLITS},
        label_formats=_counts(usable["label_format"]),
        eyes=_counts(usable["eye"].fill_null("unknown")),
        problems=problems,
    )


def _counts(values: pl.Series) -> dict[str, int]:
    return dict(sorted(Counter(values.to_list()).items()))


def _changed_since(
    folder: Path, dataset: DatasetConfiguration, member: Mapping[str, Any]
) -> tuple[str | None, str | None]:
    """Reason and detail of the first file that is gone or has another size than registered, else None."""
    for file, registered_bytes in _registered_sizes(member):
        name = message_name(dataset, member["image_id"], file)
        try:
            found_bytes = os.stat(f"{folder}/{file}").st_size  # noqa: PTH116  called for every image of a lane
        except OSError:
            return "missing", f"{name}: the file was registered and is not there now; restore it or register again"
        if found_bytes != registered_bytes:
            detail = f"{name}: expected {registered_bytes} bytes as registered, found {found_bytes}; register again"
            return "changed_since_registration", detail
    return None, None


def _registered_sizes(member: Mapping[str, Any]) -> list[tuple[str, int]]:
    if files := member.get("files"):
        return [(file, stamped_size(stamp)) for file, stamp in zip(files, member["file_stamps"], strict=True)]
    return [(member["relative_path"], member["size"])]
