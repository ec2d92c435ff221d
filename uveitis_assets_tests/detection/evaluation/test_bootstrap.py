"""Resampled metrics held against evaluating real copies of the drawn patients' images, and against scipy."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.stats

from uveitis_assets.detection.configuration import EvaluationConfiguration
from uveitis_assets.detection.evaluation.average_precision import interpolated_average_precision
from uveitis_assets.detection.evaluation.bootstrap import (
    Interval,
    PatientResamples,
    bias_corrected_interval,
    patient_resamples,
    percentile_interval,
    resampled_average_precision,
    resampled_sensitivities,
)
from uveitis_assets.detection.evaluation.evaluate import evaluate_detections
from uveitis_assets.detection.evaluation.froc import froc_curve
from uveitis_assets.detection.evaluation.matching import ScoredHits, best_first, pool
from uveitis_assets.detection.inference.detections import Detections, GroundTruth
from uveitis_assets_tests.detection.evaluation.cases import found, labelled, lesions, match_images, random_case
from uveitis_assets_tests.patience import patience

RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
CLASSES = (1, 2, 3)


def matched(truths: list[GroundTruth], detections: list[Detections]) -> dict[int, ScoredHits]:
    ordered = [best_first(item) for item in detections]
    return match_images(truths, ordered, CLASSES, iou_threshold=0.3, max_detections=400)


def image_copies(resamples: PatientResamples, sample: int) -> list[int]:
    times = resamples.weights[sample][resamples.patient_of_image].astype(int)
    return np.repeat(np.arange(len(times)), times).tolist()


@pytest.mark.parametrize("cells", [4_000_000, 100])
def test_every_resample_equals_an_evaluation_of_the_drawn_images(cells: int) -> None:
    truths, detections = random_case(4, n_images=12, n_classes=3, n_lesions=4, n_detections=25)
    resamples = patient_resamples([f"p{index // 3}" for index in range(12)], n_samples=25, seed=1)
    hits = matched(truths, detections)
    measured = {
        category: resampled_average_precision(part, resamples, cells_at_once=cells) for category, part in hits.items()
    }
    rates = {
        category: resampled_sensitivities(part, RATES, resamples, cells_at_once=cells)
        for category, part in hits.items()
    }
    pooled = resampled_sensitivities(pool(hits.values()), RATES, resamples, cells_at_once=cells)
    for sample in range(25):
        copies = image_copies(resamples, sample)
        again = matched([truths[index] for index in copies], [detections[index] for index in copies])
        for category, part in again.items():
            ap = interpolated_average_precision(part)
            assert measured[category][sample] == pytest.approx(np.nan if ap is None else ap, abs=1e-9, nan_ok=True)
            expected = [np.nan if value is None else value for value in froc_curve(part, RATES).at_rates]
            assert rates[category][sample] == pytest.approx(expected, abs=1e-9, nan_ok=True)
        assert pooled[sample] == pytest.approx(froc_curve(pool(again.values()), RATES).at_rates, abs=1e-9)


def test_patients_are_drawn_whole_and_as_many_as_there_are() -> None:
    patients = ["b", "a", "b", "c", "a"]
    resamples = patient_resamples(patients, n_samples=200, seed=3)
    assert resamples.weights.shape == (200, 3)
    assert (resamples.weights.sum(axis=1) == 3).all()
    assert resamples.patient_of_image.tolist() == [1, 0, 1, 2, 0]
    assert resamples.weights.mean(axis=0) == pytest.approx(np.ones(3), abs=0.2)


def test_the_same_seed_draws_the_same_patients_and_another_seed_others() -> None:
    patients = [f"p{index}" for index in range(9)]
    first, second, other = (patient_resamples(patients, n_samples=20, seed=seed).weights for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def sensitivity_interval(hits: ScoredHits, resamples: PatientResamples) -> Interval:
    interval = percentile_interval(resampled_sensitivities(hits, [1.0], resamples)[:, 0])
    assert interval is not None
    return interval


def test_intervals_agree_with_scipy_s_bootstrap() -> None:
    """One lesion per patient and no false alarms: the sensitivity is a mean, which scipy can resample on its own."""
    rng = np.random.default_rng(5)
    box = (0.0, 0.0, 10.0, 10.0)
    is_found = rng.random(120) < 0.6
    detections = [found((1, box, 0.9)) if hit else Detections.empty() for hit in is_found]
    hits = matched([lesions((1, box))] * 120, detections)[1]
    resamples = patient_resamples([f"p{index:03d}" for index in range(120)], n_samples=4000, seed=6)
    ours = sensitivity_interval(hits, resamples)
    theirs = scipy.stats.bootstrap(
        (is_found,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(7)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.012)


def test_intervals_over_patients_are_wider_than_over_images_when_patients_differ() -> None:
    """Ten patients of ten images, each patient found everywhere or nowhere: images taken for independent mislead."""
    box = (0.0, 0.0, 10.0, 10.0)
    detections = [found((1, box, 0.9)) if index // 10 % 2 else Detections.empty() for index in range(100)]
    hits = matched([lesions((1, box))] * 100, detections)[1]
    widths = []
    for patients in ([f"p{index // 10}" for index in range(100)], [f"p{index}" for index in range(100)]):
        resamples = patient_resamples(patients, n_samples=1000, seed=8)
        interval = sensitivity_interval(hits, resamples)
        widths.append(interval.high - interval.low)
    # The standard error of a share grows by the square root of the cluster size, here 10.
    assert widths[0] / widths[1] == pytest.approx(np.sqrt(10), rel=0.25)


def test_nine_of_ten_intervals_or_more_cover_the_true_sensitivity() -> None:
    """Data sets of 40 patients with 1-3 lesions, each found with probability 0.6; at a nominal 95 %."""
    rng = np.random.default_rng(9)
    box = (0.0, 0.0, 10.0, 10.0)
    covered = 0
    for trial in range(100):
        n_images = rng.integers(1, 4, 40)
        patients = [f"p{patient}" for patient in range(40) for _ in range(n_images[patient])]
        detections = [found((1, box, 0.9)) if rng.random() < 0.6 else Detections.empty() for _ in patients]
        hits = matched([lesions((1, box))] * len(patients), detections)[1]
        resamples = patient_resamples(patients, n_samples=300, seed=trial)
        interval = sensitivity_interval(hits, resamples)
        covered += interval.low <= 0.6 <= interval.high
    assert 88 <= covered <= 100


def test_the_bias_correction_equals_scipy_s_where_skewness_plays_no_part() -> None:
    """The mean of symmetric values; scipy's acceleration, from the jackknife, is next to 0."""
    rng = np.random.default_rng(13)
    sample = np.concatenate([rng.normal(size=200)] * 2) * np.repeat([1, -1], 200)
    theirs = scipy.stats.bootstrap((sample,), np.mean, n_resamples=3000, method="BCa", rng=np.random.default_rng(14))
    ours = bias_corrected_interval(theirs.bootstrap_distribution, float(sample.mean()))
    assert ours is not None
    interval = theirs.confidence_interval
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), abs=1e-3)


