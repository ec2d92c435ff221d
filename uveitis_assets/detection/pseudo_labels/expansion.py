"""Pseudo-labels: confident detections added to COCO files of global images and of tiles.

Rules. A detection counts from ``min_score`` on, when its category is one of the file's. Duplicates go: among the
detections of an image the better one stays, and one that overlaps a label of its category in the global image or in
any tile stays out (``duplicate_iou``). What is left is placed by the rule of ``labels.placement``: every tile that
meets the lesion gets it, clipped, in the tile's pixels. Existing annotations are copied as they are; new ones have
``"pseudo": true`` and ``score``.

Which images. Images of the base file are labelled by a person: by default detections complete them
(``labelled_images = "complete"``); ``"leave"`` takes the person's labels as complete. Images of the unlabelled file
enter only when they get a label, for an image without any would be shown as healthy; then all of their tiles are
listed, as everywhere. No image on which anything is evaluated, val or test in any of the split files given, is
touched or added: its detections come from a network that is evaluated on it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from uveitis_assets.detection.configuration import PseudoLabelConfiguration
from uveitis_assets.detection.inference.batched_nms import batched_nms
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.inference.prediction_file import read_prediction
from uveitis_assets.imaging.geometry import AxisAlignedTransform, ImageFrames
from uveitis_assets.labels.lesions import Lesions
from uveitis_assets.labels.placement import PlacedLesion, place_in_image, place_in_tiles
from uveitis_assets.storage.files import read_json
from uveitis_assets.storage.store import ArtefactStore, artefact_key

Coco = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ExpansionCounts:
    """What happened to the images and detections of one expansion; counted per image, not per tile.

    ``n_pseudo_lesions`` became labels; ``n_duplicates`` overlap a label or a better detection; ``n_other_classes`` are
    of categories that the file does not have; ``n_held_out_images`` had a prediction and are evaluated on.
    """

    n_pseudo_lesions: int
    n_duplicates: int
    n_other_classes: int
    n_held_out_images: int
    n_added_images: int


def held_out_images(split_files: Sequence[Path]) -> frozenset[str]:
    """Image ids that are val or test in any of the files ``splits/<name>_<fold>.json``.

    Raises:
        ValueError: no files are given, or one of them has no val or test list.
    """
    if not split_files:
        raise ValueError(
            "pseudo-labels: expected the split files of everything that is evaluated, found none; without them a "
            "network would be trained on the images it is evaluated on"
        )
    held_out: set[str] = set()
    for path in split_files:
        content = read_json(path)
        for split in ("val", "test"):
            if not isinstance(content.get(split), list):
                raise ValueError(f"{path}: expected a list of image ids under {split!r}, found none")
            held_out |= set(content[split])
    return frozenset(held_out)


def read_confident_predictions(
    folder: Path, image_ids: Collection[str], *, made_by: str | None = None
) -> dict[str, Detections]:
    """Detections in global px of every image that has a file ``<key>.json`` in the folder.

    Args:
        folder: with prediction files.
        image_ids: images that are looked for.
        made_by: digest of the weights that have to have made them, alone; None takes any.

    Raises:
        ValueError: a file was made by other weights, or is none.
    """
    predictions = {}
    for image_id in sorted(image_ids):
        path = folder / f"{artefact_key(image_id)}.json"
        if not path.exists():
            continue
        prediction = read_prediction(path)
        if made_by is not None and prediction.checkpoints != (made_by,):
            raise ValueError(
                f"{path}: expected detections by the weights {made_by} alone, found those by "
                f"{', '.join(prediction.checkpoints) or 'unknown weights'}, which may have learned the images that "
                "this fold is evaluated on; materialize the predictions of all batches again"
            )
        predictions[image_id] = prediction.detections
    return predictions


def frames_reader(store: ArtefactStore) -> Callable[[str], ImageFrames]:
    """A function that reads an image's frames from its metadata files."""

    def read(image_id: str) -> ImageFrames:
        key = artefact_key(image_id)
        return ImageFrames.from_metadata(read_json(store.crop_metadata(key)), read_json(store.tiles_metadata(key)))

    return read


