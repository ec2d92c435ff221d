"""Merging that leaves no half boxes at the seams of tiles.

A lesion that reaches over a tile's inner edge is found there as a piece, cut at the edge; the neighbouring tile finds
the rest, or the whole. Two findings of one category in different tiles belong together when at least one of them is
cut and they agree on what both tiles see: both are clipped to the tiles' common area, and those clips have at least
the merging IoU. Tiles that only touch share their seam, widened by a margin, so that pieces are compared along it.
Each finding takes at most its best partner in every other tile, and only if that one takes it too; chains of partners
are one lesion. Its box is that of its best complete finding when one covers the whole chain, else the box around all
pieces. Cut pieces that found no partner but lie almost wholly inside a larger box go. What is left passes per-class
non-maximum suppression.

Partners score at least a fifth of each other, and so does the larger box of the piece that goes: chance findings
neither stretch nor remove sure ones. No threshold takes part: which detections are written does not change what they
are. It works on columns of many images at once and reads no files.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.inference.batched_nms import overlapping_pairs, pair_intersection, pair_iou
from uveitis_assets.detection.inference.detection_table import DetectionTable
from uveitis_assets.imaging.geometry import box_areas

Rows = NDArray[np.int64]

# Networks place the side of a cut lesion up to a few pixels off the tile's edge.
_EDGE_TOLERANCE_PX = 4.0
# Half the width of a seam between tiles that only touch.
_MARGIN_PX = 1.0
# Share of a cut piece's area that has to lie in a larger box for the piece to go.
_INSIDE_SHARE = 0.8
# Least score of a partner as a share of the other's: chance findings must not change sure ones.
WEAKEST_PARTNER = 0.2


def join_cut_boxes(table: DetectionTable, *, iou: float) -> DetectionTable:
    """Join the pieces of lesions that tiles' edges cut, and remove pieces that a whole box already holds.

    Args:
        table: detections of tiles, tiling px, all that the network answered.
        iou: agreement, as intersection over union in the tiles' common area, from which two findings are one.

    Returns:
        One row per lesion and complete duplicate, best first, for suppression; a joined row has its best finding's
        score and the tile of that finding.
    """
    table = table.best_first()
    cut = _cut_sides(table)
    lesion = _connected(len(table), *_partners(table, cut, iou))
    joined, still_cut = _whole_boxes(table, cut, lesion, iou)
    return joined.select(~_inside_larger(joined, still_cut))


def _cut_sides(table: DetectionTable) -> NDArray[np.bool_]:
    """Which sides (N, 4), left, top, right, bottom, lie at a tile's inner edge."""
    windows = table.windows[table.tiles]
    inner = np.hstack([windows[:, :2] > 0, windows[:, 2:] < table.sizes[table.images]])
    distance = np.hstack([table.boxes[:, :2] - windows[:, :2], windows[:, 2:] - table.boxes[:, 2:]])
    sides: NDArray[np.bool_] = inner & (distance <= _EDGE_TOLERANCE_PX)
    return sides


def _partners(table: DetectionTable, cut: NDArray[np.bool_], iou: float) -> tuple[Rows, Rows]:
    """Pairs of rows that belong to one lesion by the module's rule."""
    margin = np.array([-_MARGIN_PX, -_MARGIN_PX, _MARGIN_PX, _MARGIN_PX])
    boxes, windows = table.boxes + margin, (table.windows + margin)[table.tiles]
    any_cut: NDArray[np.bool_] = np.asarray(cut.any(axis=1))
    tiles = table.tiles
    firsts, seconds, agreements = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for first, second in overlapping_pairs(boxes, table.groups()):
        possible = (tiles[first] != tiles[second]) & (any_cut[first] | any_cut[second])
        weaker = np.minimum(table.scores[first], table.scores[second])
        possible &= weaker >= WEAKEST_PARTNER * np.maximum(table.scores[first], table.scores[second])
        one, other = first[possible], second[possible]
        common = np.hstack(
            [
                np.maximum(windows[one, :2], windows[other, :2]),
                np.minimum(windows[one, 2:], windows[other, 2:]),
            ]
        )
        of_one, of_other = _clipped(boxes[one], common), _clipped(boxes[other], common)
        shared = pair_intersection(of_one, of_other)
        union = pair_intersection(of_one, of_one) + pair_intersection(of_other, of_other) - shared
        agreement = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        agree = (agreement >= iou) & (shared > 0)
        firsts.append(one[agree])
        seconds.append(other[agree])
        agreements.append(agreement[agree])
    first, second, agreement = np.concatenate(firsts), np.concatenate(seconds), np.concatenate(agreements)
    mutual = _best_of(first, tiles[second], second, agreement) & _best_of(second, tiles[first], first, agreement)
    return first[mutual], second[mutual]


