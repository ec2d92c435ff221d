"""Bootstrap intervals over patients of AP and FROC sensitivities, from one matching.

Images of one patient are no independent samples, so patients are drawn with replacement and an image counts as often
as its patient was drawn. Hits do not depend on other images, so a resample is a weight per patient, and what a metric
needs is how many detections and hits of each patient stand above each hit in the order of scores: one matrix product
gives the curves of all resamples. Where scores tie between images, the copies of a detection stand together.

Intervals of AP are bias-corrected percentiles (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 14,
with acceleration 0): AP of few lesions is biased upwards, and its resamples once more. The plain percentile interval of
the mean AP of 20 classes with some 18 lesions each in 30 patients covered the true value in 73 % of simulated studies,
the corrected one in 88 %; with one class or more lesions both came near 95 %. FROC sensitivities have no such bias
(both kinds covered 91-95 %): theirs are plain percentiles, which rise with the rate as the sensitivity does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.evaluation.average_precision import RECALLS
from uveitis_assets.detection.evaluation.froc import allowed_false_positives, threshold_ends
from uveitis_assets.detection.evaluation.matching import ScoredHits

_NORMAL = NormalDist()
CELLS_AT_ONCE = 4_000_000
"""Hits times resamples held at once; 32 MB per array of float64."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PatientResamples:
    """How often each patient was drawn: ``weights`` float32 (B, P), whole numbers.

    ``patient_of_image``: int64 (I,).
    """

    weights: NDArray[np.float32]
    patient_of_image: NDArray[np.int64]


def patient_resamples(patients: Sequence[str], *, n_samples: int, seed: int) -> PatientResamples:
    """Draw as many patients as there are, with replacement, ``n_samples`` times.

    ``patients`` names the patient of each image. The same seed draws the same patients for every metric; names matter
    by their sorted order only.
    """
    names, patient_of_image = np.unique(np.asarray(patients), return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_samples)
    return PatientResamples(draws.astype(np.float32), patient_of_image.astype(np.int64))


def resampled_average_precision(
    hits: ScoredHits, resamples: PatientResamples, *, cells_at_once: int = CELLS_AT_ONCE
) -> NDArray[np.float64]:
    """101-point AP in each resample, float64 (B,); NaN in resamples without lesions of the class."""
    n_lesions = _per_resample(hits.lesions, resamples)
    values = np.where(n_lesions > 0, 0.0, np.nan)
    # The precision envelope and the recall change at hits only.
    rows = np.flatnonzero(hits.hits)
    n_found_by, n_hit_by = _counts_up_to(rows, hits, resamples)
    for chunk in _chunks(len(values), len(rows), cells_at_once):
        weights = resamples.weights[chunk]
        n_found, n_hit = (weights @ n_found_by).astype(np.float64), (weights @ n_hit_by).astype(np.float64)
        recall = n_hit / np.maximum(n_lesions[chunk, None], 1)
        precision = n_hit / np.maximum(n_found, 1)
        envelope = np.zeros((len(weights), len(rows) + 1))
        envelope[:, :-1] = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        for offset in np.flatnonzero(n_lesions[chunk] > 0).tolist():
            reached = np.searchsorted(recall[offset], RECALLS, side="left")
            values[chunk.start + offset] = envelope[offset, reached].mean()
    return values


