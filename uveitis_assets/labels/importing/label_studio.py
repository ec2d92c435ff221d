"""Reads Label Studio's JSON export: rectangles and polygons in percent of the image."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from uveitis_assets.labels.importing.foreign import (
    ForeignLabels,
    ForeignShape,
    ReaderOptions,
    corners_of_box,
    rotated,
)
from uveitis_assets.labels.importing.json_files import expect_list, finite, objects, parsed, points_of
from uveitis_assets.landing.image_probe import is_image_name

# Uploaded files get eight hexadecimal digits before their name.
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")

# Results that say something about the image or a region, not where a lesion is.
_NO_REGION = frozenset({"choices", "textarea", "rating", "taxonomy", "number", "datetime", "relation"})


def read_label_studio(files: Iterable[tuple[str, bytes]], options: ReaderOptions) -> ForeignLabels:
    """Labels of finished tasks.

    Tasks that nobody finished are unlabelled, those of several annotators are refused.
    """
    labels = ForeignLabels()
    for name, data in files:
        for task in objects(parsed(name, data, list), name):
            place = f"{name}: task {task.get('id')}"
            found = list(objects(task.get("annotations") or [], f"{place}: annotations"))
            finished = [annotation for annotation in found if not annotation.get("was_cancelled")]
            image = _image_name(task.get("data"))
            if not finished:
                continue
            if len(finished) > 1:
                labels.add_image(image, place)
                labels.refuse(image, place, f"found {len(finished)} annotations, expected one; choose one of them")
                continue
            # Numbered before those of the image, which are no lesions, are left aside.
            results = [
                (number, result)
                for number, result in enumerate(objects(finished[0].get("result") or [], f"{place}: result"), start=1)
                if str(result.get("type")) not in _NO_REGION
            ]
            if (several := _several_images(task.get("data"), results)) is not None:
                labels.add_image(image, place)
                labels.refuse(image, place, several)
                continue
            sizes = [(result.get("original_width"), result.get("original_height")) for _, result in results]
            labels.add_image(image, place, *(sizes[0] if sizes else ()))
            for (number, result), size in zip(results, sizes, strict=True):
                row = f"{place}, result {number}"
                if size == sizes[0]:
                    labels.add_shape(image, row, partial(_shape, result, image, row))
                else:
                    labels.refuse(image, row, f"found an image of {size} px, expected {sizes[0]}, the first result's")
    return labels


def _several_images(data: object, results: Sequence[tuple[int, Mapping[str, Any]]]) -> str | None:
    """Why a task's results may be of several images, or None."""
    values = data.values() if isinstance(data, Mapping) else ()
    pictures = [value for value in values if isinstance(value, str) and is_image_name(_name_of(value))]
    targets = sorted({str(result.get("to_name")) for _, result in results})
    if len(pictures) > 1 or len(targets) > 1 or any(result.get("item_index") for _, result in results):
        return (
            f"found a task of {max(len(pictures), len(targets), 2)} images, expected one; which image a result is of "
            "is not read: export tasks of one image"
        )
    return None


def _shape(result: Mapping[str, Any], image: str, place: str) -> ForeignShape:
    kind, value = str(result.get("type")), result["value"]
    if kind not in {"rectanglelabels", "polygonlabels"}:
        raise ValueError(f"found {kind}, expected rectanglelabels or polygonlabels (brushes: export as COCO)")
    names = expect_list(value[kind], kind)
    if len(names) != 1:
        raise ValueError(f"found {len(names)} labels, expected one")
    size = finite([result["original_width"], result["original_height"]])
    if kind == "polygonlabels":
        points = points_of(value["points"]) / 100 * size
        return ForeignShape(image, str(names[0]), "outline", (points,), "pixel", place)
    x, y, width, height = finite([value[key] for key in ("x", "y", "width", "height")]).tolist()
    corners = corners_of_box(x, y, x + width, y + height) / 100 * size
    # Rectangles turn around their upper left corner.
    corners = rotated(corners, corners[0], finite(value.get("rotation") or 0.0).item())
    return ForeignShape(image, str(names[0]), "box", (corners,), "pixel", place)


def _image_name(data: object) -> str:
    """Name of a task's image, or nothing."""
    return _name_of(str(data.get("image", ""))) if isinstance(data, Mapping) else ""


def _name_of(address: str) -> str:
    """Last part of an image's address, without the prefix of uploads, or nothing."""
    try:
        # A file's name may hold #.
        parts = urlsplit(address, allow_fragments=False)
    except ValueError:  # brackets that hold no network address
        return address
    if parts.scheme == "data":  # the pixels themselves
        return ""
    local = parse_qs(parts.query).get("d")
    path = PurePosixPath(local[0] if local else unquote(parts.path))
    return _UPLOAD_PREFIX.sub("", path.name, count=1) if "upload" in path.parts else path.name
