"""Oriented AP, held against pycocotools on axis-aligned rectangles and against plain loops with shapely on others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

from uveitis_assets.detection.configuration import EvaluationConfiguration
from uveitis_assets.detection.evaluation import oriented_average_precision as module
from uveitis_assets.detection.evaluation.evaluate import evaluate_detections
from uveitis_assets.detection.evaluation.matching import best_first
from uveitis_assets.detection.evaluation.oriented_average_precision import (
    OrientedAveragePrecision,
    as_rectangles,
    has_oriented_labels,
    oriented_average_precision,
)
from uveitis_assets.detection.evaluation.report import validation_report
from uveitis_assets.detection.inference.detections import Detections, GroundTruth
from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.labels.oriented_boxes import parse_oriented_boxes
from uveitis_assets_tests.detection.evaluation.cases import found, labelled, lesions, random_case
from uveitis_assets_tests.detection.evaluation.pycocotools_reference import PycocotoolsPrecision

CLASSES = [1, 2, 3]
STRICT = [round(0.5 + 0.05 * step, 2) for step in range(10)]
Floats = NDArray[np.floating]


def upright(boxes: Floats) -> NDArray[np.float32]:
    """The corners of axis-aligned boxes, in order around them."""
    return boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2).astype(np.float32)


def turned(corners: Floats, angles: Floats) -> NDArray[np.float32]:
    """Each box turned about its centre, angles in radians."""
    centres = corners.mean(axis=1, keepdims=True)
    cosine, sine = np.cos(angles), np.sin(angles)
    rotations = np.stack([np.stack([cosine, -sine], -1), np.stack([sine, cosine], -1)], -2)
    return (np.einsum("nij,nkj->nki", rotations, corners - centres) + centres).astype(np.float32)


def oriented_case(seed: int, spread: float, score_step: float = 0.0) -> tuple[list[GroundTruth], list[Detections]]:
    """A random case with corners, lesions turned by up to ``spread`` radians and detections on them about as much."""
    truths, detections = random_case(
        seed, n_images=12, n_classes=3, n_lesions=6, n_detections=14, score_step=score_step
    )
    rng = np.random.default_rng(seed)
    with_corners = []
    for truth, detection in zip(truths, detections, strict=True):
        angle = rng.uniform(-spread, spread)
        own = np.full(len(truth), angle), angle + rng.normal(0, 0.1 * spread, len(detection))
        with_corners.append(
            (
                replace(truth, corners=turned(upright(truth.boxes), own[0])),
                replace(detection, corners=turned(upright(detection.boxes), own[1])),
            )
        )
    return [case[0] for case in with_corners], [case[1] for case in with_corners]


def by_loops(
    truths: list[GroundTruth], detections: list[Detections], category: int, iou: float, max_detections: int
) -> float | None:
    """AP of one class as the rules are told: no arrays, polygons by shapely."""
    n_lesions = sum(int((truth.labels == category).sum()) for truth in truths)
    if n_lesions == 0:
        return None
    outcome: list[tuple[float, bool]] = []
    for truth, detection in zip(truths, detections, strict=True):
        free = [shapely.Polygon(truth.corners[row]) for row in np.flatnonzero(truth.labels == category)]
        rows = sorted(np.flatnonzero(detection.labels == category), key=lambda row: -detection.scores[row])
        for row in rows[:max_detections]:
            assert detection.corners is not None
            outline = shapely.Polygon(detection.corners[row])
            overlaps = [outline.intersection(other).area / outline.union(other).area for other in free]
            best = int(np.argmax(overlaps)) if overlaps else -1
            hit = best >= 0 and overlaps[best] >= iou
            if hit:
                free.pop(best)
            outcome.append((float(detection.scores[row]), hit))
    outcome.sort(key=lambda pair: -pair[0])
    points = []
    hits = 0
    for count, (_, hit) in enumerate(outcome, start=1):
        hits += hit
        points.append((hits / n_lesions, hits / count))
    at_recalls = [
        max((precision for recall, precision in points if recall >= step / 100), default=0.0) for step in range(101)
    ]
    return float(np.mean(at_recalls))


def assert_equal(per_class: dict[int, float | None], expected: dict[int, float | None]) -> None:
    assert {category for category, value in per_class.items() if value is None} == {
        category for category, value in expected.items() if value is None
    }
    for category, value in expected.items():
        if value is not None:
            assert per_class[category] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("max_detections", [3, 400])
def test_on_axis_aligned_rectangles_it_is_pycocotools_ap(seed: int, max_detections: int) -> None:
    truths, detections = oriented_case(seed, spread=0.0, score_step=0.1 if seed % 2 else 0.0)
    result = oriented_average_precision(truths, detections, CLASSES, selection_iou=0.5, max_detections=max_detections)
    # Ties of scores: pycocotools takes them as they stand.
    ordered = [best_first(detection) for detection in detections]
    reference = PycocotoolsPrecision(truths, ordered, CLASSES, [0.3, *STRICT], max_detections)
    for found_ap, ious in ((result.iou_30, [0.3]), (result.iou_50, [0.5]), (result.iou_50_95, STRICT)):
        assert_equal(found_ap.per_class, reference.per_class(ious))
    assert result.iou_50.mean is not None
    assert 0 < result.iou_50.mean < 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("max_detections", [3, 400])
def test_on_rotated_rectangles_it_is_what_plain_loops_with_shapely_give(seed: int, max_detections: int) -> None:
    truths, detections = oriented_case(seed, spread=1.5)
    result = oriented_average_precision(truths, detections, CLASSES, selection_iou=0.5, max_detections=max_detections)
    for category in CLASSES:
        naive = [by_loops(truths, detections, category, iou, max_detections) for iou in (0.3, *STRICT)]
        assert naive[0] is not None
        assert_equal(result.iou_30.per_class, {category: naive[0]})
        assert_equal(result.iou_50.per_class, {category: naive[1]})
        assert_equal(result.iou_50_95.per_class, {category: float(np.mean(naive[1:]))})
    assert result.iou_50_95.mean is not None
    assert 0 < result.iou_50_95.mean < 1


def perfect(truth: GroundTruth) -> Detections:
    return Detections(truth.boxes, truth.scores, truth.labels, truth.corners)


def values(result: OrientedAveragePrecision) -> list[float | None]:
    return [result.iou_30.mean, result.iou_50.mean, result.iou_50_95.mean]


def test_a_detector_of_the_labels_rectangles_is_perfect_whatever_the_order_of_the_corners() -> None:
    truths, _ = oriented_case(5, spread=1.5)
    shuffled = [replace(truth, corners=truth.corners[:, [2, 0, 3, 1]]) for truth in truths]
    assert values(
        oriented_average_precision(
            shuffled, [perfect(truth) for truth in truths], CLASSES, selection_iou=0.5, max_detections=400
        )
    ) == pytest.approx([1, 1, 1])


def test_axis_aligned_answers_to_oblique_lesions_score_lower() -> None:
    truths, _ = oriented_case(6, spread=0.0)
    oblique = [replace(truth, corners=turned(truth.corners, np.full(len(truth), 0.7))) for truth in truths]
    answers = [perfect(truth) for truth in truths]
    strict = oriented_average_precision(oblique, answers, CLASSES, selection_iou=0.5, max_detections=400).iou_50_95.mean
    assert strict is not None
    assert strict < 0.5


def test_the_published_labels_are_compared_as_their_smallest_rectangles(real_data: Path) -> None:
    space = load_class_map().label_space("obb")
    truths = []
    for path in sorted((real_data / "uwf700_labels").rglob("*.txt"))[:12]:
        label = parse_oriented_boxes(path.read_bytes(), path.name, space, (3900, 3072))
        assert label.corners is not None
        count = len(label.corners)
        truths.append(
            GroundTruth(
                label.boxes.astype(np.float32),
                label.category_ids,
                label.corners.astype(np.float32),
                np.ones(count, np.float32),
            )
        )
    assert has_oriented_labels(truths)
    rectangles = [as_rectangles(truth) for truth in truths]
    expected = [shapely.minimum_rotated_rectangle(shapely.polygons(truth.corners)) for truth in truths]
    for rectangle, outlines in zip(rectangles, expected, strict=True):
        np.testing.assert_allclose(shapely.area(shapely.polygons(rectangle.corners)), shapely.area(outlines), rtol=1e-4)
    ids = sorted({int(label) for truth in truths for label in truth.labels})
    answers = [perfect(truth) for truth in rectangles]
    result = oriented_average_precision(truths, answers, ids, selection_iou=0.5, max_detections=400)
    assert values(result) == pytest.approx([1, 1, 1])


def test_a_class_without_lesions_has_no_ap_and_is_left_out_of_the_mean() -> None:
    truth = lesions((1, (0, 0, 10, 10)))
    truth = replace(truth, corners=upright(truth.boxes))
    detection = found((1, (0, 0, 10, 10), 0.9), (2, (0, 0, 10, 10), 0.9))
    detection = replace(detection, corners=upright(detection.boxes))
    result = oriented_average_precision([truth], [detection], [1, 2], selection_iou=0.5, max_detections=400)
    assert result.iou_50.per_class == {1: 1.0, 2: None}
    assert result.iou_50.mean == 1.0


def test_lesions_or_detections_without_oriented_boxes_are_refused() -> None:
    unknown, detection = lesions((1, (0, 0, 10, 10))), found((1, (0, 0, 10, 10), 0.9))
    oriented = replace(unknown, corners=upright(unknown.boxes))
    assert not has_oriented_labels([oriented, unknown])
    assert has_oriented_labels([oriented, lesions()])
    assert not has_oriented_labels([lesions()])
    with pytest.raises(ValueError, match="image 1: expected detections with corners"):
        oriented_average_precision(
            [oriented] * 2, [Detections.empty(), detection], [1], selection_iou=0.5, max_detections=400
        )
    with pytest.raises(ValueError, match="image 0: expected an oriented box for each of 1 lesions, found 1 without"):
        oriented_average_precision([unknown], [Detections.empty()], [1], selection_iou=0.5, max_detections=400)


@pytest.mark.parametrize("oriented", [True, False])
def test_an_evaluation_and_its_report_hold_oriented_ap_when_both_sides_are_oriented(oriented: bool) -> None:
    truths, detections = oriented_case(3, spread=1.0)
    if not oriented:
        detections = [replace(detection, corners=None) for detection in detections]
    categories = {category: f"class {category}" for category in CLASSES}
    settings = EvaluationConfiguration(bootstrap_samples=0, max_detections=9)
    evaluation = evaluate_detections(labelled(truths), detections, categories, settings)
    report = validation_report(evaluation, best_epoch=1, fingerprint="0123456789abcdef")["ap_oriented"]
    if not oriented:
        assert evaluation.oriented_average_precision is None
        assert report is None
        return
    expected = oriented_average_precision(truths, detections, CLASSES, selection_iou=0.5, max_detections=9)
    assert evaluation.oriented_average_precision is not None
    assert evaluation.oriented_average_precision.iou_50_95 == expected.iou_50_95
    assert [report[iou] for iou in ("0.3", "0.5", "0.5:0.95")] == pytest.approx(values(expected))
    assert report["per_class"]["2"]["0.5"] == expected.iou_50.per_class[2]


def test_the_selection_ap_is_of_the_boxes_that_the_configuration_names_and_the_report_names_them() -> None:
    truths, detections = oriented_case(3, spread=1.0)
    categories = {category: f"class {category}" for category in CLASSES}
    by_loop = [by_loops(truths, detections, category, 0.4, 400) for category in CLASSES]
    selections = {}
    for boxes in ("axis_aligned", "oriented"):
        settings = EvaluationConfiguration(selection=boxes, selection_iou=0.4, bootstrap_samples=20)
        evaluation = evaluate_detections(labelled(truths), detections, categories, settings)
        report = validation_report(evaluation, best_epoch=1, fingerprint="0123456789abcdef")
        assert report["ap"]["selection_boxes"] == boxes
        assert report["best_val_mAP_proxy"] == report["ap"]["selection"] == evaluation.map_selection
        assert report["definitions"]["mAP_proxy"].startswith(f"image-level COCO AP of {boxes.replace('_', '-')} boxes")
        low, high = report["ap"]["selection_interval"]
        assert low <= report["ap"]["selection"] <= high
        selections[boxes] = evaluation.map_selection
    assert selections["oriented"] == pytest.approx(np.mean(by_loop), abs=1e-6)
    assert abs(selections["oriented"] - selections["axis_aligned"]) > 0.001
    settings = EvaluationConfiguration(selection="oriented")
    without = [replace(detection, corners=None) for detection in detections]
    with pytest.raises(ValueError, match="expected detections with corners"):
        evaluate_detections(labelled(truths), without, categories, settings)


def test_rotated_overlaps_are_computed_once_also_when_they_choose_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    truths, detections = oriented_case(3, spread=1.0)
    calls = 0
    overlap = module.rotated_overlap

    def counted(found: Detections, truth: GroundTruth) -> NDArray[np.float64]:
        nonlocal calls
        calls += 1
        return overlap(found, truth)

    monkeypatch.setattr(module, "rotated_overlap", counted)
    settings = EvaluationConfiguration(selection="oriented", bootstrap_samples=0)
    categories = {category: f"class {category}" for category in CLASSES}
    evaluate_detections(labelled(truths), detections, categories, settings)
    pairs = zip(truths, detections, strict=True)
    assert calls == sum(len(set(truth.labels) & set(found.labels)) for truth, found in pairs)
