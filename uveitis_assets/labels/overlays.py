"""Labels drawn on their images: overlays on global images, and a contact sheet of tiles.

Both read a COCO file and the images it names. Images that are not persisted are left out and counted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.imaging.drawing import (
    SHEET_TILE_PX,
    Rectangle,
    draw_box,
    draw_name,
    draw_polygon,
    name_rectangle,
    rectangles_overlap,
    reduced_to_sheet_tile,
    sheet_of,
)
from uveitis_assets.imaging.preview_jpeg import MAX_JPEG_BYTES, encode_within
from uveitis_assets.labels.palette import category_color
from uveitis_assets.labels.segmentation import rings_of_segmentation
from uveitis_assets.landing.samples import Split
from uveitis_assets.storage.files import read_json, write_bytes
from uveitis_assets.storage.store import ArtefactStore, artefact_key

NAMES_PER_CATEGORY = 5


@dataclass(frozen=True, slots=True)
class OverlaySummary:
    """Overlays written, images whose file is missing, and stale overlays removed."""

    n_overlays: int
    n_images_missing: int
    n_removed: int


def write_label_overlays(store: ArtefactStore, lane: str, fold: int, split: Split, max_images: int) -> OverlaySummary:
    """Write an overlay of labels for each image of the split, those with lesions first.

    The files are ``labels_debug/<lane>_<split>/<key>_overlay.png``.

    Boxes are thin, outlines and names in the category's colour. Overlays of images that are no longer among the
    first ``max_images`` are removed.

    Raises:
        FileNotFoundError: the split's COCO file has not been written.
    """
    coco = read_json(store.coco_file(lane, split, fold, tiles=False))
    by_image = _annotations_of(coco)
    chosen = sorted(coco["images"], key=lambda image: (image["id"] not in by_image, image["id"]))[:max_images]
    folder = store.label_overlay_folder(lane, split, fold)
    written: set[str] = set()
    missing = 0
    for image in chosen:
        pixels = _read_rgb(store, image["file_name"])
        if pixels is None:
            missing += 1
            continue
        draw_labels(pixels, by_image.get(image["id"], ()), _names(coco))
        path = folder / f"{artefact_key(image['image_id'])}_overlay.png"
        encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1]
        write_bytes(path, encoded.tobytes())
        written.add(path.name)
    stale = [path for path in sorted(folder.glob("*_overlay.png")) if path.name not in written]
    for path in stale:
        path.unlink(missing_ok=True)
    return OverlaySummary(len(written), missing, len(stale))


def label_contact_sheet(
    store: ArtefactStore,
    lane: str,
    fold: int,
    split: Split,
    *,
    n_tiles: int = 12,
    max_bytes: int = MAX_JPEG_BYTES,
) -> bytes:
    """JPEG of the tiles with the most lesions, every image's richest before any image comes twice.

    Args:
        store: holds the COCO file and the tiles.
        lane: dataset lane.
        fold: fold of the COCO file.
        split: train, val or test.
        n_tiles: tiles shown at most.
        max_bytes: limit of the result; the JPEG's quality, then its size, go down until it holds.

    Raises:
        FileNotFoundError: the split's COCO file has not been written.
    """
    coco = read_json(store.coco_file(lane, split, fold, tiles=True))
    by_image = _annotations_of(coco)
    pictures: list[NDArray[np.uint8]] = []
    for image in _most_lesions_first(coco["images"], by_image):
        if len(pictures) == n_tiles:
            break
        pixels = _read_rgb(store, image["file_name"])
        if pixels is None:
            continue
        pictures.append(_sheet_tile(pixels, by_image.get(image["id"], ()), _names(coco)))
    return encode_within(sheet_of(pictures, f"{lane} {split} fold {fold}: no tile images"), max_bytes)


def draw_labels(
    image: NDArray[np.uint8],
    annotations: Iterable[Mapping[str, Any]],
    names: Mapping[int, str],
    *,
    enlarge: float = 1.0,
) -> None:
    """Draw COCO annotations into an RGB image, in place: outlines, boxes, then names above everything.

    The largest lesion of each category is named, and a few more where names do not cover each other; the others are
    told apart by colour. ``enlarge`` makes lines and letters larger on images that are shown reduced.
    """
    annotations = list(annotations)
    for annotation in annotations:
        color = category_color(annotation["category_id"])
        x, y, width, height = annotation["bbox"]
        for ring in rings_of_segmentation(annotation["segmentation"]):
            draw_polygon(image, ring, color, thickness=round(enlarge))
        draw_box(image, (x, y, x + width, y + height), color, thickness=round(enlarge))
    height_px = round(11 * enlarge)
    taken: list[Rectangle] = []
    named: Counter[int] = Counter()
    for annotation in _by_importance(annotations):
        x, y, width, height = annotation["bbox"]
        box = (x, y, x + width, y + height)
        name = names.get(annotation["category_id"], f"category {annotation['category_id']}")
        place = name_rectangle(image, name, box, height_px=height_px)
        n_named = named[annotation["category_id"]]
        free = n_named < NAMES_PER_CATEGORY and not any(rectangles_overlap(place, other) for other in taken)
        if n_named == 0 or free:
            draw_name(image, name, box, category_color(annotation["category_id"]), height_px=height_px)
            taken.append(place)
            named[annotation["category_id"]] += 1


def _by_importance(annotations: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The largest of each category, then the others, large ones first."""
    by_area = sorted(annotations, key=lambda annotation: (-annotation["area"], annotation["id"]))
    largest = {annotation["category_id"]: annotation["id"] for annotation in reversed(by_area)}
    return sorted(by_area, key=lambda annotation: annotation["id"] != largest[annotation["category_id"]])


def _annotations_of(coco: Mapping[str, Any]) -> dict[int, list[Mapping[str, Any]]]:
    by_image: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in coco["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    return dict(by_image)


def _names(coco: Mapping[str, Any]) -> dict[int, str]:
    return {category["id"]: category["name"] for category in coco["categories"]}


def _read_rgb(store: ArtefactStore, file_name: str) -> NDArray[np.uint8] | None:
    path = store.root / file_name
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    return None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def _most_lesions_first(
    images: Iterable[Mapping[str, Any]], by_image: Mapping[int, list[Mapping[str, Any]]]
) -> list[Mapping[str, Any]]:
    """Tiles with lesions in rounds, every source image's richest before any second; then empty tiles."""
    ranked = sorted(images, key=lambda image: (-len(by_image.get(image["id"], ())), image["id"]))
    seen: dict[str, int] = defaultdict(int)
    order: list[tuple[bool, int, int]] = []
    for position, image in enumerate(ranked):
        order.append((image["id"] not in by_image, seen[image["image_id"]], position))
        seen[image["image_id"]] += 1
    return [ranked[position] for _, _, position in sorted(order)]


def _sheet_tile(
    pixels: NDArray[np.uint8], annotations: Iterable[Mapping[str, Any]], names: Mapping[int, str]
) -> NDArray[np.uint8]:
    """A tile with its labels on a black square; names are sized to stay legible after the reduction."""
    scale = SHEET_TILE_PX / max(pixels.shape[:2])
    draw_labels(pixels, annotations, names, enlarge=1.0 / min(scale, 1.0))
    return reduced_to_sheet_tile(pixels)
