"""COCO files of one fold and split: lesion labels of raw images as boxes and outlines of global images and tiles.

It joins the manifest, the tiles' index, the frames of each image and its label files. Only labelled images enter
(label format ``obb`` or ``mask``; an empty label file is a statement, a missing label is none), and only those whose
preprocessing and label files are of the bytes that were registered; every image left out is counted with its reason.
It draws nothing and runs no checks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets.labels.class_map import ClassMap, LabelSpace
from uveitis_assets.labels.coco_file import CocoFile
from uveitis_assets.labels.configuration import LabelConfiguration
from uveitis_assets.labels.label_files import read_label_files
from uveitis_assets.labels.lesion_masks import parse_lesion_masks
from uveitis_assets.labels.lesions import Lesions, join_lesions
from uveitis_assets.labels.mask_completeness import missing_masks
from uveitis_assets.labels.oriented_boxes import parse_oriented_boxes
from uveitis_assets.labels.placement import PlacedLesion, place_in_image, place_in_tiles
from uveitis_assets.landing.quarantine import QuarantineError
from uveitis_assets.landing.samples import Split
from uveitis_assets.stages.index import read_index_table
from uveitis_assets.storage.files import read_json, write_json
from uveitis_assets.storage.store import ArtefactStore, artefact_key

# Lesions of this many images per thread wait for the writer at most.
IMAGES_PER_WORKER = 32


@dataclass(frozen=True, slots=True)
class BadLabel:
    """An image left out because its label cannot be believed."""

    image_id: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class CocoSplitSummary:
    """What one split's COCO files hold and what was left out.

    Counts are of images unless the name says otherwise. ``class_counts`` map category ids to annotations, zero
    included; ``missing_classes`` are kept categories that the labels could name but this split has none of.
    ``n_out_of_roi`` are lesions whose box centre lies outside the crop; ``n_outside_image`` are lesions
    with nothing inside the global image (left out); ``n_other_classes`` are lesions outside the label-space policy.
    ``n_negatives`` are images without annotations; of these, ``n_negative_by_policy`` have lesions, but none of a kept
    class. ``n_partial_labels`` lack the mask file of some kept lesion folder of the lane, ``missing_masks`` counts
    them per folder; whether they are listed is up to ``labels.missing_masks``.
    ``n_kept_*`` count tile annotations by the rule of ``placement`` that kept them. Areas are in px².
    """

    lane: str
    fold: int
    split: Split
    n_images: int
    n_negatives: int
    n_negative_by_policy: int
    n_partial_labels: int
    n_patients: int
    n_annotations: int
    n_tiles: int
    n_empty_tiles: int
    n_tile_annotations: int
    n_kept_by_ratio: int
    n_kept_large: int
    n_kept_best_tile: int
    n_unlabelled: int
    n_quarantined_images: int
    n_other_classes: int
    n_out_of_roi: int
    n_outside_image: int
    class_counts: Mapping[int, int]
    tile_class_counts: Mapping[int, int]
    avg_box_area: float
    tile_avg_box_area: float
    missing_classes: tuple[str, ...]
    missing_masks: Mapping[str, int]
    bad_labels: tuple[BadLabel, ...]
    not_preprocessed: tuple[str, ...]

    @property
    def n_bad_labels(self) -> int:
        return len(self.bad_labels)

    @property
    def n_not_preprocessed(self) -> int:
        return len(self.not_preprocessed)

    def counts(self) -> dict[str, int]:
        """All ``n_*`` numbers."""
        names = [field.name for field in fields(self) if field.name.startswith("n_")]
        return {name: getattr(self, name) for name in (*names, "n_bad_labels", "n_not_preprocessed")}


@dataclass(frozen=True, slots=True)
class _LabelledImage:
    image_id: str
    frames: ImageFrames
    lesions: Lesions


def build_coco_split(
    store: ArtefactStore,
    lane: str,
    raw_folder: Path,
    labels: LabelConfiguration,
    class_map: ClassMap,
    *,
    fold: int,
    split: Split,
    manifest: pl.DataFrame,
    workers: int = 1,
) -> CocoSplitSummary:
    """Write the global and the tile COCO file of one fold and split; files without images are valid files too.

    Args:
        store: where metadata, index and COCO files live.
        lane: dataset lane; names the files.
        raw_folder: the lane's landing folder; label paths start there.
        labels: label format, policy and limits.
        class_map: categories and how label files call them.
        fold: position in the manifest's ``fold_splits``.
        split: train, val or test.
        manifest: all rows of the lane.
        workers: threads that read labels; the result does not depend on it.

    Raises:
        ValueError: the lane has no lesion labels, the manifest has fewer folds, no batch of the lane has tiles, or an
            index of tiles is damaged.
        UnknownClassError: the configuration names a class that the class map does not have.
    """
    if labels.format == "none":
        raise ValueError(f"{lane}: expected `labels.format: obb` or `mask` to write COCO files, found none")
    label_space = class_map.label_space(labels.format, classes=labels.classes, label_classes=labels.label_classes)
    rows = _rows_of_split(manifest, lane, fold, split)
    usable = [row for row in rows if row["quarantine_reason"] is None]
    labelled = [row for row in usable if row["label_format"] == labels.format]
    if labelled and not store.indexed_batches(lane, "tiles"):
        # Whatever the split has would be replaced by files without images.
        batches = ", ".join(sorted({row["batch"] for row in labelled})[:10])
        raise ValueError(
            f"{lane}: {store.stage_index(lane, 'tiles', 'any').parent}: expected the tiles' index of {batches}, found "
            f"no batch's; materialize {lane}/tiles first"
        )
    preprocessed = _preprocessed_hashes(store, lane, labelled)

    growing = _CocoFiles(store, label_space, labels)
    bad_labels: list[BadLabel] = []
    not_preprocessed = [row["image_id"] for row in labelled if preprocessed.get(row["image_id"]) != row["content_hash"]]
    patients: set[str] = set()
    read = partial(_read_image, store, raw_folder, labels, label_space, lane=lane)
    ready = [row for row in labelled if preprocessed.get(row["image_id"]) == row["content_hash"]]
    incomplete = missing_masks(manifest, label_space, ready) if labels.format == "mask" else {}
    if labels.missing_masks == "leave_out":
        bad_labels += [_incomplete(image_id, folders) for image_id, folders in incomplete.items()]
        ready = [row for row in ready if row["image_id"] not in incomplete]
    for row, result in zip(ready, _map_in_order(read, ready, workers), strict=True):
        if isinstance(result, _LabelledImage):
            growing.add(result)
            patients.add(row["patient_id"])
        elif isinstance(result, BadLabel):
            bad_labels.append(result)
        else:
            not_preprocessed.append(row["image_id"])
    growing.images.write(store.coco_file(lane, split, fold, tiles=False))
    growing.tiles.write(store.coco_file(lane, split, fold, tiles=True))

    class_counts = {key: growing.images.annotations_per_category[key] for key in label_space.kept}
    tile_class_counts = {key: growing.tiles.annotations_per_category[key] for key in label_space.kept}
    return CocoSplitSummary(
        lane=lane,
        fold=fold,
        split=split,
        n_images=growing.images.n_images,
        n_negatives=growing.n_negatives,
        n_negative_by_policy=growing.n_negative_by_policy,
        n_partial_labels=len(incomplete),
        n_patients=len(patients),
        n_annotations=growing.images.n_annotations,
        n_tiles=growing.tiles.n_images,
        n_empty_tiles=growing.n_empty_tiles,
        n_tile_annotations=growing.tiles.n_annotations,
        n_kept_by_ratio=growing.kept_by["ratio"],
        n_kept_large=growing.kept_by["cover"],
        n_kept_best_tile=growing.kept_by["best"],
        n_unlabelled=len(usable) - len(labelled),
        n_quarantined_images=len(rows) - len(usable),
        n_other_classes=growing.n_other_classes,
        n_out_of_roi=growing.n_out_of_roi,
        n_outside_image=growing.n_outside_image,
        class_counts=class_counts,
        tile_class_counts=tile_class_counts,
        avg_box_area=growing.images.avg_box_area,
        tile_avg_box_area=growing.tiles.avg_box_area,
        missing_classes=tuple(name for key, name in label_space.reachable.items() if class_counts[key] == 0),
        missing_masks=dict(sorted(Counter(chain.from_iterable(incomplete.values())).items())),
        bad_labels=tuple(sorted(bad_labels, key=lambda bad: bad.image_id)),
        not_preprocessed=tuple(sorted(not_preprocessed)),
    )


def write_coco_summary(store: ArtefactStore, summary: CocoSplitSummary) -> Path:
    """Put one split into summary.json beside its COCO files and return that file.

    Fold 0's stands in labels_coco/, other folds' in their folders. Lanes and splits are written by different
    processes: the file is read, changed and replaced under a lock.
    """
    path = store.coco_summary_file(summary.fold)
    entry = {
        "global": {
            "num_images": summary.n_images,
            "num_annotations": summary.n_annotations,
            "class_counts": {str(key): n for key, n in summary.class_counts.items() if n},
            "avg_box_area": summary.avg_box_area,
        },
        "tiles": {
            "num_images": summary.n_tiles,
            "num_annotations": summary.n_tile_annotations,
            "class_counts": {str(key): n for key, n in summary.tile_class_counts.items() if n},
            "avg_box_area": summary.tile_avg_box_area,
        },
    }
    with store.lock("coco_summary"):
        content = read_json(path) if path.exists() else {}
        content[f"{summary.lane}_{summary.split}"] = entry
        write_json(path, dict(sorted(content.items())))
    return path


class _CocoFiles:
    """The two COCO files of a split while they grow, image by image."""

    def __init__(self, store: ArtefactStore, label_space: LabelSpace, labels: LabelConfiguration) -> None:
        self.store = store
        self.labels = labels
        self.kept_ids = np.array(list(label_space.kept), dtype=np.int64)
        self.images = CocoFile(label_space.coco_categories())
        self.tiles = CocoFile(label_space.coco_categories())
        self.kept_by: Counter[str] = Counter()
        self.n_negatives = 0
        self.n_negative_by_policy = 0
        self.n_empty_tiles = 0
        self.n_other_classes = 0
        self.n_out_of_roi = 0
        self.n_outside_image = 0

    def add(self, image: _LabelledImage) -> None:
        lesions, frames = image.lesions, image.frames
        key = artefact_key(image.image_id)
        # Positions are kept while other classes go: lesion ids do not depend on the policy.
        wanted = np.flatnonzero(np.isin(lesions.category_ids, self.kept_ids))
        self.n_other_classes += len(lesions) - len(wanted)
        self.n_negative_by_policy += len(lesions) > 0 and not len(wanted)
        kept = lesions.take(wanted)
        self.n_out_of_roi += _count_out_of_roi(kept, frames)

        size = frames.global_size
        placed = place_in_image(kept, frames.raw_to_global, (size, size))
        self.n_outside_image += len(kept) - len(placed)
        self.n_negatives += not placed
        file_name = self.store.name_of(self.store.global_image(key, size))
        entry = {"file_name": file_name, "width": size, "height": size, "image_id": image.image_id}
        _append(self.images, entry, placed, kept, wanted)

        in_tiles = place_in_tiles(
            kept,
            frames.raw_to_tiling,
            frames.tiling_size,
            frames.tiles,
            min_box_ratio=self.labels.min_tile_box_ratio,
            large_cover=self.labels.large_lesion_tile_cover,
        )
        for tile, placed_in_tile in zip(frames.tiles, in_tiles, strict=True):
            tile_entry = {
                "file_name": self.store.name_of(self.store.tile(key, tile.tile_id)),
                "width": tile.width,
                "height": tile.height,
                "image_id": image.image_id,
                "tile_id": tile.tile_id,
            }
            self.n_empty_tiles += not placed_in_tile
            self.kept_by.update(lesion.kept_by for lesion in placed_in_tile)
            _append(self.tiles, tile_entry, placed_in_tile, kept, wanted)


def _append(
    file: CocoFile,
    entry: Mapping[str, Any],
    placed: Iterable[PlacedLesion],
    lesions: Lesions,
    positions: NDArray[np.int64],
) -> None:
    """Add one image entry and its annotations; ``positions`` are those of the lesions in the image's label."""
    image_number = file.add_image(entry)
    for lesion in placed:
        file.add_annotation(
            {
                "image_id": image_number,
                "category_id": int(lesions.category_ids[lesion.lesion]),
                **lesion.as_coco(),
                "lesion_id": int(positions[lesion.lesion]) + 1,
            }
        )


