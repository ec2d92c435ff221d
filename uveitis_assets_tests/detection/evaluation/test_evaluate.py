"""A whole evaluation: its numbers agree with each other, and nothing but the content changes them."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys

import numpy as np
import pytest

from uveitis_assets.detection.configuration import EvaluationConfiguration
from uveitis_assets.detection.evaluation.average_precision import interpolated_average_precision
from uveitis_assets.detection.evaluation.evaluate import Evaluation, evaluate_detections
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets_tests.detection.evaluation.cases import found, labelled, lesions, random_case

CATEGORIES = {1: "exudats", 2: "hemorragie", 3: "hyalite"}
QUICK = EvaluationConfiguration(bootstrap_samples=50)


def numbers(evaluation: Evaluation) -> dict[str, object]:
    return {
        "ap": evaluation.average_precision,
        "froc": [evaluation.froc.pooled.at_rates, *(curve.at_rates for curve in evaluation.froc.per_class.values())],
        "counts": evaluation.counts,
        "confusion": evaluation.confusion.matrix.tolist(),
        "intervals": evaluation.intervals,
    }


@pytest.mark.parametrize("score_step", [0.0, 0.25])
def test_the_order_of_images_lesions_and_detections_does_not_matter(score_step: float) -> None:
    truths, detections = random_case(1, n_images=14, n_classes=3, n_lesions=6, n_detections=15, score_step=score_step)
    images = labelled(truths, [f"p{index // 2}" for index in range(14)])
    expected = numbers(evaluate_detections(images, detections, CATEGORIES, QUICK))
    shuffle = random.Random(7)
    order = shuffle.sample(range(14), 14)
    shuffled = [
        detections[index].select(np.asarray(shuffle.sample(range(len(detections[index])), len(detections[index])), int))
        for index in order
    ]
    measured = evaluate_detections(
        [images[index] for index in order], shuffled, dict(reversed(CATEGORIES.items())), QUICK
    )
    assert numbers(measured) == expected


def test_selection_ap_is_the_ap_of_the_hits_that_the_curves_and_intervals_rest_on() -> None:
    truths, detections = random_case(2, n_images=14, n_classes=3, n_lesions=6, n_detections=15)
    configuration = EvaluationConfiguration(selection_iou=0.4, bootstrap_samples=0)
    evaluation = evaluate_detections(labelled(truths), detections, CATEGORIES, configuration)
    for category, hits in evaluation.selection_hits.items():
        ap = evaluation.average_precision.selection.per_class[category]
        assert interpolated_average_precision(hits) == pytest.approx(ap, abs=1e-9)
    assert evaluation.intervals is None


def test_perfect_detections_score_one_everywhere() -> None:
    truths, _ = random_case(3, n_images=10, n_classes=3, n_lesions=6, n_detections=0)
    perfect = [Detections(truth.boxes, truth.scores, truth.labels) for truth in truths]
    evaluation = evaluate_detections(labelled(truths), perfect, CATEGORIES, QUICK)
    assert evaluation.map_30 == evaluation.map_50 == evaluation.map_50_95 == evaluation.map_selection == 1.0
    assert set(evaluation.froc.pooled.at_rates) == {1.0}
    assert evaluation.intervals is not None
    assert dataclasses.astuple(evaluation.intervals.map_selection) == (1.0, 1.0)  # type: ignore[arg-type]
    assert evaluation.confusion.matrix.trace() == sum(map(len, truths)) == evaluation.confusion.matrix.sum()


def test_patients_and_lesions_are_counted_per_class() -> None:
    box = (0.0, 0.0, 10.0, 10.0)
    images = labelled(
        [lesions((1, box), (2, box)), lesions((1, box)), lesions((1, box)), lesions()], ["a", "a", "b", "c"]
    )
    evaluation = evaluate_detections(images, [Detections.empty()] * 4, CATEGORIES, QUICK)
    assert (evaluation.n_images, evaluation.n_patients) == (4, 3)
    assert evaluation.n_lesions == {1: 3, 2: 1, 3: 0}
    assert evaluation.n_patients_with == {1: 2, 2: 1, 3: 0}


def test_a_class_seen_in_one_patient_only_has_no_interval() -> None:
    box = (0.0, 0.0, 10.0, 10.0)
    images = labelled([lesions((1, box), (2, box)), lesions((1, box))], ["a", "b"])
    evaluation = evaluate_detections(images, [found((1, box, 0.9), (2, box, 0.8))] * 2, CATEGORIES, QUICK)
    assert evaluation.intervals is not None
    assert evaluation.intervals.ap_selection[1] is not None
    assert evaluation.intervals.ap_selection[2] is None
    assert evaluation.intervals.ap_selection[3] is None
    assert evaluation.intervals.sensitivity[2] == (None,) * 6


@pytest.mark.parametrize(
    ("images", "detections", "message"),
    [
        ([], [], "at least one labelled image"),
        (labelled([lesions()]), [], "one Detections for each of 1 images, found 0"),
        (labelled([lesions()]) * 2, [Detections.empty()] * 2, "ds::i00000: is twice"),
        (labelled([lesions((9, (0, 0, 4, 4)))]), [Detections.empty()], r"lesions with labels \[9\]"),
        (labelled([lesions()]), [found((0, (0, 0, 4, 4), 0.5))], r"detections with labels \[0\]"),
        (labelled([lesions()]), [found((1, (0, 0, 4, 4), float("nan")))], "not finite"),
        (labelled([lesions()]), [found((1, (0, 0, float("inf"), 4), 0.5))], "not finite"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(images: list, detections: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_detections(images, detections, CATEGORIES, QUICK)


def test_evaluation_needs_neither_torch_nor_dagster() -> None:
    code = (
        "import sys; import uveitis_assets.detection.evaluation.evaluate;"
        "print(sorted({'torch', 'dagster', 'matplotlib', 'scipy'} & sys.modules.keys()))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