def expand_coco(
    bases: Sequence[Coco],
    unlabelled: Sequence[Coco],
    predictions: Mapping[str, Detections],
    *,
    frames_of: Callable[[str], ImageFrames],
    held_out: Collection[str],
    configuration: PseudoLabelConfiguration,
) -> tuple[list[dict[str, Any]], ExpansionCounts]:
    """Add pseudo-labels to COCO files of the same images.

    The global one, the one of tiles, or both together.

    Args:
        bases: the files' contents; entries with a ``tile_id`` are tiles, others global images.
        unlabelled: files with the images that nobody has labelled, as many as ``bases`` and in the same frames, or
            none.
        predictions: detections in global px by image id.
        frames_of: returns an image's frames; asked only for images with detections that count.
        held_out: ids of images that anything is evaluated on.
        configuration: which detections count.

    Returns:
        The expanded files, in the order of ``bases``, and what was counted.

    Raises:
        ValueError: categories differ between the files; a tile is not one of its image's frames, or has another size.
    """
    if unlabelled and len(unlabelled) != len(bases):
        raise ValueError(f"expected {len(bases)} files of unlabelled images or none, found {len(unlabelled)}")
    growing = [_GrowingCoco(base) for base in bases]
    extra = [_GrowingCoco(file) for file in unlabelled]
    known = {category["id"] for category in bases[0]["categories"]}
    for file in (*growing, *extra):
        if {category["id"] for category in file.content["categories"]} != known:
            raise ValueError("expected the same category ids in all COCO files, found different ones")
    in_base = {image_id for file in growing for image_id in file.entries}
    added = sorted({image_id for file in extra for image_id in file.entries} - in_base)
    n_pseudo = n_duplicates = n_other = n_held_out = n_added = 0
    for image_id in [*sorted(in_base), *added]:
        found = predictions.get(image_id)
        if found is None or (image_id in in_base and configuration.labelled_images == "leave"):
            continue
        if image_id in held_out:
            n_held_out += 1
            continue
        confident = found.select(found.scores >= np.float32(configuration.min_score))
        candidates = confident.select(np.isin(confident.labels, sorted(known)))
        n_other += len(confident) - len(candidates)
        if not len(candidates):
            continue
        sources = growing if image_id in in_base else extra
        frames = frames_of(image_id)
        placed = [_placed(file, image_id, candidates, frames, configuration) for file in sources]
        accepted = _without_duplicates(candidates, sources, placed, configuration.duplicate_iou)
        n_duplicates += len(candidates) - len(accepted)
        n_pseudo += len(accepted)
        if not accepted:
            continue
        n_added += image_id not in in_base
        for file, source, places in zip(growing, sources, placed, strict=True):
            for entry, lesions in places:
                number = entry["id"] if file is source else file.adopt(source, entry)
                for lesion in lesions:
                    if lesion.lesion in accepted:
                        file.append(number, lesion, candidates)
    counts = ExpansionCounts(n_pseudo, n_duplicates, n_other, n_held_out, n_added)
    return [file.content for file in growing], counts


class _GrowingCoco:
    """One COCO file's content while annotations are added, with its images by image id."""

    def __init__(self, content: Coco) -> None:
        self.content: dict[str, Any] = {
            **content,
            "images": list(content["images"]),
            "annotations": list(content["annotations"]),
        }
        self.entries: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for entry in content["images"]:
            self.entries[entry["image_id"]].append(entry)
        self.labels: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            self.labels[annotation["image_id"]].append(annotation)
        self._last_image = max((entry["id"] for entry in content["images"]), default=0)
        self._last_annotation = max((annotation["id"] for annotation in content["annotations"]), default=0)

    def adopt(self, source: _GrowingCoco, entry: Mapping[str, Any]) -> int:
        """Take over an image of another file with its annotations and return its number here."""
        self._last_image += 1
        self.content["images"].append({**entry, "id": self._last_image})
        for annotation in source.labels.get(entry["id"], ()):
            self._last_annotation += 1
            self.content["annotations"].append(
                {**annotation, "id": self._last_annotation, "image_id": self._last_image}
            )
        return self._last_image

    def append(self, image_number: int, lesion: PlacedLesion, detections: Detections) -> None:
        """Add one pseudo-label."""
        self._last_annotation += 1
        self.content["annotations"].append(
            {
                "id": self._last_annotation,
                "image_id": image_number,
                "category_id": int(detections.labels[lesion.lesion]),
                **lesion.as_coco(),
                "pseudo": True,
                "score": round(float(detections.scores[lesion.lesion]), 4),
            }
        )