def resampled_sensitivities(
    hits: ScoredHits, rates: Sequence[float], resamples: PatientResamples, *, cells_at_once: int = CELLS_AT_ONCE
) -> NDArray[np.float64]:
    """FROC sensitivity at each rate in each resample, float64 (B, F); NaN in resamples without lesions.

    A rate's false positives are per image of the resample, which holds more images when patients with many were drawn.
    """
    n_lesions = _per_resample(hits.lesions, resamples)
    n_images = _per_resample(np.ones(hits.n_images), resamples)
    allowed = allowed_false_positives(rates, n_images)
    values = np.full((len(n_lesions), len(rates)), np.nan)
    # Thresholds that add no hit never give the best sensitivity at a rate alone.
    ends = threshold_ends(hits.scores)
    ends = ends[np.diff(np.cumsum(hits.hits)[ends], prepend=0) > 0]
    n_found_by, n_hit_by = _counts_up_to(ends, hits, resamples)
    for chunk in _chunks(len(values), len(ends), cells_at_once):
        weights = resamples.weights[chunk]
        n_missed = weights @ (n_found_by - n_hit_by)
        n_hit = np.zeros((len(weights), len(ends) + 1))
        n_hit[:, 1:] = weights @ n_hit_by
        for rate in range(len(rates)):
            within = np.count_nonzero(n_missed <= allowed[rate, chunk, None], axis=1)
            reached = np.take_along_axis(n_hit, within[:, None], axis=1)[:, 0]
            np.divide(reached, n_lesions[chunk], out=values[chunk, rate], where=n_lesions[chunk] > 0)
    return values


def percentile_interval(values: NDArray[np.float64]) -> Interval | None:
    """2.5th and 97.5th percentile of the resamples in which the metric is not NaN; None when it is in all."""
    known = values[np.isfinite(values)]
    return _quantiles(known, 0.025, 0.975) if len(known) else None


def bias_corrected_interval(values: NDArray[np.float64], estimate: float | None) -> Interval | None:
    """95 % bias-corrected percentile interval of a metric.

    The percentiles move by twice the distance of the estimate from the median of the resamples, in standard normal
    units; with the estimate at the median they are the 2.5th and the 97.5th.

    Args:
        values: the metric in each resample; NaN where it does not exist (resamples without lesions of the class).
        estimate: the metric of the images themselves; None when it does not exist.

    Returns:
        None when the metric exists in no resample or not at all.
    """
    known = values[np.isfinite(values)]
    if len(known) == 0 or estimate is None:
        return None
    # Equal to the estimate up to rounding: resamples that give the very images again, or a metric of few values.
    equal = np.isclose(known, estimate, rtol=0, atol=1e-9)
    share_below = (np.count_nonzero((known < estimate) & ~equal) + np.count_nonzero(equal) / 2) / len(known)
    least = 0.5 / len(known)
    shift = 2 * _NORMAL.inv_cdf(min(max(share_below, least), 1 - least))
    tail = _NORMAL.inv_cdf(0.975)
    return _quantiles(known, _NORMAL.cdf(shift - tail), _NORMAL.cdf(shift + tail))


def _quantiles(values: NDArray[np.float64], low: float, high: float) -> Interval:
    bounds = np.quantile(values, [low, high])
    return Interval(float(bounds[0]), float(bounds[1]))


def _per_resample(per_image: NDArray[Any], resamples: PatientResamples) -> NDArray[np.float64]:
    n_patients = resamples.weights.shape[1]
    per_patient = np.bincount(resamples.patient_of_image, weights=per_image, minlength=n_patients)
    return resamples.weights.astype(np.float64) @ per_patient


def _counts_up_to(
    rows: NDArray[np.int64], hits: ScoredHits, resamples: PatientResamples
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Each patient's detections, and hits, up to and including each given row; float32 (P, rows).

    Whole numbers below 2^24, so that float32 products with whole weights are exact whatever the order of summation.
    """
    n_patients = resamples.weights.shape[1]
    segment = np.searchsorted(rows, np.arange(len(hits.scores)))
    counts = []
    for kept in (segment < len(rows), (segment < len(rows)) & hits.hits):
        cell = resamples.patient_of_image[hits.images[kept]] * len(rows) + segment[kept]
        per_segment = np.bincount(cell, minlength=n_patients * len(rows)).reshape(n_patients, len(rows))
        counts.append(np.cumsum(per_segment, axis=1, dtype=np.float32))
    return counts[0], counts[1]


def _chunks(n_samples: int, n_rows: int, cells_at_once: int) -> Iterator[slice]:
    step = max(1, cells_at_once // max(1, n_rows))
    for start in range(0, n_samples, step):
        yield slice(start, min(start + step, n_samples))
