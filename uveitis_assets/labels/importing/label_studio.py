"""Reads Label Studio's JSON export: rectangles and polygons in percent of the image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from uveitis_assets.labels.importing.foreign import (
    ForeignLabels,
    ForeignShape,
    ReaderOptions,
    corners_of_box,
    rotated,
)
from uveitis_assets.labels.importing.json_files import expect_list, finite, objects, parsed

# Uploaded files get eight hexadecimal digits before their name.
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")


def read_label_studio(files: Sequence[tuple[str, bytes]], options: ReaderOptions) -> ForeignLabels:
    """Labels of finished tasks.

    Tasks that nobody finished are unlabelled, those of several annotators are refused.
    """
    labels = ForeignLabels()
    for name, data in files:
        if not name.lower().endswith(".json"):
            continue
        for task in objects(parsed(name, data, list), name):
            place = f"{name}: task {task.get('id')}"
            found = list(objects(task.get("annotations") or [], f"{place}: annotations"))
            finished = [annotation for annotation in found if not annotation.get("was_cancelled")]
            image = _image_name(task.get("data"))
            if not finished:
                continue
            labels.add_image(image)
            if len(finished) > 1:
                labels.refuse(image, place, f"found {len(finished)} annotations, expected one; choose one of them")
                continue
            results = list(objects(finished[0].get("result") or [], f"{place}: result"))
            for number, result in enumerate(results, start=1):
                if result.get("type") in {"choices", "textarea", "rating"}:  # of the image, not of a lesion
                    continue
                row = f"{place}, result {number}"
                try:
                    labels.shapes.append(_shape(result, image, row))
                    labels.add_image(image, result["original_width"], result["original_height"])
                except (KeyError, ValueError) as error:
                    labels.refuse(image, row, f"found no {error}" if isinstance(error, KeyError) else str(error))
    return labels


def _shape(result: Mapping[str, Any], image: str, place: str) -> ForeignShape:
    kind, value = result.get("type"), result["value"]
    if kind not in {"rectanglelabels", "polygonlabels"}:
        raise ValueError(f"found {kind}, expected rectanglelabels or polygonlabels (brushes: export as COCO)")
    names = expect_list(value[kind], kind)
    if len(names) != 1:
        raise ValueError(f"found {len(names)} labels, expected one")
    size = np.array([float(result["original_width"]), float(result["original_height"])])
    if kind == "polygonlabels":
        points = finite(value["points"]).reshape(-1, 2) / 100 * size
        return ForeignShape(image, str(names[0]), "outline", (points,), "pixel", place)
    x, y, width, height = finite([value[key] for key in ("x", "y", "width", "height")]).tolist()
    corners = corners_of_box(x, y, x + width, y + height) / 100 * size
    # Rectangles turn around their upper left corner.
    corners = rotated(corners, corners[0], float(value.get("rotation") or 0.0))
    return ForeignShape(image, str(names[0]), "box", (corners,), "pixel", place)


def _image_name(data: object) -> str:
    """Name of a task's image: the last part of its address, without the prefix of uploads."""
    address = str(data.get("image", "")) if isinstance(data, Mapping) else ""
    parts = urlsplit(address)
    local = parse_qs(parts.query).get("d")
    path = PurePosixPath(local[0] if local else unquote(parts.path))
    return _UPLOAD_PREFIX.sub("", path.name, count=1) if "upload" in path.parts else path.name
