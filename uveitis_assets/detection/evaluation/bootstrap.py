"""Bootstrap intervals over patients of AP and of FROC sensitivities, without matching or COCO evaluation per resample.

Images of one patient are no independent samples, so patients are drawn with replacement and an image counts as often
as its patient was drawn (Efron & Tibshirani, An Introduction to the Bootstrap, 1993: percentile intervals of a cluster
bootstrap). Hits do not depend on other images, so a resample is a weight per image: cumulative sums of weights along
the detections sorted by score give every curve. The same seed draws the same patients for every metric. Where scores
tie between images, copies of a detection stand together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.evaluation.average_precision import RECALLS
from uveitis_assets.detection.evaluation.froc import allowed_false_positives, threshold_ends
from uveitis_assets.detection.evaluation.matching import ScoredHits

_CELLS_AT_ONCE = 8_000_000
"""Detections times resamples held at once; 32 MB per array of int32."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % percentile interval."""

    low: float
    high: float


def patient_resamples(patients: Sequence[str], *, n_samples: int, seed: int) -> NDArray[np.int32]:
    """Draw as many patients as there are, with replacement, ``n_samples`` times.

    Args:
        patients: the patient of each image.

    Returns:
        int32 (n_samples, images): how often each image counts in each resample. Depends on the patients' names by
        their sorted order only.
    """
    names, patient_of_image = np.unique(np.asarray(patients), return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_samples)
    return draws.astype(np.int32)[:, patient_of_image]


def resampled_average_precision(hits: ScoredHits, weights: NDArray[np.int32]) -> NDArray[np.float64]:
    """101-point AP in each resample, float64 (B,); NaN in resamples without lesions of the class."""
    n_lesions = weights @ hits.lesions
    values = np.where(n_lesions > 0, 0.0, np.nan)
    hit_rows = np.flatnonzero(hits.hits)
    if len(hit_rows) == 0:
        return values
    # The precision envelope changes at hits only: what stands between two of them is added up in one go.
    starts = np.concatenate([[0], hit_rows[:-1] + 1])
    for chunk in _chunks(len(weights), hit_rows[-1] + 1):
        per_detection = _weights_per_detection(hits, weights[chunk], int(hit_rows[-1]) + 1)
        n_hit = np.cumsum(per_detection[hit_rows], axis=0)
        n_found = np.cumsum(np.add.reduceat(per_detection, starts, axis=0), axis=0)
        precision = n_hit / np.maximum(n_found, 1)
        envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1].T
        recall = (n_hit / np.maximum(n_lesions[chunk], 1)).T
        padded = np.concatenate([envelope, np.zeros((len(envelope), 1))], axis=1)
        for offset, sample in enumerate(range(*chunk.indices(len(weights)))):
            if n_lesions[sample] > 0:
                reached = np.searchsorted(recall[offset], RECALLS, side="left")
                values[sample] = padded[offset, reached].mean()
    return values


def resampled_sensitivities(
    hits: ScoredHits, rates: Sequence[float], weights: NDArray[np.int32]
) -> NDArray[np.float64]:
    """FROC sensitivity at each rate in each resample, float64 (B, F); NaN in resamples without lesions."""
    n_lesions = weights @ hits.lesions
    values = np.where(n_lesions > 0, 0.0, np.nan)[:, None].repeat(len(rates), axis=1)
    ends = threshold_ends(hits.scores)
    if len(ends) == 0:
        return values
    allowed = allowed_false_positives(rates, weights.sum(axis=1))
    starts = np.concatenate([[0], ends[:-1] + 1])
    for chunk in _chunks(len(weights), len(hits.scores)):
        per_detection = _weights_per_detection(hits, weights[chunk], len(hits.scores))
        n_found = np.cumsum(np.add.reduceat(per_detection, starts, axis=0), axis=0)
        per_detection[~hits.hits] = 0
        n_hit = np.cumsum(np.add.reduceat(per_detection, starts, axis=0), axis=0)
        n_missed = n_found - n_hit
        n_hit = np.concatenate([np.zeros((1, n_hit.shape[1]), n_hit.dtype), n_hit])
        columns = np.arange(n_hit.shape[1])
        for rate in range(len(rates)):
            within = np.count_nonzero(n_missed <= allowed[rate, chunk], axis=0)
            known = n_lesions[chunk] > 0
            values[chunk, rate][known] = (n_hit[within, columns] / np.maximum(n_lesions[chunk], 1))[known]
    return values


def percentile_interval(values: NDArray[np.float64]) -> Interval | None:
    """2.5th and 97.5th percentile of the resamples in which the metric exists; None when it exists in none."""
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return Interval(float(low), float(high))


def _weights_per_detection(hits: ScoredHits, weights: NDArray[np.int32], n: int) -> NDArray[np.int32]:
    return np.ascontiguousarray(weights.T)[hits.images[:n]]


def _chunks(n_samples: int, n_detections: int) -> Iterator[slice]:
    step = max(1, _CELLS_AT_ONCE // max(1, n_detections))
    for start in range(0, n_samples, step):
        yield slice(start, min(start + step, n_samples))
