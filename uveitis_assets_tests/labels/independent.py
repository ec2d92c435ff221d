"""The labels' geometry a second time, in plain numpy and loops, straight from raw labels: what the tests compare with.

It shares no code with the package: frames are read from the metadata files, polygons are clipped by Sutherland and
Hodgman's algorithm.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


def clip_polygon(points: Points, window: tuple[float, float, float, float]) -> Points:
    """Sutherland-Hodgman: the part of a polygon (n, 2) inside a rectangle x0, y0, x1, y1."""
    x0, y0, x1, y1 = window
    for axis, limit, sign in ((0, x0, 1), (0, x1, -1), (1, y0, 1), (1, y1, -1)):
        kept: list[Points] = []
        for i in range(len(points)):
            a, b = points[i - 1], points[i]
            inside_a, inside_b = sign * (a[axis] - limit) >= 0, sign * (b[axis] - limit) >= 0
            if inside_a != inside_b:
                kept.append(a + (b - a) * (limit - a[axis]) / (b[axis] - a[axis]))
            if inside_b:
                kept.append(b)
        points = np.array(kept).reshape(-1, 2)
    return points


def area_of(points: Points) -> float:
    """Shoelace formula."""
    if len(points) < 3:
        return 0.0
    x, y = points[:, 0], points[:, 1]
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def to_frame(points: Points, crop: dict[str, Any], tiles: dict[str, Any], frame: str) -> Points:
    """Raw px to global px by the published formula, or to crop px for ``frame`` native."""
    shifted = points - np.array(crop["bbox_xyxy"][:2], float)
    if frame == "native":
        return shifted
    meta = tiles["global_meta"]
    result: Points = (shifted + np.array(meta["pad_xy"], float)) * meta["scale"]
    return result


def clip_box(box: Points, window: tuple[float, float, float, float]) -> Points | None:
    x0, y0 = max(box[0], window[0]), max(box[1], window[1])
    x1, y1 = min(box[2], window[2]), min(box[3], window[3])
    return None if x1 <= x0 or y1 <= y0 else np.array([x0, y0, x1, y1])


def box_area(box: Points | None) -> float:
    return 0.0 if box is None else float((box[2] - box[0]) * (box[3] - box[1]))


def expected_in_image(polygons: list[Points], boxes: list[Points], size: tuple[int, int]) -> dict[int, Points]:
    """Lesion -> clipped box, in one image of ``size``."""
    window = (0.0, 0.0, float(size[0]), float(size[1]))
    found = {}
    for i, (polygon, box) in enumerate(zip(polygons, boxes, strict=True)):
        clipped = clip_box(box, window)
        if clipped is not None and area_of(clip_polygon(polygon, window)) > 1e-6:
            found[i] = clipped
    return found


def expected_in_tiles(
    polygons: list[Points],
    boxes: list[Points],
    frame_size: tuple[int, int],
    tiles: list[dict[str, Any]],
    min_ratio: float,
    large_cover: float,
) -> dict[tuple[str, int], tuple[Points, str]]:
    """(tile id, lesion) -> box in tile px and the rule that kept it."""
    found: dict[tuple[str, int], tuple[Points, str]] = {}
    for i, (polygon, box) in enumerate(zip(polygons, boxes, strict=True)):
        in_frame = clip_box(box, (0.0, 0.0, float(frame_size[0]), float(frame_size[1])))
        if in_frame is None:
            continue
        shares: list[tuple[float, str, Points]] = []
        kept = False
        for tile in tiles:
            window = (tile["x0"], tile["y0"], tile["x1"], tile["y1"])
            clipped = clip_box(in_frame, window)
            if clipped is None or area_of(clip_polygon(polygon, window)) <= 1e-6:
                continue
            local = clipped - [window[0], window[1], window[0], window[1]]
            ratio = box_area(clipped) / box_area(in_frame)
            cover = box_area(clipped) / ((window[2] - window[0]) * (window[3] - window[1]))
            shares.append((box_area(clipped), tile["tile_id"], local))
            if ratio >= min_ratio or cover >= large_cover:
                found[tile["tile_id"], i] = (local, "ratio" if ratio >= min_ratio else "cover")
                kept = True
        if shares and not kept:
            largest = max(share for share, _, _ in shares)
            _, tile_id, local = next(entry for entry in shares if entry[0] == largest)
            found[tile_id, i] = (local, "best")
    return found
