"""Reads LabelMe files: one JSON per image, polygons, rectangles and circles in pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uveitis_assets.labels.importing.foreign import ForeignLabels, ForeignShape, ReaderOptions, corners_of_box
from uveitis_assets.labels.importing.json_files import finite, objects, parsed

CIRCLE_POINTS = 64


def read_labelme(files: Sequence[tuple[str, bytes]], options: ReaderOptions) -> ForeignLabels:
    """Labels of LabelMe files; a circle becomes a polygon of 64 points, other shapes are refused."""
    labels = ForeignLabels()
    for name, data in files:
        if not name.lower().endswith(".json"):
            continue
        content = parsed(name, data, dict)
        # LabelMe writes paths of the computer that it ran on.
        image = str(content.get("imagePath") or "").replace("\\", "/").lstrip("./") or name[:-5]
        labels.add_image(image, content.get("imageWidth"), content.get("imageHeight"))
        for number, shape in enumerate(objects(content.get("shapes"), f"{name}: shapes"), start=1):
            place = f"{name}: shape {number}"
            try:
                labels.shapes.append(_shape(shape, image, place))
            except (KeyError, ValueError) as error:
                labels.refuse(image, place, f"found no {error}" if isinstance(error, KeyError) else str(error))
    return labels


def _shape(shape: Mapping[str, Any], image: str, place: str) -> ForeignShape:
    points = finite(shape["points"]).reshape(-1, 2)
    kind = shape.get("shape_type") or "polygon"
    label_class = str(shape["label"])
    if kind == "rectangle" and len(points) in {2, 4}:
        corners = corners_of_box(*points.min(axis=0), *points.max(axis=0))
        return ForeignShape(image, label_class, "box", (corners,), "pixel", place)
    if kind == "rotation" and len(points) == 4:
        return ForeignShape(image, label_class, "box", (points,), "pixel", place)
    if kind == "circle" and len(points) == 2:
        angles = np.linspace(0, 2 * np.pi, CIRCLE_POINTS, endpoint=False)
        radius = np.linalg.norm(points[1] - points[0])
        points = points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    elif kind != "polygon" or len(points) < 3:
        raise ValueError(f"found the shape {kind} of {len(points)} points, expected polygon, rectangle or circle")
    return ForeignShape(image, label_class, "outline", (points,), "pixel", place)
