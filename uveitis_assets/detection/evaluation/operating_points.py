"""Reads off the validation FROC from which score a class's detections count.

One threshold for all classes favours common ones: networks give rare classes lower scores. The point of a class at a
rate is the lowest score whose false positives per image do not exceed the rate, as the FROC sensitivities are defined.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from uveitis_assets.detection.checkpoints.fold_weights import FoldWeights, TrainingNotUsableError
from uveitis_assets.detection.evaluation.froc import Froc, FrocCurve, allowed_false_positives
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration
from uveitis_assets.storage.files import read_json

NOTHING = 1.01
"""Score that no detection reaches: of a class whose best detections already exceed the rate."""


def operating_scores(froc: Froc, n_images: int) -> dict[str, dict[str, float]]:
    """Rate, as text, to class id, as text, to score; classes without lesions or detections are left out.

    A lesion-free class has no sensitivity to trade for, and keeps the detector's one threshold.
    """
    return {
        f"{rate:g}": {
            str(category): operating_score(curve, rate, n_images)
            for category, curve in froc.per_class.items()
            if len(curve.thresholds) and not np.isnan(curve.sensitivity).any()
        }
        for rate in froc.rates
    }


def operating_score(curve: FrocCurve, rate: float, n_images: int) -> float:
    """The lowest threshold with at most ``rate`` false positives per image, or ``NOTHING`` where none has."""
    false_positives = np.round(curve.fp_per_image * n_images)
    within = np.searchsorted(false_positives, allowed_false_positives([rate], n_images)[0], side="right")
    return float(curve.thresholds[within - 1]) if within else NOTHING


def score_settings(lane: DetectorLaneConfiguration) -> dict[str, Any]:
    """What decides, besides the weights, the scores of detections and which are false positives.

    Plain values. Thresholds inside the network and the classes that it was taught belong to the weights.
    """
    inference, evaluation = lane.inference, lane.evaluation
    return {
        "classes": list(lane.classes),
        "global_tile": lane.global_tile,
        "merge": inference.merge,
        "merge_iou": inference.merge_iou,
        "flips": list(inference.flips),
        "froc_iou": evaluation.froc_iou,
        "max_detections": evaluation.max_detections,
    }


def scores_for_prediction(
    path: Path, weights: FoldWeights, lane: DetectorLaneConfiguration, rate: float
) -> dict[int, float]:
    """Class id to score of a validation report, if it holds for how the weights predict.

    Args:
        path: the val_report.json of the weights' run.
        weights: the weights that predict.
        lane: the settings by which they predict.
        rate: false positives per image.

    Raises:
        FileNotFoundError: there is no report.
        TrainingNotUsableError: it is of other weights, was found with other settings, or does not say.
        ValueError: it holds no operating points at this rate.
    """
    again = f"materialize {lane.name}/evaluation (`val`) of {weights.name.rpartition(' of ')[2]} again"
    where = f"{path}: inference.operating_fp_per_image"
    if not path.is_file():
        raise FileNotFoundError(f"{where}: expected the report of the evaluation, found none; {again}")
    report = read_json(path)
    if "checkpoint" not in report:
        raise TrainingNotUsableError(
            f"{where}: expected the report of an evaluation, found one without the digest of its weights, as the "
            f"training writes it; {again}"
        )
    if report["checkpoint"] != weights.digest:
        raise TrainingNotUsableError(
            f"{where}: expected the report of {weights.name} ({weights.digest}), found that of "
            f"{report['checkpoint']}; {again}"
        )
    expected, found = score_settings(lane), report.get("settings")
    if found is None:
        raise TrainingNotUsableError(
            f"{where}: expected the settings that its scores were found with ({', '.join(expected)}), found none: an "
            f"earlier version wrote it; {again}"
        )
    different = [name for name, value in expected.items() if name not in found or found[name] != value]
    if different:
        wanted = ", ".join(f"{name} {expected[name]}" for name in different)
        given = ", ".join(f"{name} {found.get(name, 'not named')}" for name in different)
        raise TrainingNotUsableError(f"{where}: expected scores found with {wanted}, found {given}; {again}")
    return read_operating_scores(report, rate)


def read_operating_scores(report: Mapping[str, Any], rate: float) -> dict[int, float]:
    """Class id to score of a val_report.json.

    Raises:
        ValueError: the report holds no operating points at this rate.
    """
    at_rates = report.get("val_metrics", {}).get("operating_scores", {})
    if f"{rate:g}" not in at_rates:
        raise ValueError(
            f"inference.operating_fp_per_image: expected one of the rates in the validation report "
            f"({', '.join(at_rates) or 'none'}), found {rate:g}; add it to evaluation.froc_fp_per_image and "
            "materialize the evaluation of `val` again"
        )
    return {int(category): float(score) for category, score in at_rates[f"{rate:g}"].items()}


def at_operating_scores(found: Detections, scores: Mapping[int, float], otherwise: float) -> Detections:
    """The detections that reach their class's score; classes without one need ``otherwise``."""
    wanted = np.array([scores.get(label, otherwise) for label in found.labels.tolist()], np.float32)
    return found.select(np.flatnonzero(found.scores >= wanted))
