"""Per-class operating points against a sweep over all thresholds."""

from dataclasses import replace

import numpy as np
import pytest

from uveitis_assets.detection.configuration import DetectorConfiguration
from uveitis_assets.detection.evaluation.froc import free_response
from uveitis_assets.detection.evaluation.matching import ScoredHits
from uveitis_assets.detection.evaluation.operating_points import (
    NOTHING,
    at_operating_scores,
    operating_scores,
    read_operating_scores,
)
from uveitis_assets_tests.detection.known_detectors import detections

N_IMAGES = 7
RATES = (0.25, 1.0, 3.0)


def hits_of(seed: int, n: int = 60, n_lesions: int = 20) -> ScoredHits:
    rng = np.random.default_rng(seed)
    scores = np.sort(np.round(rng.random(n), 2).astype(np.float32))[::-1]
    lesions = np.bincount(rng.integers(0, N_IMAGES, n_lesions), minlength=N_IMAGES)
    return ScoredHits(scores, rng.random(n) < 0.3, rng.integers(0, N_IMAGES, n), lesions)


@pytest.mark.parametrize("seed", range(6))
def test_the_point_is_the_lowest_threshold_within_the_rate(seed: int) -> None:
    hits = hits_of(seed)
    points = operating_scores(free_response({3: hits}, RATES), N_IMAGES)
    for rate in RATES:
        allowed = [
            threshold
            for threshold in sorted(set(hits.scores.tolist()))
            if (~hits.hits[hits.scores >= np.float32(threshold)]).sum() <= rate * N_IMAGES
        ]
        assert points[f"{rate:g}"]["3"] == pytest.approx(min(allowed, default=NOTHING))


def test_a_class_whose_best_detections_are_false_writes_nothing_and_one_without_lesions_keeps_the_threshold() -> None:
    rng = np.random.default_rng(0)
    false = replace(hits_of(0), hits=np.zeros(60, bool), scores=np.full(60, 0.5, np.float32))
    lesionless = hits_of(1, n_lesions=0)
    points = operating_scores(free_response({1: false, 2: lesionless}, (1.0,)), N_IMAGES)
    assert points == {"1": {"1": NOTHING}}
    scores = read_operating_scores({"val_metrics": {"operating_scores": points}}, 1.0)
    found = detections([((0, 0, 5, 5), float(score), label) for label in (1, 2) for score in rng.random(10)])
    kept = at_operating_scores(found, scores, 0.4)
    assert set(kept.labels.tolist()) == {2}
    assert len(kept) == int((found.scores[found.labels == 2] >= 0.4).sum())


def test_rates_that_nothing_measured_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.25, 1.*found 2"):
        read_operating_scores({"val_metrics": {"operating_scores": {"0.25": {}, "1": {}}}}, 2.0)
    with pytest.raises(ValueError, match="operating_fp_per_image"):
        DetectorConfiguration.model_validate({"inference": {"operating_fp_per_image": 3.3}})
    with pytest.raises(ValueError, match="one fold"):
        DetectorConfiguration.model_validate({"inference": {"operating_fp_per_image": 1.0, "folds": [0, 1]}})
