"""The labelled images of a split, their frames, and their lesions read from label files in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets.labels.class_map import LabelSpace
from uveitis_assets.labels.coco_summary import BadLabel
from uveitis_assets.labels.configuration import LabelConfiguration
from uveitis_assets.labels.damaged_tiles import damaged_label
from uveitis_assets.labels.label_files import read_label_files
from uveitis_assets.labels.lesions import Lesions, join_lesions
from uveitis_assets.labels.masks.lesion_masks import parse_lesion_masks
from uveitis_assets.labels.oriented_boxes import parse_oriented_boxes
from uveitis_assets.landing.quarantine import QuarantineError
from uveitis_assets.landing.samples import Split
from uveitis_assets.stages.artefact_files import DamagedArtefactError, FileStamp
from uveitis_assets.stages.index import read_index_table
from uveitis_assets.stages.recorded_metadata import read_metadata
from uveitis_assets.stages.suspect_files import note_suspects
from uveitis_assets.storage.store import ArtefactStore, artefact_key

# Lesions of this many images per thread wait for the writer at most.
IMAGES_PER_WORKER = 32


@dataclass(frozen=True, slots=True)
class ImageLesions:
    """An image's lesions in raw px and its frames."""

    image_id: str
    frames: ImageFrames
    lesions: Lesions


def rows_of_split(manifest: pl.DataFrame, lane: str, fold: int, split: Split) -> list[dict[str, Any]]:
    """Manifest rows of the split's images, sorted by image id.

    Raises:
        ValueError: the manifest has fewer folds.
    """
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


def preprocessed_hashes(store: ArtefactStore, lane: str, rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
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


def read_image_lesions(
    store: ArtefactStore,
    raw_folder: Path,
    labels: LabelConfiguration,
    label_space: LabelSpace,
    row: Mapping[str, Any],
    *,
    lane: str,
    stamps: Mapping[str, FileStamp],
) -> ImageLesions | BadLabel | None:
    """Frames and lesions of one image; None when its metadata is gone although the index lists it.

    ``stamps`` are those of the metadata files, with which they are compared; a damaged one is noted for the next run
    of its stage.
    """
    image_id = row["image_id"]
    frames = _read_frames(store, lane, row, stamps)
    if not isinstance(frames, ImageFrames):
        return frames
    try:
        files = read_label_files(store, lane, raw_folder, row)
        if labels.format == "mask":
            lesions = parse_lesion_masks(
                files,
                label_space,
                frames.raw_size,
                labels.min_component_area,
                crop_box=frames.crop_box,
                max_marked_share=labels.max_marked_share,
            )
        else:
            parse = partial(
                parse_oriented_boxes,
                label_space=label_space,
                raw_size=frames.raw_size,
                edge_tolerance=labels.edge_tolerance,
            )
            lesions = join_lesions([parse(data, name) for name, data in files])
    except QuarantineError as error:
        return BadLabel(image_id, error.reason, error.detail)
    return ImageLesions(image_id, frames, lesions)


def _read_frames(
    store: ArtefactStore, lane: str, row: Mapping[str, Any], stamps: Mapping[str, FileStamp]
) -> ImageFrames | BadLabel | None:
    key = artefact_key(row["image_id"])
    files = {"normalized_crops": store.crop_metadata(key), "tiles": store.tiles_metadata(key)}
    contents: list[dict[str, Any]] = []
    damaged: list[DamagedArtefactError] = []
    is_gone = False
    for stage, path in files.items():
        try:
            contents.append(read_metadata(store, path, stamps))
        except FileNotFoundError:
            is_gone = True
        except DamagedArtefactError as error:
            note_suspects(store.stage_index(lane, stage, row["batch"]), [store.name_of(path)])
            damaged.append(error)
    if damaged:
        return damaged_label(store, lane, row["image_id"], damaged)
    return None if is_gone else ImageFrames.from_metadata(*contents)


def map_in_order(
    function: Callable[[Mapping[str, Any]], ImageLesions | BadLabel | None],
    rows: list[dict[str, Any]],
    workers: int,
) -> Iterator[ImageLesions | BadLabel | None]:
    """Results in the order of the rows.

    Threads stay at most a few images per worker ahead of the consumer.
    """
    if workers <= 1:
        yield from map(function, rows)
        return
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(rows), IMAGES_PER_WORKER * workers):
            yield from pool.map(function, rows[start : start + IMAGES_PER_WORKER * workers])
