"""val_report.json: the earlier keys with honest values, and JSON that any reader takes."""

from __future__ import annotations

import json

import pytest

from uveitis_assets.detection.configuration import EvaluationConfiguration
from uveitis_assets.detection.evaluation.evaluate import evaluate_detections
from uveitis_assets.detection.evaluation.report import validation_report
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets_tests.detection.evaluation.cases import found, labelled, lesions, random_case

CATEGORIES = {5: "hemorragie", 15: "exudats", 20: "lesion_retine"}
A, B, C = (0.0, 0.0, 10.0, 10.0), (30.0, 0.0, 40.0, 10.0), (60.0, 0.0, 100.0, 40.0)


def small_report(n_samples: int = 50) -> dict:
    """Two images of two patients: one exudate found, one missed, one false alarm; haemorrhages all found."""
    images = labelled([lesions((15, A), (5, C)), lesions((15, B), (5, C))], ["one", "two"])
    detections = [found((15, A, 0.9), (5, C, 0.8)), found((15, A, 0.95), (5, C, 0.7), (15, B, 0.05))]
    evaluation = evaluate_detections(
        images,
        detections,
        CATEGORIES,
        EvaluationConfiguration(bootstrap_samples=n_samples, froc_fp_per_image=(0.25, 1)),
    )
    return validation_report(evaluation, best_epoch=7, fingerprint="0123456789abcdef")


def test_the_earlier_keys_hold_image_level_counts_rates_and_ap() -> None:
    report = small_report()
    assert report["best_epoch"] == 7
    metrics = report["val_metrics"]
    assert metrics["per_class"] == {
        "5": {"tp": 2, "fp": 0, "fn": 0, "precision": 1.0, "recall": 1.0},
        "15": {"tp": 1, "fp": 1, "fn": 1, "precision": 0.5, "recall": 0.5},
        "20": {"tp": 0, "fp": 0, "fn": 0, "precision": None, "recall": None},
    }
    assert metrics["fp_per_image"] == {"5": 0.0, "15": 0.5, "20": 0.0}
    # The exudates' only false alarm scores best: half a false positive per image at any threshold.
    assert metrics["sensitivity_at_fp_per_image"] == {
        "0.25": {"5": 1.0, "15": 0.0, "20": None},
        "1": {"5": 1.0, "15": 1.0, "20": None},
    }
    # Exudates: precision 1/2 at recall 1/2 and 2/3 at recall 1, so 2/3 at every recall; haemorrhages: 1.
    assert metrics["mAP_proxy"] == report["best_val_mAP_proxy"] == pytest.approx((2 / 3 + 1) / 2)


def test_new_keys_say_what_the_numbers_rest_on() -> None:
    report = small_report()
    assert (report["n_images"], report["n_patients"], report["fingerprint"]) == (2, 2, "0123456789abcdef")
    assert report["n_lesions"] == report["n_patients_per_class"] == {"5": 2, "15": 2, "20": 0}
    assert report["categories"] == {"5": "hemorragie", "15": "exudats", "20": "lesion_retine"}
    assert report["ap"]["0.5"] == pytest.approx((2 / 3 + 1) / 2)
    assert report["ap_per_class"]["15"]["0.3"] == pytest.approx(2 / 3)
    assert report["ap_per_class"]["20"] == dict.fromkeys(("0.3", "0.5", "0.5:0.95", "selection", "selection_interval"))
    # The haemorrhages are 40 px wide: only exudates are small.
    assert report["ap_small"]["0.3"] == pytest.approx(2 / 3)
    assert report["ap_small"]["per_class"]["5"] == {"0.3": None, "0.5:0.95": None}
    assert report["froc"]["per_class"]["5"]["0.25"] == {"sensitivity": 1.0, "interval": [1.0, 1.0]}
    assert report["froc"]["per_class"]["20"]["1"] == {"sensitivity": None, "interval": None}
    assert report["confusion"]["category_ids"] == [5, 15, 20]
    assert report["confusion"]["matrix"] == [[2, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_without_resamples_there_are_values_but_no_intervals() -> None:
    report = small_report(n_samples=0)
    assert report["froc"]["pooled"]["1"] == {"sensitivity": 1.0, "interval": None}
    assert report["ap"]["selection_interval"] is None


@pytest.mark.parametrize("n_images", [1, 8])
def test_the_report_is_json_without_nan(n_images: int) -> None:
    truths, detections = random_case(2, n_images=n_images, n_classes=2, n_lesions=3, n_detections=6)
    for found_here in (detections, [Detections.empty()] * n_images):
        evaluation = evaluate_detections(
            labelled(truths), found_here, {1: "a", 2: "b", 3: "c"}, EvaluationConfiguration(bootstrap_samples=20)
        )
        report = validation_report(evaluation, best_epoch=0, fingerprint="0" * 16)
        assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_report_of_a_split_without_lesions_is_json_too() -> None:
    evaluation = evaluate_detections(
        labelled([lesions(), lesions()]), [found((1, A, 0.5)), Detections.empty()], {1: "a"}, EvaluationConfiguration()
    )
    report = validation_report(evaluation, best_epoch=0, fingerprint="0" * 16)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["best_val_mAP_proxy"] is None
    assert report["val_metrics"]["fp_per_image"] == {"1": 0.5}
