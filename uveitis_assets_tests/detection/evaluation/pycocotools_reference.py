"""pycocotools' own average precision of lesions and detections, written out for it row by row."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from uveitis_assets.detection.inference.detections import Detections, GroundTruth


class PycocotoolsPrecision:
    """Interpolated precisions of axis-aligned boxes at several IoUs, of all sizes and of small ones (to 32² px²)."""

    def __init__(
        self,
        truths: Sequence[GroundTruth],
        detections: Sequence[Detections],
        category_ids: Collection[int],
        ious: Sequence[float],
        max_detections: int,
    ) -> None:
        self._ids, self._ious = sorted(category_ids), list(ious)
        sets = [_coco(items, self._ids) for items in (truths, detections)]
        with contextlib.redirect_stdout(io.StringIO()):
            for coco in sets:
                coco.createIndex()
            evaluation = COCOeval(*sets, "bbox")
            evaluation.params.iouThrs = np.asarray(ious)
            evaluation.params.maxDets = [max_detections]
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10], [0, 1024]], ["all", "small"]
            evaluation.evaluate()
            evaluation.accumulate()
        # (IoU, recall, class, area)
        self._precision: NDArray[np.float64] = evaluation.eval["precision"][..., 0]

    def per_class(self, ious: Sequence[float], *, small: bool = False) -> dict[int, float | None]:
        """AP averaged over some of the IoUs; None for classes without lesions."""
        precision = self._precision[[self._ious.index(iou) for iou in ious], ..., int(small)]
        return {
            category: None if (precision[..., index] < 0).all() else float(precision[..., index].mean())
            for index, category in enumerate(self._ids)
        }


def _coco(items: Sequence[GroundTruth | Detections], category_ids: Sequence[int]) -> COCO:
    annotations = [
        {
            "image_id": image,
            "category_id": int(label),
            "bbox": [float(x0), float(y0), float(x1) - float(x0), float(y1) - float(y0)],
            "area": (float(x1) - float(x0)) * (float(y1) - float(y0)),
            "iscrowd": 0,
            "score": float(score),
        }
        for image, item in enumerate(items)
        for (x0, y0, x1, y1), label, score in zip(item.boxes, item.labels, item.scores, strict=True)
    ]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in range(len(items))],
        "annotations": [{"id": number, **row} for number, row in enumerate(annotations, start=1)],
        "categories": [{"id": category} for category in category_ids],
    }
    return coco
