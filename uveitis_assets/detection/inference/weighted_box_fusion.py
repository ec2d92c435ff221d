"""Weighted box fusion: boxes of one lesion become their mean, weighted by score.

Method of Solovyev, Wang and Gabruseva, "Weighted boxes fusion: Ensembling boxes from different object detection
models", Image and Vision Computing 107 (2021), with all models weighing the same. The method goes through the boxes
of an image and category from the best to the worst: a box joins the fused box that it overlaps most, if by more than
the IoU, and that fused box is averaged anew; else it begins one of its own. Here all images and categories take their
k-th step together.

In one point it is stricter: a box that scores less than a fifth of its fused box's best goes, as in suppression, and
is no part of the mean. As published, chance findings beside a sure one would pull its score down, from 0.9 to 0.32 by
two of 0.03 and 0.02, unless a score threshold had removed them before; this way no threshold takes part, and which
detections are written does not change what they are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.inference.detection_table import DetectionTable
from uveitis_assets.detection.inference.edge_aware_merging import WEAKEST_PARTNER


def fuse_boxes(table: DetectionTable, *, iou: float, n_models: int) -> DetectionTable:
    """Fuse the boxes of every image and category.

    Args:
        table: axis-aligned detections.
        iou: intersection over union above which a box joins a fused one.
        n_models: detectors that looked at every image. A fused score is the mean of its boxes' scores times
            min(boxes, n_models) / n_models: what few of the detectors found counts less.

    Returns:
        One row per fused box, best first.

    Raises:
        ValueError: oriented detections: the mean of rotated boxes is not defined by the method.
    """
    if table.corners is not None:
        raise ValueError(
            "weighted_box_fusion: expected axis-aligned detections, found oriented ones; "
            "merge them by nms or edge_aware"
        )
    if not len(table):
        return table
    table = table.best_first()
    order = np.argsort(table.groups(), kind="stable")
    table = table.select(order)
    head, clusters = _clusters(table.boxes, table.scores, table.groups(), iou)
    counts = table.scores >= WEAKEST_PARTNER * table.scores[head][clusters]
    partners, of_cluster = table.select(counts), clusters[counts]
    weight = np.bincount(of_cluster, partners.scores)
    sums = np.column_stack([np.bincount(of_cluster, partners.scores * side) for side in partners.boxes.T])
    n_boxes = np.bincount(of_cluster)
    # Boxes that all score 0 weigh the same.
    plain = np.column_stack([np.bincount(of_cluster, side) for side in partners.boxes.T]) / n_boxes[:, None]
    boxes = np.where(weight[:, None] > 0, sums / np.where(weight > 0, weight, 1.0)[:, None], plain)
    scores = weight / n_boxes * np.minimum(n_boxes, n_models) / n_models
    fused = replace(table.select(head), boxes=boxes, scores=scores)
    return fused.best_first()


def _clusters(
    boxes: NDArray[np.float64], scores: NDArray[np.float64], groups: NDArray[np.int64], iou: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First row of each cluster, and each row's cluster; rows come grouped, best first in every group."""
    starts = np.flatnonzero(np.diff(groups, prepend=groups[0] - 1))
    lengths = np.diff(starts, append=len(groups))
    # Long groups first, so that the groups still at work in a step are a leading block.
    by_length = np.argsort(-lengths, kind="stable")
    starts, lengths = starts[by_length], lengths[by_length]
    n_groups, longest = len(starts), int(lengths[0])
    n_fused = np.zeros(n_groups, np.int64)
    fused = np.zeros((n_groups, 8, 4))
    weights = np.zeros((n_groups, 8))
    best_scores = np.zeros((n_groups, 8))
    place = np.empty(len(boxes), np.int64)
    for step in range(longest):
        active = int(np.searchsorted(-lengths, -step, side="left"))
        rows = starts[:active] + step
        box, score = boxes[rows], np.maximum(scores[rows], np.finfo(np.float64).tiny)
        used = int(n_fused[:active].max())
        overlap = _iou_with(box, fused[:active, :used])
        overlap[np.arange(used) >= n_fused[:active, None]] = -1.0
        best = overlap.argmax(axis=1) if used else np.zeros(active, np.int64)
        joins = overlap[np.arange(active), best] > iou if used else np.zeros(active, np.bool_)
        chosen = np.where(joins, best, n_fused[:active])
        place[rows] = chosen
        if used == fused.shape[1]:
            fused = np.concatenate([fused, np.zeros_like(fused)], axis=1)
            weights = np.concatenate([weights, np.zeros_like(weights)], axis=1)
            best_scores = np.concatenate([best_scores, np.zeros_like(best_scores)], axis=1)
        which = np.arange(active)
        best_scores[which, chosen] = np.where(joins, best_scores[which, chosen], scores[rows])
        # A duplicate that is too weak takes a place in the cluster and leaves its box as it is.
        counts = np.flatnonzero(scores[rows] >= WEAKEST_PARTNER * best_scores[which, chosen])
        group, cluster, weight = counts, chosen[counts], score[counts]
        former = np.where(joins[counts], weights[group, cluster], 0.0)
        total = former + weight
        averaged = fused[group, cluster] * former[:, None] + box[counts] * weight[:, None]
        fused[group, cluster] = averaged / total[:, None]
        weights[group, cluster] = total
        n_fused[:active] += ~joins
    numbers = np.repeat(by_length, lengths)
    positions = np.concatenate([np.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)])
    group_of = np.empty(len(boxes), np.int64)
    group_of[positions] = numbers
    _, head, clusters = np.unique(group_of * (longest + 1) + place, return_index=True, return_inverse=True)
    return head.astype(np.int64), clusters.reshape(-1).astype(np.int64)


def _iou_with(box: NDArray[np.float64], fused: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU (G, K) of one box (G, 4) with the fused boxes (G, K, 4) of each group."""
    low = np.maximum(box[:, None, :2], fused[..., :2])
    high = np.minimum(box[:, None, 2:], fused[..., 2:])
    shared = np.maximum(high - low, 0.0).prod(axis=-1)
    areas = (box[:, 2:] - box[:, :2]).prod(axis=-1)[:, None] + (fused[..., 2:] - fused[..., :2]).prod(axis=-1)
    union = areas - shared
    ratios: NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratios
