"""The manifest: one row per live image, in parts per batch and exported for the whole lane, and the splits files.

Rows come from the ledger alone; of each file only existence and size are checked again. Raw patient ids stay in the
ledger: here they are pseudonyms, and where file names name patients (``identify_by_content``) ``filepath``,
``labels_path``, ``label_paths`` and ``relative_path`` are empty. ``filepath`` and ``labels_path`` (several joined by
``;``) are written as every path in artefacts; ``relative_path`` and ``label_paths`` start at the dataset's raw folder.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from uveitis_assets.fundus.configuration import DatasetConfiguration, SplitConfiguration
from uveitis_assets.fundus.landed import SPLITS, Split
from uveitis_assets.fundus.ledger import label_hash, message_name
from uveitis_assets.fundus.pseudonym import patient_key, pseudonym
from uveitis_assets.fundus.splits import patient_splits, read_pinned_splits, strictest
from uveitis_assets.storage import ArtefactStore, json_bytes, write_bytes

_EARLIER_COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
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
_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    **_EARLIER_COLUMNS,
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
}
EXPORTED_COLUMNS = (*_EARLIER_COLUMNS, "content_hash", "quarantine_reason")


@dataclass(frozen=True, slots=True)
class ManifestSummary:
    """Counts over the rows of one part or lane. Splits (fold 0), label formats and eyes count usable images only."""

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


def build_manifest_part(
    store: ArtefactStore, dataset: DatasetConfiguration, splits: SplitConfiguration, batch: str
) -> ManifestSummary:
    """Write the manifest rows of one batch from the ledger; no image is opened.

    A file that is gone or has another size than when it was registered is listed with ``missing`` or
    ``changed_since_registration``.

    Raises:
        ValueError: the batch is not in the ledger, or the pinned splits file is wrong.
    """
    ledger = store.ledger_file(dataset.name)
    if not ledger.exists():
        raise ValueError(f"{ledger}: expected the ledger of {dataset.name}, found none; register the dataset first")
    members = pl.scan_parquet(ledger).filter(pl.col("batch") == batch).collect()
    if members.is_empty():
        raise ValueError(f"{ledger}: found no batch {batch}; register the dataset again")
    members = members.filter(pl.col("state") == "live").sort("image_id")
    pinned, problems = _pinned_sides(store, ledger, splits, members)
    key = patient_key(store)
    folder = store.raw_folder(dataset.folder)
    hides_names = dataset.image_folder.identify_by_content
    rows = []
    for member in members.iter_rows(named=True):
        relative_path = member["relative_path"]
        path = folder / relative_path
        reason, detail = member["quarantine_reason"], member["quarantine_detail"]
        if reason is None:
            name = message_name(dataset, member["image_id"], relative_path)
            reason, detail = _changed_since(path, member["size"], name)
        owner = (member["split_dataset"], member["split_patient"])
        sides = patient_splits(*owner, splits, member["patient_official_split"], pinned.get(owner, ()))
        label_paths = [] if hides_names else member["label_paths"]
        rows.append(
            {
                "image_id": member["image_id"],
                "filepath": "" if hides_names else store.name_of(path),
                "dataset": member["dataset"],
                "split": sides[0],
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
                "label_hashes": [label_hash(stamp) for stamp in member["label_stamps"][: len(label_paths)]],
                "batch": batch,
                "split_name": splits.name,
                "fold_splits": list(sides),
            }
        )
    part = pl.DataFrame(rows, schema=_SCHEMA)
    _write_parquet(store.manifest_part(dataset.name, batch), part)
    return summarize(part, problems)


def read_manifest(store: ArtefactStore, lane: str) -> pl.DataFrame:
    """All parts of a lane, one row per image id (the latest batch holds), sorted by image id."""
    parts = store.manifest_parts(lane)
    if not parts:
        return pl.DataFrame(schema=_SCHEMA)
    # Parts made before a column was added lack it: it is null there.
    frame = pl.concat([pl.DataFrame(schema=_SCHEMA), *(pl.read_parquet(part) for part in parts)], how="diagonal")
    return frame.unique("image_id", keep="last", maintain_order=True).sort("image_id")


def export_manifest(store: ArtefactStore, dataset: DatasetConfiguration) -> ManifestSummary:
    """Write ``manifests/<lane>.jsonl``, ``.csv`` and ``.parquet`` from the lane's parts.

    Columns are the earlier ones in their order, then ``content_hash`` and ``quarantine_reason``; quarantined images
    are listed. Lanes running at the same time take turns.
    """
    with store.lock(f"{dataset.name}.manifest"):
        manifest = read_manifest(store, dataset.name)
        exported = manifest.select(EXPORTED_COLUMNS)
        write_bytes(store.manifest_export(dataset.name, "jsonl"), exported.write_ndjson().encode())
        write_bytes(store.manifest_export(dataset.name, "csv"), exported.write_csv().encode())
        _write_parquet(store.manifest_export(dataset.name, "parquet"), exported)
    return summarize(manifest)


def write_splits_files(store: ArtefactStore, split_name: str, folds: int) -> list[Path]:
    """Write ``splits/<name>_<fold>.json`` over all lanes whose manifests bear the split name.

    Quarantined images are left out; ids are sorted.

    Raises:
        ValueError: a lane's manifest was made with fewer folds.
    """
    with store.lock(f"splits.{split_name}"):
        frames = []
        for lane in store.lanes_with_manifests():
            manifest = read_manifest(store, lane).filter(pl.col("split_name") == split_name)
            if manifest.filter(pl.col("fold_splits").list.len() < folds).height:
                raise ValueError(
                    f"{lane}/manifest: expected {folds} folds of {split_name}, found fewer; materialize it again"
                )
            frames.append(manifest.filter(pl.col("quarantine_reason").is_null()).select("image_id", "fold_splits"))
        everything = pl.concat(frames).sort("image_id") if frames else pl.DataFrame(schema=_SCHEMA)
        paths = []
        for fold in range(folds):
            side = everything["fold_splits"].list.get(fold)
            value: dict[str, list[str]] = {
                split: everything.filter(side == split)["image_id"].to_list() for split in SPLITS
            }
            paths.append(store.splits_file(split_name, fold))
            write_bytes(paths[-1], json_bytes(value))
    return paths


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


def _changed_since(path: Path, registered_bytes: int, name: str) -> tuple[str | None, str | None]:
    try:
        found_bytes = os.stat(path).st_size  # noqa: PTH116  called for every image of a lane
    except OSError:
        return "missing", f"{name}: the file was registered and is not there now; restore it or register again"
    if found_bytes != registered_bytes:
        detail = f"{name}: expected {registered_bytes} bytes as registered, found {found_bytes}; register again"
        return "changed_since_registration", detail
    return None, None


def _pinned_sides(
    store: ArtefactStore, ledger: Path, splits: SplitConfiguration, members: pl.DataFrame
) -> tuple[dict[tuple[str, str], list[Split | None]], tuple[str, ...]]:
    """Per patient of the batch the pinned side in each fold, from whichever of the patient's images are pinned.

    Images that are gone or superseded count too: a pinned patient stays on its side when the photograph that bore the
    pin is removed or replaced.
    """
    pinned = read_pinned_splits(store.root, splits)
    if not pinned:
        return {}, ()
    patients = members.select("split_dataset", "split_patient").unique()
    images = (
        pl.scan_parquet(ledger)
        .select("split_dataset", "split_patient", "image_id")
        .join(patients.lazy(), on=["split_dataset", "split_patient"], how="semi")
        .sort("image_id")
        .collect()
    )
    claims: dict[tuple[str, str], list[set[Split]]] = {}
    first_id: dict[tuple[str, str], str] = {}
    for dataset, patient, image_id in images.iter_rows():
        first_id.setdefault((dataset, patient), image_id)
        sides = claims.setdefault((dataset, patient), [set() for _ in pinned])
        for side, split_by_id in zip(sides, pinned, strict=True):
            if image_id in split_by_id:
                side.add(split_by_id[image_id])
    problems = tuple(
        f"the patient of {first_id[patient]} stands on several sides of the pinned splits; the strictest holds"
        for patient, sides in claims.items()
        if any(len(side) > 1 for side in sides)
    )
    return {patient: [strictest(side) for side in sides] for patient, sides in claims.items()}, problems


def _write_parquet(path: Path, frame: pl.DataFrame) -> None:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    write_bytes(path, buffer.getbuffer())
