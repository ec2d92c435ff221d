"""Non-maximum suppression of many images and categories at once, equal to the greedy loop.

Overlapping pairs are found by sweeping along x; which of them suppress each other is then settled for all groups
together, from the best detections downwards. In NumPy, for merging on the CPU: suppressing each image and class with
torchvision takes eight times as long (``benchmarks/merging.py``). Networks suppress in torch on their device
(``models.per_class_nms``, and ``models.rotated_boxes`` with a sweep of the same kind).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.imaging.geometry import box_areas

Rows = NDArray[np.int64]

# Candidate pairs looked at together: 8 columns of them take about 250 MB.
PAIRS_PER_CHUNK = 1 << 22
# More than float64 loses on an axis of a million groups.
_AXIS_NOISE_PX = 1e-3


def batched_nms(boxes: NDArray[np.float64], groups: Rows, iou: float) -> NDArray[np.bool_]:
    """Greedy non-maximum suppression inside every group.

    A box is removed when a kept better one overlaps it by more than ``iou``.

    Args:
        boxes: float64 (N, 4), x0 y0 x1 y1, in every group best first.
        groups: int64 (N,), not negative; boxes of different groups never meet.
        iou: intersection over union above which the worse box goes.

    Returns:
        Mask (N,) of kept rows.
    """
    pairs = [
        (first[hit], second[hit])
        for first, second in overlapping_pairs(boxes, groups)
        for hit in [pair_iou(boxes, first, second) > iou]
    ]
    return _suppressed(len(boxes), pairs)


def _suppressed(n: int, pairs: list[tuple[Rows, Rows]]) -> NDArray[np.bool_]:
    """Mask of rows kept when each kept row removes the later rows it conflicts with.

    A row is kept once every better row it conflicts with has gone, so each round settles at least the best open row
    of every group; rounds are as many as the longest chain of decisions, a handful in practice.
    """
    first = np.concatenate([pair[0] for pair in pairs]) if pairs else np.zeros(0, np.int64)
    second = np.concatenate([pair[1] for pair in pairs]) if pairs else np.zeros(0, np.int64)
    better, worse = np.minimum(first, second), np.maximum(first, second)
    gone = np.zeros(n, np.bool_)
    while len(better):
        waits = np.zeros(n, np.bool_)
        waits[worse] = True
        decided = ~waits[better]
        gone[worse[decided]] = True
        open_pairs = ~(decided | gone[better] | gone[worse])
        better, worse = better[open_pairs], worse[open_pairs]
    return ~gone


def overlapping_pairs(
    boxes: NDArray[np.float64], groups: Rows, *, pairs_per_chunk: int = PAIRS_PER_CHUNK
) -> Iterator[tuple[Rows, Rows]]:
    """Pairs of rows of one group whose boxes share some area, each pair once, in chunks of bounded size.

    Args:
        boxes: float64 (N, 4), x0 y0 x1 y1.
        groups: int64 (N,), not negative.
        pairs_per_chunk: candidate pairs looked at together.
    """
    if not len(boxes):
        return
    # Groups lie one behind the other on a single axis, so that one sort and one search serve all of them.
    left, right = boxes[:, 0].min(), boxes[:, 2].max()
    shift = groups * (right - left + 1.0) - left
    begin = boxes[:, 0] + shift
    order = np.argsort(begin).astype(np.int64)
    x0, y0, x1, y1 = boxes[order].T
    last = np.searchsorted(begin[order], x1 + shift[order] + _AXIS_NOISE_PX, side="right")
    counts = np.maximum(last - np.arange(len(order)) - 1, 0)
    ends = np.cumsum(counts)
    start = 0
    while start < len(order):
        stop = int(np.searchsorted(ends, (ends[start - 1] if start else 0) + pairs_per_chunk, side="right"))
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
