"""The manifest: one row per live image, in parts per batch and exported for the whole lane, and the splits files.

Rows come from the ledger alone; of each file only existence and size are checked again. Raw patient ids stay in the
ledger: here they are pseudonyms, and where file names name patients (``identify_by_content``) ``filepath``,
``labels_path``, ``label_paths`` and ``relative_path`` are empty. ``filepath`` and ``labels_path`` (several joined by
``;``) are written as every path in artefacts; ``relative_path`` and ``label_paths`` start at the dataset's raw folder.

Parts are made batch by batch; the export deals all of them again by the configuration and the ledger of now, so that
no two parts of a lane tear a patient apart. A lane whose split name changes is taken out of the former name's
splits files then.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import operator
import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from uveitis_assets.fundus.configuration import DatasetConfiguration, SplitConfiguration
from uveitis_assets.fundus.dealing import deal, read_dealing
from uveitis_assets.fundus.landed import SPLITS
from uveitis_assets.fundus.ledger import label_hash, message_name, registered_batches
from uveitis_assets.fundus.ledger_table import naming_damage, scan_ledger
from uveitis_assets.fundus.pseudonym import patient_key, pseudonym
from uveitis_assets.fundus.registered_state import registered_states
from uveitis_assets.fundus.stage_fingerprint import STAGES
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
    "split_fingerprint": pl.String,
}
_DEALT = ("split", "split_name", "fold_splits", "split_fingerprint")
# Parquet metadata of a part: digest of what was registered about the batch when the part was made.
_STATE_METADATA = "registered_state"
# What every part has, however long ago it was made.
_FIRST_COLUMNS = frozenset((*_EARLIER_COLUMNS, "content_hash", "quarantine_reason", "batch", "fold_splits"))
# Batches that a message names.
_LISTED = 10
EXPORTED_COLUMNS = (*_EARLIER_COLUMNS, "content_hash", "quarantine_reason")


@dataclass(frozen=True, slots=True)
class ManifestSummary:
    """Counts over the rows of one part or lane. Splits (fold 0), label formats and eyes count usable images only.

    ``dealt_again`` are other batches whose sides had to be changed.
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
    dealt_again: tuple[str, ...] = ()


def build_manifest_part(
    store: ArtefactStore, dataset: DatasetConfiguration, splits: SplitConfiguration, batch: str
) -> ManifestSummary:
    """Write the manifest rows of one batch from the ledger; no image is opened.

    Where the lane's other parts were dealt by another split configuration, they are dealt again first.

    A file that is gone or has another size than when it was registered is listed with ``missing`` or
    ``changed_since_registration``. A damaged part of the batch itself is replaced.

    Raises:
        ValueError: the batch is not in the ledger, the pinned splits file is wrong, or another part is damaged.
    """
    with store.lock(_manifest_lock(dataset.name)):
        part, problems, state = _manifest_rows(store, dataset, splits, batch)
        # Before this part is seen: a run of many batches would leave two dealings side by side until its export.
        dealt_again: tuple[str, ...] = ()
        path = store.manifest_part(dataset.name, batch)
        former_names = _split_names(path) - {splits.name}
        if not _is_dealt(store, dataset.name, splits, without=batch):
            _, dealt_again, others = _deal_parts_again(store, dataset.name, splits, without=batch)
            former_names |= others
        _write_parquet(path, part, state)
    _leave_splits_files(store, former_names, splits)
    return dataclasses.replace(summarize(part, problems), dealt_again=dealt_again)


def manifest_state(part: Path) -> str | None:
    """Digest of what was registered about the batch when the part was made (see registered_states).

    None where there is no part, or one that tells nothing of it.
    """
    try:
        return pl.read_parquet_metadata(part).get(_STATE_METADATA)
    except (FileNotFoundError, pl.exceptions.PolarsError):
        return None


