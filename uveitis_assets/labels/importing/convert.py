"""Turns shapes of foreign files into a lane's label files: lines of oriented boxes, or masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from uveitis_assets.labels.class_map import LabelSpace
from uveitis_assets.labels.importing.foreign import ForeignShape
from uveitis_assets.labels.oriented_boxes import parse_oriented_boxes
from uveitis_assets.landing.quarantine import QuarantineError

# Shares with eight decimals place a corner within 0.0001 px.
DECIMALS = 8


def oriented_line(
    shape: ForeignShape, label_class: str, size: tuple[int, int], label_space: LabelSpace, tolerance: float
) -> str:
    """Line of a label file: class and four corners as shares of the image.

    A box keeps its corners; an outline becomes the smallest rectangle around it, within the image.

    Raises:
        ValueError: a point further outside than the tolerance, or a box without area.
    """
    if shape.pixels is not None:
        corners = _around(_corners_of_pixels(_fitting(shape.pixels, size)), size)
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


def mask_png(shapes: Iterable[ForeignShape], size: tuple[int, int]) -> bytes:
    """PNG of the pixels whose centre lies in any of the shapes: 255 on 0."""
    mask = np.zeros(size[::-1], np.bool_)
    for shape in shapes:
        mask |= pixels_of(shape, size)
    return bytes(cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].tobytes())


def pixels_of(shape: ForeignShape, size: tuple[int, int], tolerance: float = 1.0) -> NDArray[np.bool_]:
    """Pixels of an outline, bool (height, width).

    Raises:
        ValueError: a box, a point further outside than the tolerance, or an outline that holds no pixel's centre.
    """
    if shape.kind == "box":
        raise ValueError("found a box, expected an outline: a mask would mark the whole box as lesion")
    if shape.pixels is not None:
        return _fitting(shape.pixels, size)
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


def by_label_class(shapes: Iterable[tuple[str, ForeignShape]]) -> Mapping[str, list[ForeignShape]]:
    """Shapes of each label class, in their order."""
    grouped: dict[str, list[ForeignShape]] = {}
    for label_class, shape in shapes:
        grouped.setdefault(label_class, []).append(shape)
    return grouped


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
    """Corners (4, 2) of the smallest rectangle around points, within the image."""
    around = shapely.oriented_envelope(shapely.MultiPoint(points))
    if not isinstance(around, shapely.Polygon):
        raise ValueError("found an outline without area")
    corners = shapely.get_coordinates(around.exterior)[:4]
    clipped: NDArray[np.float64] = np.clip(corners, 0.0, np.asarray(size, np.float64))
    return clipped


def _corners_of_pixels(pixels: NDArray[np.bool_]) -> NDArray[np.float64]:
    rows, columns = np.nonzero(pixels)
    corners = [(columns + right, rows + below) for right in (0, 1) for below in (0, 1)]
    return np.concatenate([np.stack(corner, axis=1) for corner in corners]).astype(np.float64)


def _fitting(pixels: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    if pixels.shape != size[::-1]:
        raise ValueError(f"found a mask of {pixels.shape[1]}x{pixels.shape[0]} px, expected {size[0]}x{size[1]}")
    if not pixels.any():
        raise ValueError("found a mask without any pixel")
    return pixels
