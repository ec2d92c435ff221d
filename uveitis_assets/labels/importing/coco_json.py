"""Reads COCO annotation files: boxes, polygons and run lengths in pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.labels.importing.foreign import (
    ForeignFileError,
    ForeignLabels,
    ForeignShape,
    ReaderOptions,
    corners_of_box,
    rotated,
)
from uveitis_assets.labels.importing.json_files import expect_list, finite, objects, parsed, points_of
from uveitis_assets.labels.masks.pixel_regions import decode_run_lengths

_ID = int | float | str


def read_coco(files: Iterable[tuple[str, bytes]], options: ReaderOptions) -> ForeignLabels:
    """Labels of COCO files; a segmentation goes before the box.

    Crowds are refused: they mark several lesions.
    """
    labels = ForeignLabels()
    for name, data in files:
        content = parsed(name, data, dict)
        categories = _categories(content, name)
        images = _add_images(labels, content, name)
        for annotation in objects(content.get("annotations"), f"{name}: annotations"):
            place = f"{name}: annotation {annotation.get('id')}"
            image_id = annotation.get("image_id")
            if not isinstance(image_id, _ID) or image_id not in images:
                # Any image of the file may be the one that lacks this lesion.
                raise ForeignFileError(
                    f"{place}: found image_id {image_id!r}, which images does not list; correct it, or remove the "
                    "annotation"
                )
            image = images[image_id]
            labels.add_shape(image, place, partial(_shape, annotation, image, categories, place))
    return labels


def _add_images(labels: ForeignLabels, content: Mapping[str, Any], name: str) -> dict[object, str]:
    """List a file's images; returns their names by id."""
    images: dict[object, str] = {}
    for image in objects(content.get("images"), f"{name}: images"):
        number, file_name = _id_of(image, f"{name}: images"), str(image.get("file_name") or "")
        place = f"{name}: image {number}"
        labels.add_image(file_name, place, image.get("width"), image.get("height"))
        if number in images:
            for of_id in (images[number], file_name):
                labels.refuse(of_id, place, f"found the id {number} at {images[number]} and at {file_name}")
        images[number] = file_name
    return images


def _categories(content: Mapping[str, Any], name: str) -> dict[object, str]:
    """Names of a file's categories by id."""
    categories: dict[object, str] = {}
    for category in objects(content.get("categories"), f"{name}: categories"):
        number, label_class = _id_of(category, f"{name}: categories"), str(category.get("name"))
        if categories.setdefault(number, label_class) != label_class:
            raise ForeignFileError(
                f"{name}: categories: found the id {number} for {categories[number]} and for {label_class}, expected "
                "one name for an id"
            )
    return categories


def _id_of(entry: Mapping[str, Any], what: str) -> int | float | str:
    number = entry.get("id")
    if not isinstance(number, _ID):
        raise ForeignFileError(f"{what}: found the id {str(number)[:40]}, expected a number")
    return number


def _shape(annotation: Mapping[str, Any], image: str, categories: Mapping[object, str], place: str) -> ForeignShape:
    if annotation["category_id"] not in categories:  # a TypeError where it is a list
        raise ValueError(f"found category_id {annotation['category_id']!r}, which categories does not list")
    label_class = categories[annotation["category_id"]]
    if annotation.get("iscrowd"):
        raise ValueError("found a crowd (iscrowd 1), expected one lesion")
    score = annotation.get("score")
    confidence = None if score is None else finite(score).item()
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, Mapping):
        pixels = partial(_decoded, segmentation["size"], segmentation["counts"])
        return ForeignShape(image, label_class, "outline", (), "pixel", place, pixels, confidence)
    if segmentation:
        parts = tuple(map(points_of, expect_list(segmentation, "segmentation")))
        return ForeignShape(image, label_class, "outline", parts, "pixel", place, confidence=confidence)
    box = finite(annotation["bbox"])
    if box.shape != (4,):
        raise ValueError(f"found the bbox {annotation['bbox']}, expected x, y, width, height")
    x, y, width, height = box.tolist()
    corners = corners_of_box(x, y, x + width, y + height)
    # CVAT writes turned boxes as upright ones and an angle.
    attributes = annotation.get("attributes")
    angle = attributes.get("rotation") if isinstance(attributes, Mapping) else None
    corners = rotated(corners, corners.mean(axis=0), finite(angle or 0.0).item())
    return ForeignShape(image, label_class, "box", (corners,), "pixel", place, confidence=confidence)


def _decoded(size: object, counts: object, expected: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels of run lengths; their size is compared before they take memory."""
    if size != [expected[1], expected[0]]:
        raise ValueError(f"found a mask of the size {size} (height, width), expected {[expected[1], expected[0]]}")
    return decode_run_lengths({"size": size, "counts": _decompressed(counts)})


def _decompressed(counts: object) -> list[int]:
    """Run lengths of COCO's compressed string.

    Six bits per character; from the fourth on, differences to the count before the last.
    """
    if not isinstance(counts, str):
        lengths = expect_list(counts, "counts")
        if not all(type(length) is int for length in lengths):
            raise ValueError(f"found the run lengths {str(lengths)[:60]}, expected whole numbers")
        return lengths
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