def _manifest_rows(
    store: ArtefactStore, dataset: DatasetConfiguration, splits: SplitConfiguration, batch: str
) -> tuple[pl.DataFrame, tuple[str, ...], str]:
    path = store.ledger_file(dataset.name)
    if not path.exists():
        raise ValueError(f"{path}: expected the ledger of {dataset.name}, found none; register the dataset first")
    ledger = scan_ledger(path)
    with naming_damage(path):
        members = ledger.filter(pl.col("batch") == batch).collect()
    if members.is_empty():
        raise ValueError(f"{path}: found no batch {batch}; register the dataset again")
    dealing = read_dealing(store.root, splits)
    with naming_damage(path):
        dealt, problems = deal(ledger, dealing, batch)
    key = patient_key(store)
    state = registered_states(members, key)[batch]
    members = members.with_columns(dealt["fold_splits"]).filter(pl.col("state") == "live").sort("image_id")
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
        label_paths = [] if hides_names else member["label_paths"]
        rows.append(
            {
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
                "label_hashes": [label_hash(stamp) for stamp in member["label_stamps"][: len(label_paths)]],
                "batch": batch,
                "split_name": splits.name,
                "fold_splits": member["fold_splits"],
                "split_fingerprint": dealing.fingerprint,
            }
        )
    return pl.DataFrame(rows, schema=_SCHEMA), problems, state


def read_manifest(store: ArtefactStore, lane: str) -> pl.DataFrame:
    """All parts of a lane, one row per image id (the latest batch holds), sorted by image id.

    Waits while the lane's export deals its parts again.
    """
    with store.lock(_manifest_lock(lane)):
        parts = _read_parts(store, lane)
    return _one_row_per_image(parts)


def require_parts(store: ArtefactStore, lane: str, made_before: Collection[str] = ()) -> None:
    """Refuse a lane whose manifest was never made or lost parts: what is made from it would lose their images.

    A batch that has only landed has no part yet and is not missed: its images follow when it was run.

    Args:
        store: where ledger, parts and stage indexes lie.
        lane: the lane's name.
        made_before: batches whose manifest is known to have been made; those with a stage index are known by that.

    Raises:
        ValueError: says what to materialize.
    """
    parts = {part.stem for part in store.manifest_parts(lane)}
    missing = [batch for batch in registered_batches(store, lane) if batch not in parts]
    if parts:
        made = set(made_before).union(*(store.indexed_batches(lane, stage) for stage in STAGES))
        missing = [batch for batch in missing if batch in made]
    if missing:
        more = f" and {len(missing) - _LISTED} more batches" if len(missing) > _LISTED else ""
        raise ValueError(
            f"{lane}: found no manifest of {', '.join(missing[:_LISTED])}{more} in "
            f"{store.manifest_part(lane, missing[0]).parent}; materialize {lane}/manifest first"
        )


def dealt_otherwise(manifest: pl.DataFrame, fingerprint: str) -> list[str]:
    """Batches with rows whose sides were not decided by the dealing of this fingerprint, sorted."""
    others = manifest.filter(pl.col("split_fingerprint").ne_missing(fingerprint))
    batches: list[str] = others["batch"].unique().sort().to_list()
    return batches


def require_one_dealing(lane: str, manifest: pl.DataFrame) -> None:
    """Refuse a manifest whose rows were dealt by several split configurations: patients may stand on two sides.

    Raises:
        ValueError: says what to materialize.
    """
    if manifest["split_fingerprint"].n_unique() > 1:
        newest = str(manifest.sort("batch")["split_fingerprint"].last())
        raise ValueError(
            f"{lane}/manifest: expected all batches to be dealt by one split configuration, found "
            f"{', '.join(dealt_otherwise(manifest, newest))} dealt by another than the last one; materialize any "
            f"batch of {lane}/manifest again: that deals all of them alike. If the message stays, register {lane}, "
            "materialize the manifest of all batches, and remove "
            f"index/{lane}/manifest/<batch>.parquet of batches that the ledger does not know"
        )


