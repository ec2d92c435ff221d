"""An evaluation as the JSON of val_report.json: the earlier scripts' keys, and what they lacked.

The earlier keys keep their names, but ``mAP_proxy`` holds the image-level AP by which the best checkpoint was chosen
(not mean precision times recall), sensitivities are a true FROC's, and false positives are per image (not per tile).
What does not exist, such as the recall of a class without lesions, is null, never 0 or NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uveitis_assets.detection.evaluation.average_precision import SMALL_AREA
from uveitis_assets.detection.evaluation.bootstrap import Interval
from uveitis_assets.detection.evaluation.evaluate import Evaluation
from uveitis_assets.detection.evaluation.operating_points import operating_scores


def validation_report(evaluation: Evaluation, *, best_epoch: int, fingerprint: str) -> dict[str, Any]:
    """Content of val_report.json; class keys are category ids as strings, rates read "0.25".

    Args:
        evaluation: the best checkpoint's evaluation.
        best_epoch: the epoch of that checkpoint.
        fingerprint: the labelled split's, so that reports on different labels are not compared by accident.
    """
    limits = {"limits": list(evaluation.limits)} if evaluation.limits else {}
    return {
        "best_epoch": best_epoch,
        "best_val_mAP_proxy": evaluation.map_selection,
        "val_metrics": validation_metrics(evaluation),
        "categories": {str(category): name for category, name in evaluation.categories.items()},
        "n_images": evaluation.n_images,
        "n_patients": evaluation.n_patients,
        "n_lesions": _by_class(evaluation.n_lesions),
        "n_patients_per_class": _by_class(evaluation.n_patients_with),
        "fingerprint": fingerprint,
        "ap": _mean_precisions(evaluation),
        "ap_per_class": _class_precisions(evaluation),
        "ap_small": _small_precisions(evaluation),
        "ap_oriented": _oriented_precisions(evaluation),
        "froc": _froc(evaluation),
        "confusion": {
            "category_ids": list(evaluation.confusion.category_ids),
            "rows": "labelled class, then detections without a lesion",
            "columns": "found class, then lesions without a detection",
            "matrix": evaluation.confusion.matrix.tolist(),
        },
        "definitions": _definitions(evaluation),
        **limits,
    }


def validation_metrics(evaluation: Evaluation) -> dict[str, Any]:
    """The earlier scripts' ``val_metrics``: counts, FROC sensitivities and the selection AP."""
    return {
        "per_class": {
            str(category): {
                "tp": counts.tp,
                "fp": counts.fp,
                "fn": counts.fn,
                "precision": counts.precision,
                "recall": counts.recall,
            }
            for category, counts in evaluation.counts.items()
        },
        "fp_per_image": _by_class(
            {category: counts.fp / evaluation.n_images for category, counts in evaluation.counts.items()}
        ),
        "sensitivity_at_fp_per_image": {
            f"{rate:g}": _by_class(
                {category: curve.at_rates[index] for category, curve in evaluation.froc.per_class.items()}
            )
            for index, rate in enumerate(evaluation.froc.rates)
        },
        "operating_scores": operating_scores(evaluation.froc, evaluation.n_images),
        "mAP_proxy": evaluation.map_selection,
    }


def _mean_precisions(evaluation: Evaluation) -> dict[str, Any]:
    interval = None if evaluation.intervals is None else evaluation.intervals.map_selection
    return {
        "0.3": evaluation.map_30,
        "0.5": evaluation.map_50,
        "0.5:0.95": evaluation.map_50_95,
        "selection_boxes": evaluation.configuration.selection,
        "selection_iou": evaluation.configuration.selection_iou,
        "selection": evaluation.map_selection,
        "selection_interval": _bounds(interval),
    }


def _class_precisions(evaluation: Evaluation) -> dict[str, Any]:
    ap, intervals = evaluation.average_precision, evaluation.intervals
    return {
        str(category): {
            "0.3": ap.iou_30.per_class[category],
            "0.5": ap.iou_50.per_class[category],
            "0.5:0.95": ap.iou_50_95.per_class[category],
            "selection": ap.selection.per_class[category],
            "selection_interval": None if intervals is None else _bounds(intervals.ap_selection[category]),
        }
        for category in evaluation.categories
    }


def _small_precisions(evaluation: Evaluation) -> dict[str, Any]:
    ap = evaluation.average_precision
    return {
        "max_area_px2": SMALL_AREA,
        "0.3": ap.small_30.mean,
        "0.5:0.95": ap.small.mean,
        "per_class": {
            str(category): {"0.3": ap.small_30.per_class[category], "0.5:0.95": ap.small.per_class[category]}
            for category in evaluation.categories
        },
    }


def _oriented_precisions(evaluation: Evaluation) -> dict[str, Any] | None:
    """Null for detectors of axis-aligned boxes and for labels without oriented ones."""
    ap = evaluation.oriented_average_precision
    if ap is None:
        return None
    columns = {"0.3": ap.iou_30, "0.5": ap.iou_50, "0.5:0.95": ap.iou_50_95}
    return {
        **{iou: column.mean for iou, column in columns.items()},
        "per_class": {
            str(category): {iou: column.per_class[category] for iou, column in columns.items()}
            for category in evaluation.categories
        },
    }


def _froc(evaluation: Evaluation) -> dict[str, Any]:
    froc, intervals = evaluation.froc, evaluation.intervals
    unknown = (None,) * len(froc.rates)

    def curve(at_rates: Sequence[float | None], bounds: Sequence[Interval | None]) -> dict[str, Any]:
        return {
            f"{rate:g}": {"sensitivity": sensitivity, "interval": _bounds(interval)}
            for rate, sensitivity, interval in zip(froc.rates, at_rates, bounds, strict=True)
        }

    return {
        "iou": evaluation.configuration.froc_iou,
        "pooled": curve(froc.pooled.at_rates, unknown if intervals is None else intervals.pooled_sensitivity),
        "per_class": {
            str(category): curve(part.at_rates, unknown if intervals is None else intervals.sensitivity[category])
            for category, part in froc.per_class.items()
        },
    }


def _definitions(evaluation: Evaluation) -> dict[str, Any]:
    configuration = evaluation.configuration
    return {
        "mAP_proxy": f"image-level COCO AP of {configuration.selection.replace('_', '-')} boxes at IoU "
        f"{configuration.selection_iou:g}, mean over the classes with lesions",
        "ap_oriented": "COCO AP by the overlap of rotated boxes, labels as minimum-area rectangles; all else but a "
        "selection by oriented boxes: axis-aligned boxes",
        "counts": f"detections from score {configuration.operating_score:g} on, hits from IoU "
        f"{configuration.froc_iou:g} on, whole images after merging",
        "sensitivity": "at the lowest score threshold whose false positives per image do not exceed the rate",
        "max_detections": f"best {configuration.max_detections} per image and class",
        "interval": f"95 % bootstrap over patients, {configuration.bootstrap_samples} resamples, bias-corrected for AP"
        "; null below two patients with lesions",
    }


def _by_class(values: dict[int, Any]) -> dict[str, Any]:
    return {str(category): value for category, value in values.items()}


def _bounds(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]
