"""Reads COCO annotation files: boxes, polygons and run lengths in pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.labels.importing.foreign import ForeignLabels, ForeignShape, ReaderOptions, corners_of_box
from uveitis_assets.labels.importing.json_files import expect_list, finite, objects, parsed
from uveitis_assets.labels.pixel_regions import decode_run_lengths


def read_coco(files: Sequence[tuple[str, bytes]], options: ReaderOptions) -> ForeignLabels:
    """Labels of COCO files; a segmentation goes before the box.

    Crowds are refused: they mark several lesions.
    """
    labels = ForeignLabels()
    for name, data in files:
        if not name.lower().endswith(".json"):
            continue
        content = parsed(name, data, dict)
        images = {image.get("id"): image for image in objects(content.get("images"), f"{name}: images")}
        categories = {
            category.get("id"): str(category.get("name"))
            for category in objects(content.get("categories"), f"{name}: categories")
        }
        for image in images.values():
            labels.add_image(str(image.get("file_name")), image.get("width"), image.get("height"))
        for annotation in objects(content.get("annotations"), f"{name}: annotations"):
            place = f"{name}: annotation {annotation.get('id')}"
            if annotation.get("image_id") not in images:
                labels.refuse("", place, f"found image_id {annotation.get('image_id')!r}, which images does not list")
                continue
            image_name = str(images[annotation.get("image_id")].get("file_name"))
            try:
                labels.shapes.append(_shape(annotation, image_name, categories, place))
            except (KeyError, TypeError, ValueError) as error:
                labels.refuse(image_name, place, f"found no {error}" if isinstance(error, KeyError) else str(error))
    return labels


def _shape(annotation: Mapping[str, Any], image: str, categories: Mapping[object, str], place: str) -> ForeignShape:
    if annotation["category_id"] not in categories:
        raise ValueError(f"found category_id {annotation['category_id']!r}, which categories does not list")
    label_class = categories[annotation["category_id"]]
    if annotation.get("iscrowd"):
        raise ValueError("found a crowd (iscrowd 1), expected one lesion")
    score = annotation.get("score")
    confidence = None if score is None else float(score)
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, Mapping):
        pixels = _pixels(segmentation)
        return ForeignShape(image, label_class, "outline", (), "pixel", place, pixels, confidence)
    if segmentation:
        parts = tuple(finite(ring).reshape(-1, 2) for ring in expect_list(segmentation, "segmentation"))
        return ForeignShape(image, label_class, "outline", parts, "pixel", place, confidence=confidence)
    x, y, width, height = finite(annotation["bbox"]).tolist()
    corners = corners_of_box(x, y, x + width, y + height)
    return ForeignShape(image, label_class, "box", (corners,), "pixel", place, confidence=confidence)


def _pixels(code: Mapping[str, Any]) -> NDArray[np.bool_]:
    counts = code["counts"]
    return decode_run_lengths({"size": code["size"], "counts": _decompressed(counts)})


def _decompressed(counts: object) -> list[int]:
    """Run lengths of COCO's compressed string.

    Six bits per character; from the fourth on, differences to the count before the last.
    """
    if not isinstance(counts, str):
        return [int(count) for count in expect_list(counts, "counts")]
    values: list[int] = []
    position = 0
    while position < len(counts):
        value = shift = 0
        more = True
        while more:
            if position >= len(counts):
                raise ValueError("found run lengths that end within a number")
            bits = ord(counts[position]) - 48
            value |= (bits & 0x1F) << shift
            more = bool(bits & 0x20)
            position += 1
            shift += 5
            if not more and bits & 0x10:
                value |= -1 << shift
        values.append(value + values[-2] if len(values) > 2 else value)
    return values