def test_an_estimate_at_the_median_gives_the_plain_percentiles() -> None:
    values = np.random.default_rng(3).gamma(2.0, size=1001)
    interval = bias_corrected_interval(values, float(np.median(values)))
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_resamples_above_the_estimate_move_the_interval_down() -> None:
    """Normal resamples around 1 of an estimate of 0: the corrected interval is that of normal resamples around -1."""
    values = np.random.default_rng(4).normal(1.0, 1.0, size=200_000)
    interval = bias_corrected_interval(values, 0.0)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((-1 - 1.96, -1 + 1.96), abs=0.1)


def test_intervals_of_the_mean_ap_of_rare_classes_are_corrected_for_its_bias() -> None:
    """Twelve classes of ten lesions in 30 patients; scores say nothing, and so AP's upward bias is large.

    Over simulated studies the plain percentile interval lies too high: the correction has to bring it down.
    """
    rng = np.random.default_rng(11)
    resampled, estimates = [], []
    for _ in range(12):
        n = 40
        scores = np.sort(rng.random(n).astype(np.float32))[::-1]
        lesions_here = rng.multinomial(10, np.full(30, 1 / 30))
        hits = ScoredHits(scores, rng.permutation(n) < 7, rng.integers(0, 30, n), lesions_here)
        estimates.append(interpolated_average_precision(hits))
        resamples = patient_resamples([f"p{index}" for index in range(30)], n_samples=500, seed=12)
        resampled.append(resampled_average_precision(hits, resamples))
    values, estimate = np.nanmean(resampled, axis=0), float(np.mean(np.asarray(estimates, float)))
    interval = bias_corrected_interval(values, estimate)
    assert interval is not None
    assert np.mean(values > estimate) > 0.6
    assert interval.low < np.quantile(values, 0.025)
    assert interval.high < np.quantile(values, 0.975)


