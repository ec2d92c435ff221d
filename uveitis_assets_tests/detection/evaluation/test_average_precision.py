"""AP held against pycocotools, which is run here on annotations written out independently."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from uveitis_assets.detection.evaluation.average_precision import (
    AveragePrecision,
    coco_average_precision,
    interpolated_average_precision,
    precision_recall,
)
from uveitis_assets.detection.evaluation.matching import best_first, in_fixed_order
from uveitis_assets.detection.inference.detections import Detections, GroundTruth
from uveitis_assets_tests.detection.evaluation.cases import drawn_cases, found, lesions, match_images, random_case
from uveitis_assets_tests.detection.evaluation.pycocotools_reference import PycocotoolsPrecision

CATEGORIES = {1: "exudats", 2: "hemorragie", 3: "hyalite"}


def assert_equal_to_pycocotools(truths: list[GroundTruth], detections: list[Detections], max_detections: int) -> None:
    truths, detections = [in_fixed_order(item) for item in truths], [best_first(item) for item in detections]
    ours = coco_average_precision(truths, detections, CATEGORIES, selection_iou=0.4, max_detections=max_detections)
    strict = np.linspace(0.5, 0.95, 10).tolist()
    reference = PycocotoolsPrecision(truths, detections, CATEGORIES, [0.3, 0.4, *strict], max_detections)
    for name, ious, small in [
        ("iou_30", [0.3], False),
        ("iou_50", [0.5], False),
        ("iou_50_95", strict, False),
        ("selection", [0.4], False),
        ("small", strict, True),
        ("small_30", [0.3], True),
    ]:
        expected = reference.per_class(ious, small=small)
        measured = getattr(ours, name).per_class
        assert measured.keys() == expected.keys()
        for category, value in expected.items():
            assert measured[category] == (None if value is None else pytest.approx(value, abs=1e-6)), (name, category)
    for iou in (0.3, 0.5, strict[-1]):
        expected = reference.per_class([iou])
        hits = match_images(truths, detections, CATEGORIES, iou_threshold=iou, max_detections=max_detections)
        for category, value in expected.items():
            measured = interpolated_average_precision(hits[category])
            assert measured == (None if value is None else pytest.approx(value, abs=1e-6)), (iou, category)


@pytest.mark.parametrize("seed", range(12))
def test_ap_of_random_images_equals_pycocotools(seed: int) -> None:
    truths, detections = random_case(
        seed, n_images=12, n_classes=3, n_lesions=8, n_detections=25, score_step=0.1 if seed % 2 else 0.0
    )
    assert_equal_to_pycocotools(truths, detections, max_detections=400 if seed % 3 else 4)


@settings(max_examples=40)
@given(drawn_cases())
def test_ap_equals_pycocotools_for_ties_equal_boxes_empty_images_and_absent_classes(
    case: tuple[list[GroundTruth], list[Detections]],
) -> None:
    assert_equal_to_pycocotools(*case, max_detections=3)


def test_a_class_without_lesions_has_no_ap_and_does_not_lower_the_mean() -> None:
    truths = [lesions((1, (0, 0, 10, 10)))]
    detections = [found((1, (0, 0, 10, 10), 0.9), (2, (50, 50, 60, 60), 0.8))]
    ap = coco_average_precision(truths, detections, CATEGORIES, selection_iou=0.5, max_detections=400)
    assert ap.iou_50.per_class == {1: 1.0, 2: None, 3: None}
    assert ap.iou_50.mean == 1.0
    assert AveragePrecision({1: None}).mean is None


def test_a_class_with_lesions_that_nobody_found_has_ap_zero() -> None:
    ap = coco_average_precision(
        [lesions((1, (0, 0, 10, 10)))], [Detections.empty()], {1: "exudats"}, selection_iou=0.5, max_detections=400
    )
    assert ap.iou_30.per_class == {1: 0.0}


def test_a_second_detection_on_a_taken_lesion_takes_the_neighbouring_lesion() -> None:
    """Two lesions side by side; both detections overlap the left one most, the second reaches the right one too."""
    truths = [lesions((1, (0, 0, 20, 20)), (1, (4, 0, 24, 20)))]
    detections = [found((1, (0, 0, 20, 20), 0.9), (1, (1, 0, 21, 20), 0.8))]
    ap = coco_average_precision(truths, detections, {1: "exudats"}, selection_iou=0.5, max_detections=400)
    assert ap.iou_50.mean == 1.0


def test_precision_and_recall_are_refused_without_lesions() -> None:
    hits = match_images([lesions()], [found((1, (0, 0, 4, 4), 0.5))], [1], iou_threshold=0.5, max_detections=9)[1]
    with pytest.raises(ValueError, match="at least one lesion, found none"):
        precision_recall(hits)