Places = list[tuple[Mapping[str, Any], list[PlacedLesion]]]


def _placed(
    file: _GrowingCoco,
    image_id: str,
    detections: Detections,
    frames: ImageFrames,
    configuration: PseudoLabelConfiguration,
) -> Places:
    """The detections as each entry of the image shows them."""
    lesions = _as_lesions(detections)
    entries = file.entries.get(image_id, [])
    by_tile: dict[str, list[PlacedLesion]] = {}
    if any("tile_id" in entry for entry in entries):
        native = frames.frame == "native"
        to_tiling = frames.crop_to_global.inverse() if native else AxisAlignedTransform()
        in_tiles = place_in_tiles(
            lesions,
            to_tiling,
            frames.tiling_size,
            frames.tiles,
            min_box_ratio=configuration.min_tile_box_ratio,
            large_cover=configuration.large_lesion_tile_cover,
        )
        by_tile = {tile.tile_id: placed for tile, placed in zip(frames.tiles, in_tiles, strict=True)}
    sizes = {tile.tile_id: (tile.width, tile.height) for tile in frames.tiles}
    places: Places = []
    for entry in entries:
        tile_id = entry.get("tile_id")
        expected = (frames.global_size, frames.global_size) if tile_id is None else sizes.get(tile_id)
        found = (entry["width"], entry["height"])
        if expected != found:
            raise ValueError(
                f"{image_id} {tile_id or 'global image'}: expected size {expected}, found {found} in the COCO file; "
                "its labels are of other tiles: write them again"
            )
        shown = place_in_image(lesions, AxisAlignedTransform(), found) if tile_id is None else by_tile[tile_id]
        places.append((entry, shown))
    return places


def _as_lesions(detections: Detections) -> Lesions:
    """Detections as lesions in global px."""
    boxes = detections.boxes.astype(np.float64)
    if detections.corners is None:
        return Lesions(detections.labels, boxes, shapely.box(*boxes.T))
    corners = detections.corners.astype(np.float64)
    # The hull is valid whatever the order of the corners.
    return Lesions(detections.labels, boxes, shapely.convex_hull(shapely.polygons(corners)), corners)


def _without_duplicates(
    detections: Detections, files: Sequence[_GrowingCoco], placed: Sequence[Places], iou: float
) -> set[int]:
    """Rows of the detections that repeat neither a label, in any frame, nor a better detection."""
    repeats: set[int] = set()
    for file, places in zip(files, placed, strict=True):
        for entry, lesions in places:
            labels = file.labels.get(entry["id"], [])
            for lesion in lesions:
                same = [label for label in labels if label["category_id"] == detections.labels[lesion.lesion]]
                if same and _overlaps(lesion.box, same).max() > iou:
                    repeats.add(lesion.lesion)
    order = np.lexsort((*detections.boxes.T[::-1], -detections.scores))
    left = order[~np.isin(order, sorted(repeats))]
    kept = left[batched_nms(detections.boxes[left].astype(np.float64), detections.labels[left], iou)]
    seen = {lesion.lesion for places in placed for _, lesions in places for lesion in lesions}
    return set(kept.tolist()) & seen


def _overlaps(box: Sequence[float], labels: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """IoU of one box with the boxes of annotations."""
    x, y, width, height = np.array([label["bbox"] for label in labels], np.float64).T
    shared_width = np.maximum(np.minimum(box[2], x + width) - np.maximum(box[0], x), 0)
    shared_height = np.maximum(np.minimum(box[3], y + height) - np.maximum(box[1], y), 0)
    shared = shared_width * shared_height
    union = (box[2] - box[0]) * (box[3] - box[1]) + width * height - shared
    overlaps: NDArray[np.float64] = shared / union
    return overlaps
