"""COCO files of one fold and split: lesions as boxes and outlines of global images and of tiles.

Joins the manifest, the tiles' index, the frames of each image and its label files. Only labelled images enter (label
format ``obb`` or ``mask``; an empty label file means an image without lesions, a missing one means no label), and only
those whose preprocessing and label files are of the bytes that were registered; every image left out is counted with
its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
from uveitis_assets.labels.coco_summary import BadLabel, CocoSplitSummary
from uveitis_assets.labels.configuration import LabelConfiguration
from uveitis_assets.labels.damaged_tiles import damaged_tiles
from uveitis_assets.labels.findings import LabelFinding
from uveitis_assets.labels.image_lesions import (
    ImageLesions,
    map_in_order,
    preprocessed_hashes,
    read_image_lesions,
    rows_of_split,
)
from uveitis_assets.labels.lesions import Lesions
from uveitis_assets.labels.masks.completeness import missing_masks
from uveitis_assets.labels.placement import PlacedLesion, place_in_image, place_in_tiles
from uveitis_assets.landing.samples import Split
from uveitis_assets.storage.store import ArtefactStore, artefact_key


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
    """Write the COCO files of global images and of tiles of one fold and split.

    Files without images are valid files too.

    Args:
        store: holds metadata, index and COCO files.
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
    rows = rows_of_split(manifest, lane, fold, split)
    usable = [row for row in rows if row["quarantine_reason"] is None]
    labelled = [row for row in usable if row["label_format"] == labels.format]
    _check_tiles_are_indexed(store, lane, labelled)
    hashes = preprocessed_hashes(store, lane, labelled)
    ready = [row for row in labelled if hashes.get(row["image_id"]) == row["content_hash"]]
    not_preprocessed = [row["image_id"] for row in labelled if hashes.get(row["image_id"]) != row["content_hash"]]
    incomplete = missing_masks(manifest, label_space, ready) if labels.format == "mask" else {}
    left_out = incomplete if labels.missing_masks == "leave_out" else {}
    bad_labels = [_incomplete(image_id, folders) for image_id, folders in left_out.items()]
    ready = [row for row in ready if row["image_id"] not in left_out]
    damaged, stamps = damaged_tiles(store, lane, ready)
    bad_labels += damaged.values()
    ready = [row for row in ready if row["image_id"] not in damaged]

    growing = _CocoFiles(store, label_space, labels)
    patients: set[str] = set()
    findings: dict[str, tuple[LabelFinding, ...]] = {}
    read = partial(read_image_lesions, store, raw_folder, labels, label_space, lane=lane, stamps=stamps)
    for row, result in zip(ready, map_in_order(read, ready, workers), strict=True):
        if isinstance(result, ImageLesions):
            growing.add(result)
            patients.add(row["patient_id"])
            if result.lesions.findings:
                findings[result.image_id] = result.lesions.findings
        elif isinstance(result, BadLabel):
            bad_labels.append(result)
        else:
            not_preprocessed.append(row["image_id"])
    growing.images.write(store.coco_file(lane, split, fold, tiles=False))
    growing.tiles.write(store.coco_file(lane, split, fold, tiles=True))
    return CocoSplitSummary(
        lane=lane,
        fold=fold,
        split=split,
        n_partial_labels=len(incomplete),
        n_patients=len(patients),
        n_unlabelled=len(usable) - len(labelled),
        n_quarantined_images=len(rows) - len(usable),
        missing_masks=dict(sorted(Counter(chain.from_iterable(incomplete.values())).items())),
        bad_labels=tuple(sorted(bad_labels, key=lambda bad: bad.image_id)),
        not_preprocessed=tuple(sorted(not_preprocessed)),
        label_findings=findings,
        **growing.counts(),
    )


def _check_tiles_are_indexed(store: ArtefactStore, lane: str, labelled: Sequence[Mapping[str, Any]]) -> None:
    """Raise where no batch of the lane has tiles: the split would be replaced by files without images."""
    if labelled and not store.indexed_batches(lane, "tiles"):
        batches = ", ".join(sorted({row["batch"] for row in labelled})[:10])
        raise ValueError(
            f"{lane}: {store.stage_index(lane, 'tiles', 'any').parent}: expected the tiles' index of {batches}, found "
            f"no batch's; materialize {lane}/tiles first"
        )


def _incomplete(image_id: str, folders: list[str]) -> BadLabel:
    return BadLabel(
        image_id,
        "missing_masks",
        f"expected a mask in every lesion folder of the lane, found none in {', '.join(folders)}; add it "
        "(black where there is no such lesion), or set `labels.missing_masks: no_lesion`",
    )


class _CocoFiles:
    """The two COCO files of a split while they grow, image by image."""

    def __init__(self, store: ArtefactStore, label_space: LabelSpace, labels: LabelConfiguration) -> None:
        self.store = store
        self.labels = labels
        self.label_space = label_space
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

    def add(self, image: ImageLesions) -> None:
        """Append an image, its tiles and what they show of its lesions."""
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

    def counts(self) -> dict[str, Any]:
        """The fields of a ``CocoSplitSummary`` that count what the files hold."""
        class_counts = {key: self.images.annotations_per_category[key] for key in self.label_space.kept}
        reachable = self.label_space.reachable
        return {
            "n_images": self.images.n_images,
            "n_negatives": self.n_negatives,
            "n_negative_by_policy": self.n_negative_by_policy,
            "n_annotations": self.images.n_annotations,
            "n_tiles": self.tiles.n_images,
            "n_empty_tiles": self.n_empty_tiles,
            "n_tile_annotations": self.tiles.n_annotations,
            "n_kept_by_ratio": self.kept_by["ratio"],
            "n_kept_large": self.kept_by["cover"],
            "n_kept_best_tile": self.kept_by["best"],
            "n_other_classes": self.n_other_classes,
            "n_out_of_roi": self.n_out_of_roi,
            "n_outside_image": self.n_outside_image,
            "class_counts": class_counts,
            "tile_class_counts": {key: self.tiles.annotations_per_category[key] for key in self.label_space.kept},
            "avg_box_area": self.images.avg_box_area,
            "tile_avg_box_area": self.tiles.avg_box_area,
            "missing_classes": tuple(name for key, name in reachable.items() if class_counts[key] == 0),
        }


def _append(
    file: CocoFile,
    entry: Mapping[str, Any],
    placed: Iterable[PlacedLesion],
    lesions: Lesions,
    positions: NDArray[np.int64],
) -> None:
    """Add one image entry and its annotations; ``positions`` are the lesions' in the image's label."""
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


def _count_out_of_roi(lesions: Lesions, frames: ImageFrames) -> int:
    centres = lesions.boxes.reshape(-1, 2, 2).mean(axis=1)
    x0, y0, x1, y1 = frames.crop_box
    inside = (centres >= (x0, y0)).all(axis=1) & (centres <= (x1, y1)).all(axis=1)
    return int((~inside).sum())
