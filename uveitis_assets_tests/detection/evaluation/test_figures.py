"""Figures: PNG files that depend on the evaluation alone, whatever it holds."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from uveitis_assets.detection.configuration import EvaluationConfiguration
from uveitis_assets.detection.evaluation.evaluate import Evaluation, evaluate_detections
from uveitis_assets.detection.evaluation.figures import confusion_figure, froc_figure, precision_recall_figure
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets_tests.detection.evaluation.cases import found, labelled, lesions, random_case

FIGURES = [precision_recall_figure, froc_figure, confusion_figure]
CATEGORIES = {1: "exudats", 2: "macroanevrisme_arteriel", 3: "membrane_epiretinenne"}
Draw = Callable[[Evaluation], bytes]


def evaluation(seed: int = 1) -> Evaluation:
    truths, detections = random_case(seed, n_images=8, n_classes=3, n_lesions=5, n_detections=12)
    return evaluate_detections(labelled(truths), detections, CATEGORIES, EvaluationConfiguration(bootstrap_samples=30))


@pytest.mark.parametrize("draw", FIGURES)
def test_the_same_evaluation_gives_the_same_bytes_and_another_gives_others(draw: Draw) -> None:
    first = draw(evaluation())
    assert first == draw(evaluation())
    assert first != draw(evaluation(seed=2))
    image = Image.open(io.BytesIO(first))
    assert image.format == "PNG"
    assert not {"Software", "Creation Time", "date"} & image.info.keys()
    assert np.asarray(image.convert("L")).std() > 1


@pytest.mark.parametrize("draw", FIGURES)
@pytest.mark.parametrize(
    ("truth", "detections"),
    [
        (lesions(), Detections.empty()),
        (lesions(), found((2, (0, 0, 9, 9), 0.5))),
        (lesions((1, (0, 0, 9, 9))), Detections.empty()),
    ],
)
def test_evaluations_without_lesions_or_detections_are_drawn_too(
    draw: Draw, truth: object, detections: Detections
) -> None:
    evaluated = evaluate_detections(
        labelled([truth]), [detections], CATEGORIES, EvaluationConfiguration(bootstrap_samples=5)
    )
    assert Image.open(io.BytesIO(draw(evaluated))).width > 100


def test_drawing_leaves_pyplot_alone() -> None:
    code = (
        "import sys\n"
        "from uveitis_assets_tests.detection.evaluation.test_figures import *\n"
        "[draw(evaluation()) for draw in FIGURES]\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "False"
