"""Oriented-box label files: one lesion per line, class and four points as shares of the raw image.

A line is ``class x1 y1 x2 y2 x3 y3 x4 y4``.

Parsing is strict: one invalid line sets the whole file aside, because an image with part of its lesions would teach the
missing ones as background. Harmless: a byte-order mark, CRLF, blank lines, more spaces or tabs. An empty file means an
image without lesions.

Tolerance: lesions at the edge of the photograph are drawn across it. Points that exceed 0..1 by at most the lane's
``edge_tolerance`` are set to the edge, which is a finding from ``POINT_TOLERANCE`` on, the last digit of the six that
editors write (under 0.01 px). Anything further out is a label of another image or another unit. (The 745 boxes of the
98 files published with UWF-700 lie within 0.0031 .. 0.9973.)

The same box of the same class twice, in whatever order its points are, is one lesion, and a finding: a detection cannot
find it twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import shapely
from numpy.typing import NDArray

from uveitis_assets.labels.class_map import LabelSpace, UnknownClassError
from uveitis_assets.labels.findings import LabelFinding
from uveitis_assets.labels.lesions import Lesions, no_lesions
from uveitis_assets.landing.quarantine import QuarantineError
from uveitis_assets.messages import enumeration

POINT_TOLERANCE = 1e-6
# Thinner boxes, in raw px, hold no pixel: they mark nothing.
SMALLEST_SIDE_PX = 0.5
# Decimals of the shares in which points of a repeated box agree.
POINT_DECIMALS = 6

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf(inity)?)", re.ASCII | re.IGNORECASE)
_EXAMPLES = 5
_LINE_END = re.compile(r"\r\n|\n|\r")


def parse_oriented_boxes(
    data: bytes, name: str, label_space: LabelSpace, raw_size: tuple[int, int], *, edge_tolerance: float = 0.0
) -> Lesions:
    """Parse the bytes of one label file.

    Outlines whose points are out of order (crossing sides) become the convex hull of the points; corners stay as
    written, but for those outside the image, which are set to its edge.

    Args:
        data: the whole file.
        name: what messages call the file (its path relative to the raw folder).
        label_space: meaning of the class numbers.
        raw_size: width and height of the displayed raw image, px.
        edge_tolerance: how far a point may lie outside, as a share of the image's side.

    Raises:
        QuarantineError: ``bad_label`` with file, line, found and expected.
    """
    lines = _Lines(name, raw_size, max(edge_tolerance, POINT_TOLERANCE))
    category_ids: list[int] = []
    corners: list[NDArray[np.float64]] = []
    for number, fields in _fields_of_lines(data, name):
        if len(fields) != 9:
            raise _bad(
                name,
                number,
                f"found {len(fields)} values, expected 9: class x1 y1 x2 y2 x3 y3 x4 y4; other formats are converted "
                "by `uveitis-assets import-labels`",
            )
        try:
            category_id = label_space.category_of(fields[0])
        except UnknownClassError as error:
            raise _bad(name, number, str(error)) from error
        points = lines.corners(number, fields)
        if not lines.repeats(number, fields[0], points):
            category_ids.append(category_id)
            corners.append(points)
    if not corners:
        return no_lesions()
    return lesions_of_corners(category_ids, np.stack(corners), lines.findings())


def lesions_of_corners(
    category_ids: Sequence[int], corners: NDArray[np.float64], findings: tuple[LabelFinding, ...] = ()
) -> Lesions:
    """Lesions of oriented boxes, ``corners`` of shape (n, 4, 2) in raw px."""
    outlines = shapely.polygons(corners)
    crossing = ~shapely.is_valid(outlines)
    outlines[crossing] = shapely.convex_hull(outlines[crossing])
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    return Lesions(np.asarray(category_ids, np.int64), boxes, outlines, corners, findings=findings)


def shorter_side(points: NDArray[np.float64]) -> float:
    """Shorter side of the smallest rectangle around points (n, 2); 0 for points on a line."""
    around = shapely.oriented_envelope(shapely.MultiPoint(points))
    if not isinstance(around, shapely.Polygon):
        return 0.0
    ring = shapely.get_coordinates(around.exterior)
    return float(np.linalg.norm(np.diff(ring[:3], axis=0), axis=1).min())


class _Lines:
    """What the lines of one file need to know of each other: their boxes, and the file's findings."""

    def __init__(self, name: str, raw_size: tuple[int, int], tolerance: float) -> None:
        self._name = name
        self._size = np.asarray(raw_size, np.float64)
        self._tolerance = tolerance
        self._first_line: dict[tuple[object, ...], int] = {}
        self._repeated: list[str] = []
        self._outside: list[str] = []
        self._furthest = 0.0

    def corners(self, number: int, fields: Sequence[str]) -> NDArray[np.float64]:
        """Corners (4, 2) of a line in raw px, inside the image."""
        shares = np.array([_share(field, self._name, number, self._tolerance) for field in fields[1:]])
        outside = float(np.abs(shares - np.clip(shares, 0.0, 1.0)).max())
        if outside > POINT_TOLERANCE:
            self._outside.append(f"line {number}")
            self._furthest = max(self._furthest, outside)
        points: NDArray[np.float64] = np.clip(shares.reshape(4, 2), 0.0, 1.0) * self._size
        side = shorter_side(points)
        if side < SMALLEST_SIDE_PX:
            raise _bad(
                self._name,
                number,
                f"found a box without area ({side:.2g} px at its narrowest), expected at least {SMALLEST_SIDE_PX} px; "
                "delete the line or redraw it",
            )
        return points

    def repeats(self, number: int, label_class: str, points: NDArray[np.float64]) -> bool:
        """Whether an earlier line has the same class and box."""
        shares = np.round(points / self._size, POINT_DECIMALS) + 0.0
        key = (label_class, *sorted(map(tuple, shares.tolist())))
        first = self._first_line.setdefault(key, number)
        if first != number:
            self._repeated.append(f"line {number} repeats line {first}")
        return first != number

    def findings(self) -> tuple[LabelFinding, ...]:
        """What the WARN check says about the file."""
        found = []
        if self._repeated:
            listed = enumeration(self._repeated, _EXAMPLES)
            found.append(
                LabelFinding("duplicate_lesion", f"{self._name}: {listed}; each is one lesion: delete the repetitions")
            )
        if self._outside:
            listed = enumeration(self._outside, _EXAMPLES)
            found.append(
                LabelFinding(
                    "corner_outside",
                    f"{self._name}: {listed}: corners up to {self._furthest:.2g} of the side outside the image, set to "
                    "its edge (`labels.edge_tolerance`)",
                )
            )
        return tuple(found)


def _fields_of_lines(data: bytes, name: str) -> Iterator[tuple[int, list[str]]]:
    """Line numbers from 1 and the fields of the lines that have any."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _bad(name, line, f"found byte 0x{data[error.start]:02x}, expected UTF-8 text") from error
    for number, line_text in enumerate(_LINE_END.split(text), start=1):
        fields = line_text.split()
        if fields:
            yield number, fields


def _share(field: str, name: str, line: int, tolerance: float) -> float:
    if _NOT_FINITE.fullmatch(field):
        raise _bad(name, line, f"found {field}, expected a finite number within 0..1")
    if not _NUMBER.fullmatch(field):
        raise _bad(name, line, f"found {field!r}, expected a number within 0..1")
    value = float(field)
    if not -tolerance <= value <= 1.0 + tolerance:
        raise _bad(
            name,
            line,
            f"found the coordinate {field}, expected a share of the image within 0..1 (or outside by at most "
            f"{tolerance:g}, `labels.edge_tolerance`)",
        )
    return value


def _bad(name: str, line: int, message: str) -> QuarantineError:
    return QuarantineError("bad_label", f"{name}:{line}: {message}")
