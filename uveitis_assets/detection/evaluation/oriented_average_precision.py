"""Average precision of oriented detections: COCO's rules with the overlap of rotated boxes.

Matching is that of ``matching``, the 101-point average that of ``average_precision``; only the overlap differs, so on
axis-aligned rectangles the numbers are COCO's. It compares rectangles: the labels are hand-drawn quadrilaterals that
fill 80 % (median) of the smallest rectangle around them, so against the drawn outlines a perfect rectangle would fail
every IoU above that, and the score would measure how roughly a label was drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.evaluation.average_precision import (
    STRICT_IOUS,
    AveragePrecision,
    interpolated_average_precision,
    mean_of_known,
)
from uveitis_assets.detection.evaluation.matching import ScoredHits, best_first, match_images_at
from uveitis_assets.detection.inference.detections import Detections, GroundTruth


@dataclass(frozen=True, slots=True)
class OrientedAveragePrecision:
    """AP of rotated boxes at IoU 0.3, 0.5, averaged over 0.5, 0.55 .. 0.95, and at the selection IoU.

    The hits are those at the selection IoU.
    """

    iou_30: AveragePrecision
    iou_50: AveragePrecision
    iou_50_95: AveragePrecision
    selection: AveragePrecision
    selection_hits: dict[int, ScoredHits]


def oriented_average_precision(
    truths: Sequence[GroundTruth],
    detections: Sequence[Detections],
    category_ids: Iterable[int],
    *,
    selection_iou: float,
    max_detections: int,
) -> OrientedAveragePrecision:
    """AP of ``corners`` against ``corners``, matched image by image and class by class.

    Args:
        truths: lesions per image, corners in px; taken as the minimum-area rectangles around them.
        detections: one per image, in the same frame, corners present.
        category_ids: the classes that get an AP; other labels are left out.
        selection_iou: IoU of ``selection``, by which a checkpoint may be chosen.
        max_detections: best-scored detections per image and class that count.

    Raises:
        ValueError: detections or lesions without oriented boxes: axis-aligned boxes would count as
            oriented. ``has_oriented_labels`` tests beforehand whether the lesions have them.
    """
    thresholds = [0.3, *STRICT_IOUS.tolist(), selection_iou]
    ids = sorted(category_ids)
    hits = _hits(truths, detections, ids, thresholds, max_detections)

    def over(rows: range) -> AveragePrecision:
        return AveragePrecision(
            {
                category: mean_of_known(interpolated_average_precision(hits[row][category]) for row in rows)
                for category in ids
            }
        )

    last = len(thresholds) - 1
    return OrientedAveragePrecision(
        iou_30=over(range(1)),
        iou_50=over(range(1, 2)),
        iou_50_95=over(range(1, last)),
        selection=over(range(last, last + 1)),
        selection_hits=hits[last],
    )


def _hits(
    truths: Sequence[GroundTruth],
    detections: Sequence[Detections],
    category_ids: Sequence[int],
    thresholds: Sequence[float],
    max_detections: int,
) -> list[dict[int, ScoredHits]]:
    """Hits at each threshold, by class."""
    for number, (truth, found) in enumerate(zip(truths, detections, strict=True)):
        if found.corners is None and len(found):
            raise ValueError(f"image {number}: expected detections with corners, found axis-aligned boxes only")
        missing = int((~np.isfinite(truth.corners).all(axis=(1, 2))).sum())
        if missing:
            raise ValueError(
                f"image {number}: expected an oriented box for each of {len(truth)} lesions, found {missing} without; "
                "evaluate this split by its axis-aligned boxes"
            )
    return match_images_at(
        [as_rectangles(truth) for truth in truths],
        [best_first(found) for found in detections],
        category_ids,
        iou_thresholds=thresholds,
        max_detections=max_detections,
        overlap=rotated_overlap,
    )


def has_oriented_labels(truths: Sequence[GroundTruth]) -> bool:
    """Whether there are lesions and each has an oriented box."""
    return any(len(truth) for truth in truths) and all(bool(np.isfinite(truth.corners).all()) for truth in truths)


def rotated_overlap(detections: Detections, truth: GroundTruth) -> NDArray[np.float64]:
    """Intersection over union of rotated boxes, float64 (N, M): an overlap for ``matching``."""
    import torch

    from uveitis_assets.detection.models.rotated_boxes import rotated_iou

    assert detections.corners is not None
    return rotated_iou(torch.from_numpy(detections.corners), torch.from_numpy(truth.corners)).numpy()


def as_rectangles(truth: GroundTruth) -> GroundTruth:
    """The same lesions; corners are those of the minimum-area rectangles around the corners given."""
    import torch

    from uveitis_assets.detection.models.rotated_boxes import corners_from_rectangles, rectangles_from_corners

    rectangles = rectangles_from_corners(torch.from_numpy(truth.corners))
    return replace(truth, corners=corners_from_rectangles(rectangles).numpy().astype(np.float32))
