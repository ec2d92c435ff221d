"""AP against a COCO label file, read back by pycocotools from the very same file."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from uveitis_assets.detection.evaluation.coco_file import evaluate_coco_file
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets_tests.detection.evaluation.cases import found, random_case


def label_file(seed: int) -> tuple[dict[str, Any], dict[str, Detections]]:
    truths, detections = random_case(seed, n_images=6, n_classes=3, n_lesions=6, n_detections=12)
    annotations = []
    for index, truth in enumerate(truths):
        for box, label in zip(truth.boxes.astype(float), truth.labels.tolist(), strict=True):
            xywh = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            area = xywh[2] * xywh[3]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": index + 1, "category_id": label, "bbox": xywh, "area": area}
            )
    coco = {
        "images": [{"id": index + 1, "image_id": f"fgadr::{index}"} for index in range(6)],
        "annotations": [annotation | {"iscrowd": 0} for annotation in annotations],
        "categories": [{"id": key, "name": f"class {key}"} for key in (1, 2, 3, 4)],
    }
    return coco, {f"fgadr::{index}": item for index, item in enumerate(detections)}


@pytest.mark.parametrize("iou", [0.3, 0.5])
def test_ap_of_a_label_file_equals_pycocotools(iou: float) -> None:
    coco, detections = label_file(3)
    measured = evaluate_coco_file(coco, detections, iou=iou)
    results = [
        {
            "image_id": number + 1,
            "category_id": int(label),
            "bbox": [*box[:2], *(box[2:] - box[:2])],
            "score": float(score),
        }
        for number, item in enumerate(detections.values())
        for box, label, score in zip(item.boxes.astype(float), item.labels, item.scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = coco | {"info": {}}
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(results), "bbox")
        judge.params.iouThrs = np.asarray([iou])
        judge.params.maxDets = [400]
        judge.evaluate()
        judge.accumulate()
    expected = judge.eval["precision"][0, :, :, 0, 0].mean(axis=0)
    assert measured["iou"] == iou
    assert list(measured["ap_per_class"]) == ["1", "2", "3", "4"]
    assert [measured["ap_per_class"][key] for key in "123"] == pytest.approx(expected[:3], abs=1e-6)
    assert measured["ap_per_class"]["4"] is None
    assert measured["mAP"] == pytest.approx(expected[:3].mean(), abs=1e-6)
    labels = [annotation["category_id"] for annotation in coco["annotations"]]
    assert measured["gt_per_class"] == {str(key): labels.count(key) for key in (1, 2, 3, 4)}


def test_tiles_are_told_apart_by_image_and_tile() -> None:
    box = [0.0, 0.0, 10.0, 10.0]
    coco = {
        "images": [{"id": 1, "image_id": "a", "tile_id": "t0"}, {"id": 2, "image_id": "a", "tile_id": "t1"}],
        "annotations": [{"id": 1, "image_id": 2, "category_id": 1, "bbox": box}],
        "categories": [{"id": 1, "name": "exudats"}],
    }
    hit = found((1, (0, 0, 10, 10), 0.5))
    assert evaluate_coco_file(coco, {"a/t0": Detections.empty(), "a/t1": hit})["mAP"] == 1.0
    assert evaluate_coco_file(coco, {"a/t0": hit, "a/t1": Detections.empty()})["mAP"] == 0.0


def test_images_without_predictions_are_not_taken_for_empty() -> None:
    coco, detections = label_file(1)
    del detections["fgadr::4"]
    with pytest.raises(ValueError, match="1 of 6 images have no predictions, the first is fgadr::4"):
        evaluate_coco_file(coco, detections)


def test_predictions_of_unknown_classes_are_refused() -> None:
    coco, detections = label_file(1)
    detections["fgadr::2"] = found((9, (0, 0, 5, 5), 0.5))
    with pytest.raises(ValueError, match=r"fgadr::2: predictions with labels \[9\], expected ids \[1, 2, 3, 4\]"):
        evaluate_coco_file(coco, detections)
