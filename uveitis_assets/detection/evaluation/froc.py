"""Free-response ROC: sensitivity against false positives per image while the score threshold is swept.

Source: Bunch et al., A free response approach to the measurement and characterization of radiographic observer
performance, 1978; fixed false-positive rates as in the LUNA16 evaluation (Setio et al., 2017). Decisions:

- Matching is at image level and per class (see ``matching``): a lesion is hit once, further detections on it are
  false positives, for a reader sees them as such (LUNA16 leaves them out of the count).
- An operating point is a score threshold: detections of equal score come and go together.
- The sensitivity at a rate is that of the lowest threshold whose false positives per image do not exceed it: a step
  function, no interpolation, so that every number can be had by setting a threshold. LUNA16 interpolates linearly
  between the neighbouring points. Where even the best-scored detections exceed the rate it is 0; beyond the last
  point it stays at that of all detections.
- Every image counts in the denominator of the false positives, those without lesions too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.evaluation.matching import ScoredHits, pool

_RATE_TOLERANCE = 1e-9
"""In false positives: rates such as 0.29 times 100 images must not lose a detection to rounding."""


@dataclass(frozen=True, slots=True)
class FrocCurve:
    """Operating points of one class or of all classes pooled, from the highest threshold down.

    ``thresholds`` float32 (K,), ``fp_per_image`` and ``sensitivity`` float64 (K,); ``at_rates`` holds the sensitivity
    at each of the evaluation's rates. ``sensitivity`` is NaN and ``at_rates`` None when there are no lesions.
    """

    thresholds: NDArray[np.float32]
    fp_per_image: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    at_rates: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Froc:
    """The curves of an evaluation; ``rates`` are false positives per image, ascending."""

    rates: tuple[float, ...]
    per_class: dict[int, FrocCurve]
    pooled: FrocCurve


def free_response(hits: Mapping[int, ScoredHits], rates: Iterable[float]) -> Froc:
    """FROC curves per class and pooled over the classes, from hits matched at image level.

    A class's false positives are its own; the pooled curve shares one threshold between the classes and counts the
    false positives of all of them, also of classes without lesions.
    """
    ascending = tuple(sorted(set(rates)))
    return Froc(
        ascending,
        {category: froc_curve(part, ascending) for category, part in hits.items()},
        froc_curve(pool(hits.values()), ascending),
    )


def froc_curve(hits: ScoredHits, rates: Sequence[float]) -> FrocCurve:
    """The operating points of one sweep and the sensitivities at the given false positives per image."""
    ends = threshold_ends(hits.scores)
    hit, missed = np.cumsum(hits.hits)[ends], np.cumsum(~hits.hits)[ends]
    if hits.n_lesions == 0:
        sensitivity = np.full(len(ends), np.nan)
        at_rates: tuple[float | None, ...] = (None,) * len(rates)
    else:
        sensitivity = hit / hits.n_lesions
        within = np.searchsorted(missed, allowed_false_positives(rates, hits.n_images), side="right")
        at_rates = tuple(np.concatenate([[0.0], sensitivity])[within].tolist())
    return FrocCurve(hits.scores[ends], missed / hits.n_images, sensitivity, at_rates)


def threshold_ends(scores: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Index of the last detection at each distinct score, for scores in descending order."""
    if len(scores) == 0:
        return np.zeros(0, np.int64)
    return np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)


def allowed_false_positives(rates: Sequence[float], n_images: int | NDArray[Any]) -> NDArray[np.float64]:
    """Largest number of false positives at each rate; (F,) or, for an array of image counts (B,), (F, B)."""
    return np.multiply.outer(np.asarray(rates, np.float64), n_images) + _RATE_TOLERANCE
