"""Which detection hits which lesion, image by image and class by class.

The rule is COCO's greedy one: detections take their turn from the best score down, and each takes the lesion with the
highest overlap that is still free, if the overlap reaches the threshold. A lesion is hit once; a second detection on
it may take another lesion that it overlaps enough, else it is a false positive. What a detection is matched to depends
on better-scored detections only, so one pass serves every score threshold at once. The overlap is a function of its
own: boxes here, rotated boxes elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.inference.detections import Detections, GroundTruth

Overlap = Callable[[Detections, GroundTruth], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class ScoredHits:
    """Detections of one class (or all classes pooled), best score first, and whether each hit a lesion.

    ``scores`` float32 (N,), descending; ``hits`` bool (N,); ``images`` int64 (N,), the image's index; ``lesions``
    int64 (I,), the number of labelled lesions in each image, images without any included.
    """

    scores: NDArray[np.float32]
    hits: NDArray[np.bool_]
    images: NDArray[np.int64]
    lesions: NDArray[np.int64]

    @property
    def n_lesions(self) -> int:
        return int(self.lesions.sum())

    @property
    def n_images(self) -> int:
        return len(self.lesions)


def box_overlap(detections: Detections, truth: GroundTruth) -> NDArray[np.float64]:
    """Intersection over union of axis-aligned boxes, float64 (N, M); 0 where either box has no area."""
    found, wanted = detections.boxes.astype(np.float64)[:, None], truth.boxes.astype(np.float64)[None]
    sides = np.minimum(found[..., 2:], wanted[..., 2:]) - np.maximum(found[..., :2], wanted[..., :2])
    intersection = np.where((sides > 0).all(-1), sides.prod(-1), 0.0)
    union = (found[..., 2:] - found[..., :2]).prod(-1) + (wanted[..., 2:] - wanted[..., :2]).prod(-1) - intersection
    overlap = np.zeros(intersection.shape)
    np.divide(intersection, union, out=overlap, where=intersection > 0)
    return overlap


def match_greedily(overlap: NDArray[np.floating[Any]], threshold: float) -> NDArray[np.int64]:
    """Match the rows (detections, best score first) of an overlap matrix (N, M) to its columns (lesions).

    Returns:
        int64 (N,): the column that each row took, -1 for none. Of equal overlaps the last column is taken, as in
        pycocotools.
    """
    matched = np.full(len(overlap), -1, np.int64)
    if overlap.size == 0:
        return matched
    free = np.where(overlap >= min(threshold, 1 - 1e-10), overlap, -1.0)
    last = overlap.shape[1] - 1
    for row in np.flatnonzero((free >= 0).any(axis=1)):
        column = last - int(free[row, ::-1].argmax())
        if free[row, column] >= 0:
            matched[row] = column
            free[:, column] = -1.0
    return matched


def match_images_at(
    truths: Sequence[GroundTruth],
    detections: Sequence[Detections],
    category_ids: Iterable[int],
    *,
    iou_thresholds: Sequence[float],
    max_detections: int,
    overlap: Overlap = box_overlap,
) -> list[dict[int, ScoredHits]]:
    """Match every image's detections to its lesions of the same class, at each of several thresholds.

    Every overlap is computed once.

    Args:
        truths: lesions per image; the index of an image in this sequence is its index in the result.
        detections: detections per image, best score first (see ``best_first``).
        category_ids: the classes; each gets an entry, lesions and detections of others are left out.
        iou_thresholds: smallest overlaps of a hit; one result for each.
        max_detections: best-scored detections per image and class that count, as in COCO.
        overlap: overlap matrix of detections and lesions in one image.
    """
    lesions = {category: np.zeros(len(truths), np.int64) for category in category_ids}
    parts: list[dict[int, list[tuple[NDArray[np.float32], NDArray[np.bool_], int]]]] = [
        {category: [] for category in lesions} for _ in iou_thresholds
    ]
    for image, (truth, found) in enumerate(zip(truths, detections, strict=True)):
        for category in sorted(lesions.keys() & {*truth.labels.tolist(), *found.labels.tolist()}):
            wanted_rows = np.flatnonzero(truth.labels == category)
            found_rows = np.flatnonzero(found.labels == category)[:max_detections]
            lesions[category][image] = len(wanted_rows)
            matrix = np.zeros((len(found_rows), len(wanted_rows)))
            if matrix.size:
                matrix = overlap(found.select(found_rows), truth_rows(truth, wanted_rows))
            for at_threshold, iou_threshold in zip(parts, iou_thresholds, strict=True):
                hits = match_greedily(matrix, iou_threshold) >= 0
                at_threshold[category].append((found.scores[found_rows], hits, image))
    return [
        {category: _sorted_hits(at_threshold[category], lesions[category]) for category in lesions}
        for at_threshold in parts
    ]


def pool(hits: Iterable[ScoredHits]) -> ScoredHits:
    """All classes together, their lesions added up; the classes share one score threshold.

    Raises:
        ValueError: there are no classes.
    """
    parts = list(hits)
    if not parts:
        raise ValueError("expected at least one class to pool, found none")
    scores = np.concatenate([part.scores for part in parts])
    order = np.argsort(-scores, kind="stable")
    return ScoredHits(
        scores[order],
        np.concatenate([part.hits for part in parts])[order],
        np.concatenate([part.images for part in parts])[order],
        np.sum([part.lesions for part in parts], axis=0),
    )


def best_first(detections: Detections) -> Detections:
    """The same detections, best score first; equal scores are ordered by label and box."""
    coordinates = detections.boxes if detections.corners is None else _with_corners(detections)
    keys = [*coordinates.T[::-1], detections.labels, -detections.scores]
    return detections.select(np.lexsort(keys))


def in_fixed_order(truth: GroundTruth) -> GroundTruth:
    """The same lesions in the order of label and box, whatever came in."""
    return truth_rows(truth, np.lexsort([*truth.boxes.T[::-1], truth.labels]))


def truth_rows(truth: GroundTruth, rows: NDArray[Any]) -> GroundTruth:
    """The given rows (indices or a mask) of the lesions, in that order."""
    return GroundTruth(truth.boxes[rows], truth.labels[rows], truth.corners[rows], truth.scores[rows])


def _with_corners(detections: Detections) -> NDArray[np.float32]:
    assert detections.corners is not None
    return np.concatenate([detections.boxes, detections.corners.reshape(-1, 8)], axis=1)


def _sorted_hits(
    parts: Sequence[tuple[NDArray[np.float32], NDArray[np.bool_], int]], lesions: NDArray[np.int64]
) -> ScoredHits:
    scores = np.concatenate([np.zeros(0, np.float32), *(part[0] for part in parts)])
    hits = np.concatenate([np.zeros(0, np.bool_), *(part[1] for part in parts)])
    images = np.repeat(
        np.asarray([part[2] for part in parts], np.int64), np.asarray([len(part[0]) for part in parts], np.int64)
    )
    order = np.argsort(-scores, kind="stable")
    return ScoredHits(scores[order], hits[order], images[order], lesions)
