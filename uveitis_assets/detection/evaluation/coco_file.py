"""AP of predictions against a COCO label file, as the earlier eval_detector_ap script printed it.

For label files and predictions that lie apart from a training run, of other tools too. It returns the script's keys
with COCO's AP, over all images of the file (the script matched each detection to one lesion only and averaged over
tiles). A run's own numbers, with FROC and intervals, come from ``evaluate``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from uveitis_assets.detection.evaluation.average_precision import coco_average_precision
from uveitis_assets.detection.evaluation.matching import best_first, in_fixed_order
from uveitis_assets.detection.inference.detections import Detections, GroundTruth


def evaluate_coco_file(
    coco: Mapping[str, Any], detections: Mapping[str, Detections], *, iou: float = 0.5, max_detections: int = 400
) -> dict[str, Any]:
    """Average precision of detections per ``image_id`` (of a tile file: ``image_id`` and ``tile_id`` joined by "/").

    Args:
        coco: content of a file in labels_coco/, boxes in px of its images.
        detections: one for every image of the file, empty where nothing was found; others are left out.
        iou: smallest overlap of a hit.
        max_detections: best-scored detections per image and class that count.

    Returns:
        ``iou``, ``mAP`` (mean over classes with lesions), ``ap_per_class`` and ``gt_per_class`` by category id; AP is
        None for classes without lesions.

    Raises:
        ValueError: an image of the file has no detections, not even empty ones, or a label is no category of the file.
    """
    categories = {int(category["id"]): str(category["name"]) for category in coco["categories"]}
    names = [_name(image) for image in coco["images"]]
    missing = sorted(set(names) - detections.keys())
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(names)} images have no predictions, the first is {missing[0]}: predict them, or "
            "give empty detections where nothing was found"
        )
    rows: dict[int, list[tuple[int, list[float]]]] = {int(image["id"]): [] for image in coco["images"]}
    for annotation in coco["annotations"]:
        rows[int(annotation["image_id"])].append((int(annotation["category_id"]), annotation["bbox"]))
    order = sorted(range(len(names)), key=names.__getitem__)
    truths = [in_fixed_order(_ground_truth(rows[int(coco["images"][index]["id"])])) for index in order]
    found = [best_first(detections[names[index]]) for index in order]
    for index, item in zip(order, found, strict=True):
        unknown = sorted(set(item.labels.tolist()) - categories.keys())
        if unknown:
            raise ValueError(f"{names[index]}: predictions with labels {unknown}, expected ids {sorted(categories)}")
    ap = coco_average_precision(truths, found, categories, selection_iou=iou, max_detections=max_detections).selection
    counts = {category: sum(int((truth.labels == category).sum()) for truth in truths) for category in ap.per_class}
    return {
        "iou": iou,
        "mAP": ap.mean,
        "ap_per_class": {str(category): value for category, value in ap.per_class.items()},
        "gt_per_class": {str(category): count for category, count in counts.items()},
    }


def _name(image: Mapping[str, Any]) -> str:
    return f"{image['image_id']}/{image['tile_id']}" if "tile_id" in image else str(image["image_id"])


def _ground_truth(rows: list[tuple[int, list[float]]]) -> GroundTruth:
    boxes = np.asarray([box for _, box in rows], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return GroundTruth(
        boxes.astype(np.float32),
        np.asarray([category for category, _ in rows], np.int64),
        np.full((len(rows), 4, 2), np.nan, np.float32),
        np.ones(len(rows), np.float32),
    )
