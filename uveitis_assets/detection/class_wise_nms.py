"""Non-maximum suppression of many images and categories at once, equal to the greedy loop over each of them.

Overlapping pairs are found by sweeping along x; which of them suppress each other is then settled for all groups
together, from the best detections downwards. It works on columns of numbers and knows no tiles.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

# Candidate pairs looked at together: 8 columns of them take about 250 MB.
_PAIRS_PER_CHUNK = 1 << 22


def class_wise_nms(boxes: NDArray[np.float64], groups: Rows, ranking: Rows, iou: float) -> NDArray[np.bool_]:
    """Greedy non-maximum suppression inside every group: a box goes when a kept better one has more than ``iou``.

    Args:
        boxes: float64 (N, 4), x0 y0 x1 y1.
        groups: int64 (N,); boxes of different groups never meet.
        ranking: rows from best to worst; only the order inside a group matters.
        iou: intersection over union above which the worse box goes.

    Returns:
        Mask (N,) of kept rows.
    """
    pairs = [
        (first[hit], second[hit])
        for first, second in overlapping_pairs(boxes, groups)
        for hit in [pair_iou(boxes, first, second) > iou]
    ]
    return suppress(len(boxes), pairs, ranking)


def suppress(n: int, pairs: list[tuple[Rows, Rows]], ranking: Rows) -> NDArray[np.bool_]:
    """Resolve conflicting pairs greedily by rank: what a kept row conflicts with goes; returns the mask of kept rows.

    A row is kept once every better row it conflicts with has gone, so each round settles at least the best open row
    of every group; rounds are as many as the longest chain of decisions, a handful in practice.
    """
    place = np.empty(n, np.int64)
    place[ranking] = np.arange(n)
    first = np.concatenate([pair[0] for pair in pairs]) if pairs else np.zeros(0, np.int64)
    second = np.concatenate([pair[1] for pair in pairs]) if pairs else np.zeros(0, np.int64)
    swap = place[first] > place[second]
    better, worse = np.where(swap, second, first), np.where(swap, first, second)
    gone = np.zeros(n, np.bool_)
    while len(better):
        waits = np.zeros(n, np.bool_)
        waits[worse] = True
        decided = ~waits[better]
        gone[worse[decided]] = True
        open_pairs = ~(decided | gone[better] | gone[worse])
        better, worse = better[open_pairs], worse[open_pairs]
    return ~gone


def overlapping_pairs(boxes: NDArray[np.float64], groups: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Pairs of rows of one group whose boxes share some area, each pair once, in chunks of bounded size.

    Args:
        boxes: float64 (N, 4), x0 y0 x1 y1.
        groups: int64 (N,).
    """
    if not len(boxes):
        return
    order = np.lexsort((boxes[:, 0], groups)).astype(np.int64)
    x0, y0, x1, y1 = boxes[order].T
    # Groups lie one behind the other on a single axis, so that one search finds where every box's sweep ends.
    rank = np.cumsum(np.diff(groups[order], prepend=groups[order[0]]) != 0)
    left, right = x0.min(), x1.max()
    shift = rank * (right - left + 1.0)
    last = np.searchsorted(shift + (x0 - left), shift + (x1 - left), side="right")
    counts = np.maximum(last - np.arange(len(order)) - 1, 0)
    ends = np.cumsum(counts)
    start = 0
    while start < len(order):
        stop = int(np.searchsorted(ends, (ends[start - 1] if start else 0) + _PAIRS_PER_CHUNK, side="right"))
        stop = max(stop, start + 1)
        of_rows = counts[start:stop]
        first = np.repeat(np.arange(start, stop), of_rows)
        step = np.arange(len(first)) - np.repeat(np.cumsum(of_rows) - of_rows, of_rows)
        second = first + 1 + step
        meets = (
            (x0[second] < x1[first]) & (y0[second] < y1[first]) & (y0[first] < y1[second]) & (x0[first] < x1[second])
        )
        yield order[first[meets]], order[second[meets]]
        start = stop


def pair_iou(boxes: NDArray[np.float64], first: Rows, second: Rows) -> NDArray[np.float64]:
    """Intersection over union (P,) of pairs of rows of boxes (N, 4)."""
    one, other = boxes[first], boxes[second]
    shared = pair_intersection(one, other)
    union: NDArray[np.float64] = box_areas(one) + box_areas(other) - shared
    ratios: NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratios


def pair_intersection(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area (P,) shared by boxes (P, 4) and boxes (P, 4)."""
    width = np.minimum(one[:, 2], other[:, 2]) - np.maximum(one[:, 0], other[:, 0])
    height = np.minimum(one[:, 3], other[:, 3]) - np.maximum(one[:, 1], other[:, 1])
    shared: NDArray[np.float64] = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    return shared


def box_areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Areas (N,) of boxes (N, 4)."""
    areas: NDArray[np.float64] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas
