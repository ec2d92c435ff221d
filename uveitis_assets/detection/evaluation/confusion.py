"""Counts at the operating score: hits and false positives per class, and confusion of classes.

Per-class counts match within the class; the confusion matrix matches without regard to class, so that a lesion found
under the wrong name shows in its cell instead of as one miss and one false alarm. ``froc`` sweeps the scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.evaluation.matching import Overlap, ScoredHits, box_overlap, match_greedily
from uveitis_assets.detection.inference.detections import Detections, GroundTruth


@dataclass(frozen=True, slots=True)
class OperatingCounts:
    """Hits, false positives and misses of one class; a ratio without a denominator is None."""

    tp: int
    fp: int
    fn: int

    @property
    def precision(self) -> float | None:
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else None

    @property
    def recall(self) -> float | None:
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else None


@dataclass(frozen=True, slots=True)
class Confusion:
    """Lesions by true and by found class: ``matrix`` int64 (C + 1, C + 1), true class in rows.

    Classes are in the order of ``category_ids``; the last row holds detections without a lesion, the last column
    lesions without a detection.
    """

    category_ids: tuple[int, ...]
    matrix: NDArray[np.int64]


def operating_counts(hits: Mapping[int, ScoredHits], score: float) -> dict[int, OperatingCounts]:
    """Per class, counts of the detections that score at least ``score``."""
    counts = {}
    for category, part in hits.items():
        kept = part.scores >= score
        tp = int(np.count_nonzero(part.hits & kept))
        counts[category] = OperatingCounts(tp, int(np.count_nonzero(kept)) - tp, part.n_lesions - tp)
    return counts


def confusion_matrix(
    truths: Sequence[GroundTruth],
    detections: Sequence[Detections],
    category_ids: Iterable[int],
    *,
    score: float,
    iou_threshold: float,
    overlap: Overlap = box_overlap,
) -> Confusion:
    """Confusion of the classes, background included, among detections that score at least ``score``.

    ``detections`` are best score first (see ``matching.best_first``): the best-scored detection on a lesion names it,
    further ones count as detections without a lesion.
    """
    ids = np.asarray(sorted(category_ids), np.int64)
    background = len(ids)
    matrix = np.zeros((background + 1, background + 1), np.int64)
    for truth, found in zip(truths, detections, strict=True):
        kept = found.select(found.scores >= score)
        matched = match_greedily(overlap(kept, truth), iou_threshold)
        wanted, named = np.searchsorted(ids, truth.labels), np.searchsorted(ids, kept.labels)
        rows = np.full(len(kept), background)
        rows[matched >= 0] = wanted[matched[matched >= 0]]
        np.add.at(matrix, (rows, named), 1)
        missed = np.delete(wanted, matched[matched >= 0])
        np.add.at(matrix, (missed, np.full(len(missed), background)), 1)
    return Confusion(tuple(ids.tolist()), matrix)
