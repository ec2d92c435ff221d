"""Turns shapes of foreign files into a lane's label files: lines of oriented boxes, or masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from uveitis_assets.labels.class_map import LabelSpace
from uveitis_assets.labels.importing.foreign import ForeignShape, corners_of_box
from uveitis_assets.labels.oriented_boxes import parse_oriented_boxes
from uveitis_assets.landing.quarantine import QuarantineError

# Shares with eight decimals place a corner within 0.0001 px.
DECIMALS = 8
ROUNDING_PX = 1e-6


def oriented_line(
    shape: ForeignShape, label_class: str, size: tuple[int, int], label_space: LabelSpace, tolerance: float
) -> str:
    """Line of a label file: class and four corners as shares of the image.

    A box keeps its corners; an outline becomes the smallest rectangle around it, or the smallest upright one where that
    would leave the image.

    Raises:
        ValueError: a point further outside than the tolerance, or a box without area.
    """
    if shape.pixels is not None:
        corners = _around(_hull_corners(_decoded(shape.pixels, size)), size)
    else:
        points = [_in_pixels(part, shape, size, tolerance) for part in shape.parts]
        is_quad = shape.kind == "box" and len(points) == 1
        corners = points[0] if is_quad else _around(np.concatenate(points), size)
    shares = corners / np.asarray(size, np.float64)
    line = " ".join([label_class, *(f"{share:.{DECIMALS}f}" for share in shares.ravel())])
    try:
        parse_oriented_boxes(line.encode(), "", label_space, size, edge_tolerance=tolerance)
    except QuarantineError as error:
        raise ValueError(error.detail.removeprefix(":1: ")) from error
    return line


def mask_png(mask: NDArray[np.bool_]) -> bytes:
    """PNG of a mask (height, width): 255 on 0."""
    return bytes(cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].tobytes())


def pixels_of(shape: ForeignShape, size: tuple[int, int], tolerance: float) -> NDArray[np.bool_]:
    """Pixels of an outline, bool (height, width).

    Raises:
        ValueError: a box, a point further outside than the tolerance, or an outline that holds no pixel's centre.
    """
    if shape.kind == "box":
        raise ValueError("found a box, expected an outline: a mask would mark the whole box as lesion")
    if shape.pixels is not None:
        return _decoded(shape.pixels, size)
    mask = np.zeros(size[::-1], np.bool_)
    for part in shape.parts:
        polygon = shapely.Polygon(_in_pixels(part, shape, size, tolerance))
        polygon = polygon if polygon.is_valid else shapely.make_valid(polygon)
        x0, y0, x1, y1 = (int(bound) for bound in np.clip(polygon.bounds, 0, (*size, *size)))
        columns, rows = np.meshgrid(np.arange(x0, min(x1 + 1, size[0])), np.arange(y0, min(y1 + 1, size[1])))
        mask[rows, columns] |= shapely.contains_xy(polygon, columns + 0.5, rows + 0.5)
    if not mask.any():
        raise ValueError("found an outline that holds no pixel")
    return mask


def label_text(lines: Sequence[str]) -> bytes:
    """Content of an oriented-box label file."""
    return "".join(f"{line}\n" for line in lines).encode()


def check_stated_size(stated: tuple[int, int] | None, size: tuple[int, int]) -> None:
    """Refuse labels drawn on an image of another size.

    Raises:
        ValueError: the sizes differ.
    """
    if stated is not None and stated != size:
        raise ValueError(f"found labels of an image of {stated[0]}x{stated[1]} px, expected {size[0]}x{size[1]}")


def _in_pixels(
    part: NDArray[np.float64], shape: ForeignShape, size: tuple[int, int], tolerance: float
) -> NDArray[np.float64]:
    """Points in raw px, those just outside set to the edge."""
    if len(part) < 3:
        raise ValueError(f"found {len(part)} points, expected at least 3")
    shares = part / np.asarray(size, np.float64) if shape.units == "pixel" else part
    if (shares < -tolerance).any() or (shares > 1 + tolerance).any():
        worst = part.ravel()[int(np.abs(shares - 0.5).argmax())]
        raise ValueError(
            f"found the coordinate {worst:g}, expected one within the image of {size[0]}x{size[1]} px (in {shape.units}"
            f"{'s' if shape.units == 'pixel' else 's of its sides'}); is it in another unit?"
        )
    inside: NDArray[np.float64] = np.clip(shares, 0.0, 1.0) * np.asarray(size, np.float64)
    return inside


def _around(points: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Corners (4, 2) of the smallest rectangle around points, upright where it would leave the image."""
    around = shapely.oriented_envelope(shapely.MultiPoint(points))
    if not isinstance(around, shapely.Polygon):
        raise ValueError("found an outline without area")
    corners = shapely.get_coordinates(around.exterior)[:4]
    inside: NDArray[np.float64] = np.clip(corners, 0.0, np.asarray(size, np.float64))
    if np.abs(corners - inside).max() > ROUNDING_PX:
        # Turned at the image's edge: cut there, it would be no rectangle and lose part of the lesion.
        return corners_of_box(*points.min(axis=0), *points.max(axis=0))
    return inside


def _hull_corners(pixels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Outer corners of the first and last pixel of each row: their hull is that of all pixels."""
    rows = np.flatnonzero(pixels.any(axis=1))
    first = pixels[rows].argmax(axis=1)
    last = pixels.shape[1] - pixels[rows, ::-1].argmax(axis=1)
    corners = [np.stack([columns, rows + below], axis=1) for columns in (first, last) for below in (0, 1)]
    return np.concatenate(corners).astype(np.float64)


def _decoded(read: Callable[[tuple[int, int]], NDArray[np.bool_]], size: tuple[int, int]) -> NDArray[np.bool_]:
    pixels = read(size)
    if not pixels.any():
        raise ValueError("found a mask without any pixel")
    return pixels