def export_manifest(store: ArtefactStore, dataset: DatasetConfiguration, splits: SplitConfiguration) -> ManifestSummary:
    """Deal all parts of the lane alike, then write ``manifests/<lane>.jsonl``, ``.csv`` and ``.parquet`` from them.

    Parts made under another split configuration, or before images landed that changed a patient's side, get the sides
    that configuration and ledger give now; parts that have them already are left alone. Columns are the earlier ones
    in their order, then ``content_hash`` and ``quarantine_reason``; quarantined images are listed. Lanes running at
    the same time take turns.

    Raises:
        ValueError: the pinned splits file is wrong.
    """
    with store.lock(_manifest_lock(dataset.name)):
        parts, dealt_again, former_names = _deal_parts_again(store, dataset.name, splits)
        manifest = _one_row_per_image(parts)
        exported = manifest.select(EXPORTED_COLUMNS)
        write_bytes(store.manifest_export(dataset.name, "jsonl"), exported.write_ndjson().encode())
        write_bytes(store.manifest_export(dataset.name, "csv"), exported.write_csv().encode())
        _write_parquet(store.manifest_export(dataset.name, "parquet"), exported)
    _leave_splits_files(store, former_names, splits)
    return dataclasses.replace(summarize(manifest), dealt_again=dealt_again)


def _manifest_lock(lane: str) -> str:
    """Held by who writes a part and by who reads several: parts are only ever seen dealt alike."""
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


def _split_names(part: Path) -> set[str]:
    """Split names of a part that is about to be replaced; none of a missing, damaged or very old one."""
    try:
        return set(pl.read_parquet(part, columns=["split_name"])["split_name"].drop_nulls())
    except (FileNotFoundError, pl.exceptions.PolarsError):
        return set()


def _read_parts(store: ArtefactStore, lane: str, *, without: str | None = None) -> pl.DataFrame:
    """Rows of all parts, or of all but one batch's, in the order of their batches; null where a part lacks a column."""
    parts = [read_part(part) for part in store.manifest_parts(lane) if part.stem != without]
    return pl.concat([pl.DataFrame(schema=_SCHEMA), *parts], how="diagonal")


def _one_row_per_image(parts: pl.DataFrame) -> pl.DataFrame:
    return parts.unique("image_id", keep="last", maintain_order=True).sort("image_id")


def _deal_parts_again(
    store: ArtefactStore, lane: str, splits: SplitConfiguration, *, without: str | None = None
) -> tuple[pl.DataFrame, tuple[str, ...], set[str]]:
    """Bring the sides of all parts, or of all but one batch's, up to configuration and ledger.

    Returns all their rows, the batches that changed, and the split names that none of the rows bears any more.

    An image that the ledger now knows under another id is found by its content. A row that it does not know at all
    keeps its sides and their fingerprint: the check of the manifest lists it.
    """
    parts = _read_parts(store, lane, without=without)
    ledger = store.ledger_file(lane)
    if parts.is_empty() or not ledger.exists():
        return parts, (), set()
    dealing = read_dealing(store.root, splits)
    with naming_damage(ledger):
        dealt, _ = deal(scan_ledger(ledger), dealing)
    by_id = dealt.unique(["batch", "image_id"], keep="last").select("batch", "image_id", by_id="fold_splits")
    read = dealt.filter(pl.col("content_hash") != "")
    by_content = read.unique(["batch", "content_hash"], keep="last").select(
        "batch", "content_hash", by_content="fold_splits"
    )
    sides = pl.coalesce("by_id", "by_content")
    updated = (
        parts.join(by_id, on=["batch", "image_id"], how="left", maintain_order="left")
        .join(by_content, on=["batch", "content_hash"], how="left", maintain_order="left")
        .with_columns(
            fold_splits=pl.coalesce(sides, "fold_splits"),
            split=pl.coalesce(sides.list.first(), "split"),
            split_name=pl.when(sides.is_null()).then("split_name").otherwise(pl.lit(splits.name)),
            split_fingerprint=pl.when(sides.is_null()).then("split_fingerprint").otherwise(pl.lit(dealing.fingerprint)),
        )
        .select(parts.columns)
    )
    differs = [_comparable(parts, column).ne_missing(_comparable(updated, column)) for column in _DEALT]
    changed = updated.filter(functools.reduce(operator.or_, differs))["batch"].unique().sort().to_list()
    for batch in changed:
        path = store.manifest_part(lane, batch)
        # Other sides do not bring the rest of the part up to what is registered now.
        _write_parquet(path, updated.filter(pl.col("batch") == batch).rechunk(), manifest_state(path))
    former_names = set(parts["split_name"].drop_nulls()).difference(updated["split_name"])
    return updated, tuple(changed), former_names