def test_a_metric_that_exists_in_no_resample_has_no_interval() -> None:
    assert percentile_interval(np.full(10, np.nan)) is None
    assert percentile_interval(np.asarray([np.nan, 0.25, np.nan])) == Interval(0.25, 0.25)
    assert bias_corrected_interval(np.full(10, np.nan), 0.5) is None
    assert bias_corrected_interval(np.asarray([0.5]), None) is None
    assert bias_corrected_interval(np.asarray([np.nan, 0.25, np.nan]), 0.25) == Interval(0.25, 0.25)


def test_the_point_estimates_lie_inside_their_intervals() -> None:
    truths, detections = random_case(6, n_images=40, n_classes=3, n_lesions=6, n_detections=15)
    evaluation = evaluate_detections(
        labelled(truths), detections, {1: "a", 2: "b", 3: "c"}, EvaluationConfiguration(bootstrap_samples=300)
    )
    assert evaluation.intervals is not None
    interval, value = evaluation.intervals.map_selection, evaluation.map_selection
    assert interval is not None
    assert value is not None
    assert interval.low < value < interval.high
    for sensitivity, rate_interval in zip(
        evaluation.froc.pooled.at_rates, evaluation.intervals.pooled_sensitivity, strict=True
    ):
        assert rate_interval is not None
        assert sensitivity is not None
        assert rate_interval.low <= sensitivity <= rate_interval.high


def test_bounds_of_the_sensitivity_rise_with_the_rate() -> None:
    truths, detections = random_case(7, n_images=20, n_classes=3, n_lesions=4, n_detections=20)
    resamples = patient_resamples([f"p{index // 2}" for index in range(20)], n_samples=200, seed=2)
    for hits in matched(truths, detections).values():
        values = resampled_sensitivities(hits, RATES, resamples)
        intervals = [percentile_interval(values[:, rate]) for rate in range(len(RATES))]
        bounds = np.asarray([(interval.low, interval.high) for interval in intervals if interval is not None])
        assert len(bounds) == len(RATES)
        assert (np.diff(bounds, axis=0) >= 0).all()


def test_a_thousand_resamples_of_many_images_take_seconds() -> None:
    """30,000 detections in 300 images: counted in processor time, which a busy machine hardly changes."""
    rng = np.random.default_rng(10)
    n = 30_000
    hits = ScoredHits(
        np.sort(rng.random(n).astype(np.float32))[::-1], rng.random(n) < 0.1, rng.integers(0, 300, n), np.full(300, 15)
    )
    resamples = patient_resamples([f"p{index}" for index in range(300)], n_samples=1000, seed=0)
    start = time.process_time()
    resampled_average_precision(hits, resamples)
    resampled_sensitivities(hits, RATES, resamples)
    assert time.process_time() - start < patience(5)
