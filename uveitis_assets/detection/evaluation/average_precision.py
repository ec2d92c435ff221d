"""COCO average precision of image-level detections at several IoUs, and of small lesions.

The COCO numbers come from faster-coco-eval, which equals pycocotools (a test holds them to each other) and is several
times faster. ``interpolated_average_precision`` is the same 101-point average over hits that were matched here, for
overlaps that COCO's code does not compute. A class without labelled lesions has no AP: None, never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.evaluation.matching import ScoredHits
from uveitis_assets.detection.inference.detections import Detections, GroundTruth

SMALL_AREA = 32.0**2
"""COCO's limit of a small object, px² of the image that the boxes are given in (here: the global image)."""
RECALLS: NDArray[np.float64] = np.linspace(0.0, 1.0, 101)
STRICT_IOUS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10)


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """AP per category id, None for classes without lesions; ``mean`` is over classes with an AP."""

    per_class: dict[int, float | None]

    @property
    def mean(self) -> float | None:
        return mean_of_known(self.per_class.values())


@dataclass(frozen=True, slots=True)
class CocoAveragePrecision:
    """AP at IoU 0.3 (for lax boxes), 0.5, averaged over 0.5, 0.55 .. 0.95, and at the selection IoU.

    ``small`` is COCO's AP over 0.5:0.95 for lesions of at most 32² px² of the global image, ``small_30`` the same at
    IoU 0.3; larger lesions, detections matched to them and larger unmatched detections are ignored there.
    """

    iou_30: AveragePrecision
    iou_50: AveragePrecision
    iou_50_95: AveragePrecision
    selection: AveragePrecision
    small: AveragePrecision
    small_30: AveragePrecision


def coco_average_precision(
    truths: Sequence[GroundTruth],
    detections: Sequence[Detections],
    categories: Mapping[int, str],
    *,
    selection_iou: float,
    max_detections: int,
) -> CocoAveragePrecision:
    """COCO's average precision of detections per image.

    Args:
        truths: lesions per image, boxes in px of the global image.
        detections: detections per image, best score first (see ``matching.best_first``), same frame.
        categories: category ids and names.
        selection_iou: IoU of ``selection``.
        max_detections: best-scored detections per image and class that count.

    Source: Lin et al., Microsoft COCO, 2014; cocoapi's evaluation, iscrowd never set.
    """
    from faster_coco_eval import COCOeval_faster

    ids = sorted(categories)
    images = [{"id": number} for number in range(1, len(truths) + 1)]
    ious = np.concatenate([[0.3], STRICT_IOUS, [selection_iou]])
    evaluation = COCOeval_faster(
        _coco(images, ids, ((truth.boxes, truth.labels, None) for truth in truths)),
        _coco(images, ids, ((found.boxes, found.labels, found.scores) for found in detections)),
        "bbox",
        print_function=lambda *_: None,
    )
    evaluation.params.iouThrs = ious
    evaluation.params.maxDets = [max_detections]
    evaluation.params.areaRng = [[0.0, 1e10], [0.0, SMALL_AREA]]
    evaluation.params.areaRngLbl = ["all", "small"]
    evaluation.evaluate()
    evaluation.accumulate()
    # (IoU, recall, class, area range, maximum of detections)
    precision = np.asarray(evaluation.eval["precision"], np.float64)[..., 0]

    def over(rows: list[int], area: int) -> AveragePrecision:
        values = precision[rows, :, :, area].mean(axis=(0, 1))
        return AveragePrecision(
            {category: float(value) if value > -1 else None for category, value in zip(ids, values, strict=True)}
        )

    strict = list(range(1, 1 + len(STRICT_IOUS)))
    return CocoAveragePrecision(
        iou_30=over([0], 0),
        iou_50=over([1], 0),
        iou_50_95=over(strict, 0),
        selection=over([len(ious) - 1], 0),
        small=over(strict, 1),
        small_30=over([0], 1),
    )


def precision_recall(hits: ScoredHits) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision and recall after each detection, best score first; both float64 (N,).

    Raises:
        ValueError: the class has no lesions, so there is no recall.
    """
    if hits.n_lesions == 0:
        raise ValueError("expected at least one lesion, found none: recall is undefined")
    hit = np.cumsum(hits.hits).astype(np.float64)
    return hit / np.arange(1, len(hit) + 1), hit / hits.n_lesions


def interpolated_precision(hits: ScoredHits) -> NDArray[np.float64]:
    """Best precision at each of COCO's 101 recalls or beyond, float64 (101,); 0 where not reached.

    Raises:
        ValueError: the class has no lesions.
    """
    precision, recall = precision_recall(hits)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return envelope[np.searchsorted(recall, RECALLS, side="left")]


def interpolated_average_precision(hits: ScoredHits) -> float | None:
    """COCO's 101-point average precision of one class; None when it has no lesions."""
    return float(interpolated_precision(hits).mean()) if hits.n_lesions else None


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None when there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _coco(
    images: list[dict[str, int]],
    category_ids: Sequence[int],
    rows: Iterable[tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]],
) -> Any:
    from faster_coco_eval import COCO

    annotations: list[dict[str, Any]] = []
    for number, (boxes, labels, scores) in enumerate(rows, start=1):
        corners = boxes.astype(np.float64)
        boxes_xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        areas = boxes_xywh[:, 2:].prod(axis=1).tolist()
        columns = (
            boxes_xywh.tolist(),
            labels.tolist(),
            areas,
            (np.ones(len(boxes)) if scores is None else scores).tolist(),
        )
        for box, label, area, score in zip(*columns, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label,
                    "bbox": box,
                    "area": area,
                    "iscrowd": 0,
                    "score": score,
                }
            )
    coco = COCO()
    coco.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": category, "name": str(category)} for category in category_ids],
    }
    coco.createIndex()
    return coco
