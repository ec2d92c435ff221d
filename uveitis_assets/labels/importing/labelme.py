"""Reads LabelMe files: one JSON per image; polygons, rectangles, circles and masks in pixels."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from uveitis_assets.labels.importing.foreign import ForeignLabels, ForeignShape, ReaderOptions, corners_of_box
from uveitis_assets.labels.importing.json_files import objects, parsed, points_of

CIRCLE_POINTS = 64


def read_labelme(files: Iterable[tuple[str, bytes]], options: ReaderOptions) -> ForeignLabels:
    """Labels of LabelMe files; a circle becomes a polygon of 64 points, other shapes are refused."""
    labels = ForeignLabels()
    for name, data in files:
        content = parsed(name, data, dict)
        # LabelMe writes paths of the computer that it ran on.
        image = str(content.get("imagePath") or "").replace("\\", "/") or str(PurePosixPath(name).with_suffix(""))
        labels.add_image(image, name, content.get("imageWidth"), content.get("imageHeight"))
        for number, shape in enumerate(objects(content.get("shapes"), f"{name}: shapes"), start=1):
            place = f"{name}: shape {number}"
            labels.add_shape(image, place, partial(_shape, shape, image, place))
    return labels


def _shape(shape: Mapping[str, Any], image: str, place: str) -> ForeignShape:
    points = points_of(shape["points"])
    kind = shape.get("shape_type") or "polygon"
    label_class = str(shape["label"])
    if kind == "rectangle" and len(points) == 2:
        corners = corners_of_box(*points.min(axis=0), *points.max(axis=0))
        return ForeignShape(image, label_class, "box", (corners,), "pixel", place)
    if kind in {"rectangle", "rotation"} and len(points) == 4:
        return ForeignShape(image, label_class, "box", (points,), "pixel", place)
    if kind == "mask" and len(points) == 2:
        pixels = partial(_decoded, str(shape["mask"]), points)
        return ForeignShape(image, label_class, "outline", (), "pixel", place, pixels)
    if kind == "circle" and len(points) == 2:
        angles = np.linspace(0, 2 * np.pi, CIRCLE_POINTS, endpoint=False)
        radius = np.linalg.norm(points[1] - points[0])
        points = points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    elif kind != "polygon" or len(points) < 3:
        raise ValueError(f"found the shape {kind} of {len(points)} points, expected polygon, rectangle, circle or mask")
    return ForeignShape(image, label_class, "outline", (points,), "pixel", place)


def _decoded(code: str, points: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels of an image of ``size``: a picture in base64 from the first point's pixel to the second's."""
    # Python's whole numbers, which have no largest.
    (left, top), (right, bottom) = [tuple(map(round, point)) for point in points.tolist()]
    if not (0 <= left <= right < size[0] and 0 <= top <= bottom < size[1]):
        raise ValueError("found a mask that leaves its image")
    expected = (right - left + 1, bottom - top + 1)
    try:
        with Image.open(io.BytesIO(base64.b64decode(code))) as picture:
            if picture.size != expected:  # before any pixel is decoded
                raise ValueError(f"found a mask of {picture.size} px, expected {expected}, as its two points say")
            values = np.asarray(picture)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"found {error}, expected a mask that can be decoded") from error
    if values.ndim != 2:
        raise ValueError("found a mask of several channels, expected one")
    pixels = np.zeros(size[::-1], np.bool_)
    pixels[top : bottom + 1, left : right + 1] = values != 0
    return pixels
