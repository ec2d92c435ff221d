"""Oriented-box label files: one lesion per line, class and four points as shares of the raw image.

A line is ``class x1 y1 x2 y2 x3 y3 x4 y4``.

Parsing is strict: one invalid line sets the whole file aside, because an image with part of its lesions would teach the
missing ones as background. Harmless: a byte-order mark, CRLF, blank lines, more spaces or tabs. An empty file means an
image without lesions.

Tolerance: the 745 boxes of the 98 files published with UWF-700 lie within 0.0031 .. 0.9973, so none needs any.
Points may exceed 0..1 by ``POINT_TOLERANCE``, the last digit of the six that the editor writes (under 0.01 px), and
are set to the edge; anything further out is a label of another image or another unit.
"""

from __future__ import annotations

import re

import numpy as np
import shapely

from uveitis_assets.labels.class_map import LabelSpace, UnknownClassError
from uveitis_assets.labels.lesions import Lesions, no_lesions
from uveitis_assets.landing.quarantine import QuarantineError

POINT_TOLERANCE = 1e-6
# Share of the image below which a box marks nothing: 0.01 px of a 12 megapixel photograph. The area is that of the
# convex hull: the signed area of a box whose points are out of order can cancel to zero.
SMALLEST_AREA = 1e-9

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf(inity)?)", re.ASCII | re.IGNORECASE)
_LINE_END = re.compile(r"\r\n|\n|\r")


def parse_oriented_boxes(data: bytes, name: str, label_space: LabelSpace, raw_size: tuple[int, int]) -> Lesions:
    """Parse the bytes of one label file.

    Outlines whose points are out of order (crossing sides) become the convex hull of the points; corners stay as
    written.

    Args:
        data: the whole file.
        name: what messages call the file (its path relative to the raw folder).
        label_space: meaning of the class numbers.
        raw_size: width and height of the displayed raw image, px.

    Raises:
        QuarantineError: ``bad_label`` with file, line, found and expected.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _bad(name, line, f"found byte 0x{data[error.start]:02x}, expected UTF-8 text") from error
    category_ids: list[int] = []
    shares: list[list[float]] = []
    for number, line_text in enumerate(_LINE_END.split(text), start=1):
        fields = line_text.split()
        if not fields:
            continue
        if len(fields) != 9:
            raise _bad(name, number, f"found {len(fields)} values, expected 9: class x1 y1 x2 y2 x3 y3 x4 y4")
        try:
            category_ids.append(label_space.category_of(fields[0]))
        except UnknownClassError as error:
            raise _bad(name, number, str(error)) from error
        shares.append([_share(field, name, number) for field in fields[1:]])
        if shapely.MultiPoint(np.reshape(shares[-1], (4, 2))).convex_hull.area < SMALLEST_AREA:
            raise _bad(name, number, "found a box without area, expected four corners; delete the line or redraw it")
    if not shares:
        return no_lesions()
    corners = np.clip(np.reshape(shares, (-1, 4, 2)), 0.0, 1.0) * np.asarray(raw_size, np.float64)
    outlines = shapely.polygons(corners)
    crossing = ~shapely.is_valid(outlines)
    outlines[crossing] = shapely.convex_hull(outlines[crossing])
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    return Lesions(np.asarray(category_ids, np.int64), boxes, outlines, corners)


def _share(field: str, name: str, line: int) -> float:
    if _NOT_FINITE.fullmatch(field):
        raise _bad(name, line, f"found {field}, expected a finite number within 0..1")
    if not _NUMBER.fullmatch(field):
        raise _bad(name, line, f"found {field!r}, expected a number within 0..1")
    value = float(field)
    if not -POINT_TOLERANCE <= value <= 1.0 + POINT_TOLERANCE:
        raise _bad(name, line, f"found the coordinate {field}, expected a share of the image within 0..1")
    return value


def _bad(name: str, line: int, message: str) -> QuarantineError:
    return QuarantineError("bad_label", f"{name}:{line}: {message}")
