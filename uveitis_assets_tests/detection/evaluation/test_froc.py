"""FROC held against a naive sweep that matches anew at every threshold."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings

from uveitis_assets.detection.evaluation.froc import Froc, free_response
from uveitis_assets.detection.evaluation.matching import best_first, in_fixed_order
from uveitis_assets.detection.inference.detections import Detections, GroundTruth
from uveitis_assets_tests.detection.evaluation.cases import drawn_cases, found, lesions, match_images, random_case

RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
CLASSES = (1, 2, 3)


def curves(truths: list[GroundTruth], detections: list[Detections], iou: float = 0.3) -> Froc:
    hits = match_images(truths, detections, CLASSES, iou_threshold=iou, max_detections=400)
    return free_response(hits, RATES)


def by_sweeping(
    truths: list[GroundTruth], detections: list[Detections], classes: Iterable[int], rate: float, iou: float = 0.3
) -> float | None:
    """Every score is tried as a threshold; lesions are matched anew, one by one, with torchvision's IoU."""
    wanted_classes = list(classes)
    n_lesions = sum(int(label in wanted_classes) for truth in truths for label in truth.labels)
    if n_lesions == 0:
        return None
    overlaps_of_images = [
        torchvision.ops.box_iou(torch.from_numpy(item.boxes).double(), torch.from_numpy(truth.boxes).double()).numpy()
        for truth, item in zip(truths, detections, strict=True)
    ]
    best = 0.0
    for threshold in {float(score) for item in detections for score in item.scores}:
        n_hit = n_false = 0
        for truth, item, overlaps in zip(truths, detections, overlaps_of_images, strict=True):
            taken: set[int] = set()
            for row in range(len(item)):  # best score first
                if item.labels[row] not in wanted_classes or item.scores[row] < threshold:
                    continue
                candidates = [
                    (float(overlaps[row, column]), column)
                    for column in range(len(truth))
                    if column not in taken and truth.labels[column] == item.labels[row] and overlaps[row, column] >= iou
                ]
                if candidates:
                    taken.add(max(candidates)[1])
                    n_hit += 1
                else:
                    n_false += 1
        if n_false / len(truths) <= rate:
            best = max(best, n_hit / n_lesions)
    return best


def assert_equal_to_sweep(truths: list[GroundTruth], detections: list[Detections]) -> None:
    truths, detections = [in_fixed_order(item) for item in truths], [best_first(item) for item in detections]
    froc = curves(truths, detections)
    for index, rate in enumerate(RATES):
        assert froc.pooled.at_rates[index] == pytest.approx(by_sweeping(truths, detections, CLASSES, rate))
        for category in CLASSES:
            expected = by_sweeping(truths, detections, [category], rate)
            assert froc.per_class[category].at_rates[index] == pytest.approx(expected)


@pytest.mark.parametrize(("seed", "score_step"), [(0, 0.0), (1, 0.1), (2, 0.0), (3, 0.25)])
def test_sensitivities_equal_a_naive_sweep(seed: int, score_step: float) -> None:
    assert_equal_to_sweep(
        *random_case(seed, n_images=5, n_classes=3, n_lesions=6, n_detections=20, score_step=score_step)
    )


@settings(max_examples=30)
@given(drawn_cases())
def test_sensitivities_equal_a_naive_sweep_with_ties_and_absent_classes(
    case: tuple[list[GroundTruth], list[Detections]],
) -> None:
    assert_equal_to_sweep(*case)


def test_sensitivity_is_read_off_a_swept_threshold_and_not_off_one_threshold() -> None:
    """A low threshold has many false positives; the earlier scripts then reported a recall of 0 at every rate."""
    box = (0.0, 0.0, 10.0, 10.0)
    noise = [(1, (100.0 + 20 * index, 0.0, 110.0 + 20 * index, 10.0), 0.2) for index in range(30)]
    froc = curves([lesions((1, box))], [best_first(found((1, box, 0.9), *noise))])
    assert froc.per_class[1].at_rates == (1.0,) * 6
    assert froc.per_class[1].fp_per_image.tolist() == [0.0, 30.0]


def test_images_without_lesions_count_in_the_false_positives_per_image() -> None:
    box = (0.0, 0.0, 10.0, 10.0)
    miss, hit = (1, (50.0, 50.0, 60.0, 60.0), 0.9), (1, box, 0.5)
    one_image = curves([lesions((1, box))], [found(miss, hit)])
    four_images = curves([lesions((1, box)), *[lesions()] * 3], [found(miss, hit), *[Detections.empty()] * 3])
    assert one_image.per_class[1].at_rates == (0.0, 0.0, 1.0, 1.0, 1.0, 1.0)
    assert four_images.per_class[1].at_rates == (1.0,) * 6


def test_a_second_detection_on_a_lesion_is_a_false_positive() -> None:
    box = (0.0, 0.0, 10.0, 10.0)
    curve = curves([lesions((1, box))], [found((1, box, 0.9), (1, box, 0.8))]).per_class[1]
    assert curve.sensitivity.tolist() == [1.0, 1.0]
    assert curve.fp_per_image.tolist() == [0.0, 1.0]


def test_detections_of_equal_score_are_one_operating_point() -> None:
    box = (0.0, 0.0, 10.0, 10.0)
    curve = curves([lesions((1, box))], [found((1, box, 0.5), (1, (50, 50, 60, 60), 0.5))]).per_class[1]
    assert curve.thresholds.tolist() == [0.5]
    assert curve.at_rates == (0.0, 0.0, 1.0, 1.0, 1.0, 1.0)


def test_a_class_without_lesions_has_no_sensitivity_but_its_false_positives_are_pooled() -> None:
    box = (0.0, 0.0, 10.0, 10.0)
    froc = curves([lesions((1, box))], [found((2, box, 0.9), (1, box, 0.5))])
    assert froc.per_class[2].at_rates == (None,) * 6
    assert np.isnan(froc.per_class[2].sensitivity).all()
    assert froc.pooled.at_rates == (0.0, 0.0, 1.0, 1.0, 1.0, 1.0)


def test_no_detections_at_all_are_a_sensitivity_of_zero() -> None:
    assert curves([lesions((1, (0, 0, 9, 9)))], [Detections.empty()]).pooled.at_rates == (0.0,) * 6


def test_a_rate_is_not_missed_by_rounding() -> None:
    """0.29 false positives per image in 100 images are 29 false positives, not 28.999999999999996."""
    box = (0.0, 0.0, 10.0, 10.0)
    far = [found((1, (50, 50, 60, 60), 0.9)) if index < 29 else Detections.empty() for index in range(99)]
    hits = match_images(
        [lesions((1, box)), *[lesions()] * 99], [found((1, box, 0.5)), *far], [1], iou_threshold=0.3, max_detections=9
    )
    assert free_response(hits, [0.29]).pooled.at_rates == (1.0,)
    assert free_response(hits, [0.28]).pooled.at_rates == (0.0,)