def _is_dealt(store: ArtefactStore, lane: str, splits: SplitConfiguration, *, without: str) -> bool:
    """Say whether the lane's parts but one batch's bear the present dealing: dealt in order, so that the last tells."""
    fingerprint = read_dealing(store.root, splits).fingerprint
    for path in reversed(store.manifest_parts(lane)):
        part = pl.DataFrame() if path.stem == without else read_part(path)
        if part.height:
            return "split_fingerprint" in part.columns and fingerprint in part["split_fingerprint"]
    return True


def _comparable(frame: pl.DataFrame, column: str) -> pl.Series:
    values = frame[column]
    return values.list.join(",") if values.dtype == pl.List else values


def write_splits_files(store: ArtefactStore, split_name: str, folds: int) -> list[Path]:
    """Write ``splits/<name>_<fold>.json`` over all lanes whose manifests bear the split name.

    Quarantined images are left out; ids are sorted. Files of folds that do not exist any more are removed.

    Raises:
        ValueError: a lane's manifest was made with fewer folds, or by several split configurations.
    """
    with store.lock(f"splits.{split_name}"):
        return _write_sides(store, split_name, folds, _sides_of_lanes(store, split_name, folds))


def _leave_splits_files(store: ArtefactStore, former_names: Collection[str], splits: SplitConfiguration) -> None:
    """Take a lane out of the splits files of names that it bore; they go when no lane bears the name any more.

    Called without the manifest's lock, which is taken inside that of the splits files. Files that the lane has pinned
    stay: they decide its sides.
    """
    pinned = [] if splits.pinned is None else [splits.pinned.replace("{fold}", str(k)) for k in range(splits.folds)]
    for name in sorted(former_names):
        with store.lock(f"splits.{name}"):
            files = store.splits_files(name)
            if any(store.name_of(path) in pinned for path in files.values()):
                continue
            folds = max(files, default=-1) + 1
            if sides := _sides_of_lanes(store, name, folds):
                _write_sides(store, name, folds, sides)
            else:
                for path in files.values():
                    path.unlink()


def _sides_of_lanes(store: ArtefactStore, split_name: str, folds: int) -> list[pl.DataFrame]:
    """Usable images with their sides, one frame for each lane whose manifest bears the split name."""
    frames = []
    for lane in store.lanes_with_manifests():
        manifest = read_manifest(store, lane)
        if split_name not in manifest["split_name"]:
            continue
        require_one_dealing(lane, manifest)
        if manifest.filter(pl.col("fold_splits").list.len() < folds).height:
            raise ValueError(
                f"{lane}/manifest: expected {folds} folds of {split_name}, found fewer; materialize it again, or "
                f"remove index/{lane} if the lane does not exist any more"
            )
        frames.append(manifest.filter(pl.col("quarantine_reason").is_null()).select("image_id", "fold_splits"))
    return frames


def _write_sides(store: ArtefactStore, split_name: str, folds: int, frames: list[pl.DataFrame]) -> list[Path]:
    everything = pl.concat(frames).sort("image_id") if frames else pl.DataFrame(schema=_SCHEMA)
    paths = []
    for fold in range(folds):
        side = everything["fold_splits"].list.get(fold)
        value: dict[str, list[str]] = {
            split: everything.filter(side == split)["image_id"].to_list() for split in SPLITS
        }
        paths.append(store.splits_file(split_name, fold))
        write_bytes(paths[-1], json_bytes(value))
    for fold, path in store.splits_files(split_name).items():
        if fold >= folds:
            path.unlink()
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


def _write_parquet(path: Path, frame: pl.DataFrame, state: str | None = None) -> None:
    buffer = io.BytesIO()
    frame.write_parquet(buffer, metadata=None if state is None else {_STATE_METADATA: state})
    write_bytes(path, buffer.getbuffer())