def _clipped(boxes: NDArray[np.float64], windows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.hstack([np.maximum(boxes[:, :2], windows[:, :2]), np.minimum(boxes[:, 2:], windows[:, 2:])])


def _best_of(row: Rows, tile: Rows, partner: Rows, agreement: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mask of the pairs whose partner agrees best with the row among the partners in that tile."""
    order = np.lexsort((partner, -agreement, tile, row))
    begins = np.ones(len(order), np.bool_)
    begins[1:] = (row[order][1:] != row[order][:-1]) | (tile[order][1:] != tile[order][:-1])
    best = np.zeros(len(order), np.bool_)
    best[order[begins]] = True
    return best


def _connected(n: int, first: Rows, second: Rows) -> Rows:
    """For every row the lowest row of its chain of pairs, that is, the best finding of its lesion."""
    lowest = np.arange(n, dtype=np.int64)
    while True:
        before = lowest.copy()
        reached = np.minimum(lowest[first], lowest[second])
        np.minimum.at(lowest, first, reached)
        np.minimum.at(lowest, second, reached)
        lowest = lowest[lowest]
        if np.array_equal(before, lowest):
            return lowest


def _whole_boxes(
    table: DetectionTable, cut: NDArray[np.bool_], lesion: Rows, iou: float
) -> tuple[DetectionTable, NDArray[np.bool_]]:
    """One row per lesion, and whether its box still ends at a seam."""
    heads, number = np.unique(lesion, return_inverse=True)
    number = number.reshape(-1)
    n = len(heads)
    # Low sides are minima, high sides maxima: negated, all are minima.
    signs = np.array([1.0, 1.0, -1.0, -1.0])
    around = np.full((n, 4), np.inf)
    np.minimum.at(around, number, table.boxes * signs)
    around *= signs
    whole_side = np.zeros((n, 4), np.bool_)
    at_rim = ~cut & (np.abs(table.boxes - around[number]) <= _EDGE_TOLERANCE_PX)
    np.logical_or.at(whole_side, number, at_rim)

    complete = np.full(n, len(table), np.int64)
    rows = np.flatnonzero(~cut.any(axis=1))
    np.minimum.at(complete, number[rows], rows)
    has = np.flatnonzero(complete < len(table))
    both = np.concatenate([table.boxes[complete[has]], around[has]])
    covers = pair_iou(both, np.arange(len(has)), np.arange(len(has)) + len(has)) >= iou
    source = heads.copy()
    source[has[covers]] = complete[has[covers]]

    boxes = around.copy()
    boxes[has[covers]] = table.boxes[source[has[covers]]]
    whole_side[has[covers]] = True
    joined = table.select(heads)
    corners = None
    if table.corners is not None:
        corners = table.corners[source].copy()
        n_pieces = np.bincount(number, minlength=n)
        around_pieces = np.setdiff1d(np.flatnonzero(n_pieces > 1), has[covers])
        for which in around_pieces.tolist():
            points = table.corners[number == which].reshape(-1, 2).astype(np.float32)
            corners[which] = cv2.boxPoints(cv2.minAreaRect(points))
    still_cut: NDArray[np.bool_] = np.logical_not(np.all(whole_side, axis=1))
    return replace(joined, boxes=boxes, corners=corners), still_cut


def _inside_larger(table: DetectionTable, still_cut: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mask of boxes that end at a seam and lie almost wholly inside a larger box of their category.

    The larger box scores at least a fifth of theirs.
    """
    areas = box_areas(table.boxes)
    gone = np.zeros(len(table), np.bool_)
    for pair in overlapping_pairs(table.boxes, table.groups()):
        for piece, other in (pair, pair[::-1]):
            candidate = still_cut[piece] & (areas[other] > areas[piece])
            candidate &= table.scores[other] >= WEAKEST_PARTNER * table.scores[piece]
            one, larger = piece[candidate], other[candidate]
            shared = pair_intersection(table.boxes[one], table.boxes[larger])
            gone[one[shared >= _INSIDE_SHARE * areas[one]]] = True
    return gone