def _rows_of_split(manifest: pl.DataFrame, lane: str, fold: int, split: Split) -> list[dict[str, Any]]:
    columns = [
        "image_id",
        "patient_id",
        "label_format",
        "label_paths",
        "label_hashes",
        "content_hash",
        "quarantine_reason",
        "batch",
        "fold_splits",
    ]
    rows = manifest.select(columns).sort("image_id").to_dicts()
    for row in rows:
        if len(row["fold_splits"]) <= fold:
            raise ValueError(
                f"{lane}: {row['image_id']}: expected a split for fold {fold}, found {len(row['fold_splits'])} folds; "
                "materialize the manifest again"
            )
    return [row for row in rows if row["fold_splits"][fold] == split]


def _incomplete(image_id: str, folders: list[str]) -> BadLabel:
    return BadLabel(
        image_id,
        "missing_masks",
        f"expected a mask in every lesion folder of the lane, found none in {', '.join(folders)}; add it "
        "(black where there is no such lesion), or set `labels.missing_masks: no_lesion`",
    )


def _preprocessed_hashes(store: ArtefactStore, lane: str, rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Image id -> content hash of the images that the tiles' indexes list as done."""
    hashes: dict[str, str] = {}
    for batch in sorted({row["batch"] for row in rows}):
        path = store.stage_index(lane, "tiles", batch)
        if not path.exists():
            continue
        index = read_index_table(path, ["image_id", "content_hash", "quarantine_reason"])
        done = index.filter(pl.col("quarantine_reason").is_null())
        hashes.update(zip(done["image_id"], done["content_hash"], strict=True))
    return hashes


def _read_image(
    store: ArtefactStore,
    raw_folder: Path,
    labels: LabelConfiguration,
    label_space: LabelSpace,
    row: Mapping[str, Any],
    *,
    lane: str,
) -> _LabelledImage | BadLabel | None:
    """Frames and lesions of one image; None when its metadata is gone although the index lists it."""
    image_id = row["image_id"]
    key = artefact_key(image_id)
    try:
        frames = ImageFrames.from_metadata(read_json(store.crop_metadata(key)), read_json(store.tiles_metadata(key)))
    except FileNotFoundError:
        return None
    try:
        files = read_label_files(store, lane, raw_folder, row)
        if labels.format == "mask":
            lesions = parse_lesion_masks(files, label_space, frames.raw_size, labels.min_component_area)
        else:
            lesions = join_lesions(
                [parse_oriented_boxes(data, name, label_space, frames.raw_size) for name, data in files]
            )
    except QuarantineError as error:
        return BadLabel(image_id, error.reason, error.detail)
    return _LabelledImage(image_id, frames, lesions)


def _map_in_order(
    function: Callable[[Mapping[str, Any]], _LabelledImage | BadLabel | None],
    rows: list[dict[str, Any]],
    workers: int,
) -> Iterator[_LabelledImage | BadLabel | None]:
    """Results in the order of the rows; threads stay at most a few images per worker ahead of the consumer."""
    if workers <= 1:
        yield from map(function, rows)
        return
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(rows), IMAGES_PER_WORKER * workers):
            yield from pool.map(function, rows[start : start + IMAGES_PER_WORKER * workers])


def _count_out_of_roi(lesions: Lesions, frames: ImageFrames) -> int:
    centres = lesions.boxes.reshape(-1, 2, 2).mean(axis=1)
    x0, y0, x1, y1 = frames.crop_box
    inside = (centres >= (x0, y0)).all(axis=1) & (centres <= (x1, y1)).all(axis=1)
    return int((~inside).sum())
