"""Which of SAM 2's candidate masks is the retina, and how that mask is cleaned."""

from __future__ import annotations

import math
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.fundus.roi.mask_shapes import border_touch_ratio, largest_without_holes


def mask_choice_score(mask: NDArray[np.bool_], sam_score: float) -> float:
    """How well a candidate mask (H, W) suits the retina: large, compact, central and off the border.

    ``sam_score + 0.5 area + 0.4 bbox_fill + 0.25 center_hit - 0.8 border_touch`` where area is the mask's share of
    the image, bbox_fill its share of its own bounding box, center_hit whether it covers the central pixel and
    border_touch the mean of its share of the four border lines. The earlier scripts' rule. An empty mask gives -inf.
    """
    n_pixels = int(np.count_nonzero(mask))
    if n_pixels == 0:
        return -math.inf
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    box_area = int(rows[-1] - rows[0] + 1) * int(columns[-1] - columns[0] + 1)
    center_hit = float(mask[mask.shape[0] // 2, mask.shape[1] // 2])
    return (
        sam_score
        + 0.5 * n_pixels / mask.size
        + 0.4 * n_pixels / box_area
        + 0.25 * center_hit
        - 0.8 * border_touch_ratio(mask)
    )


def choose_mask(masks: NDArray[np.bool_], scores: NDArray[np.float32]) -> int | None:
    """Index of the best candidate mask (C, H, W) with its SAM score (C,); None when all are empty.

    The lowest index wins a tie.
    """
    values = [mask_choice_score(mask, float(score)) for mask, score in zip(masks, scores, strict=True)]
    best = max(range(len(values)), key=values.__getitem__)
    return best if values[best] > -math.inf else None


def clean_mask(mask: NDArray[np.bool_], open_kernel: int, close_kernel: int) -> NDArray[np.uint8]:
    """Open and close the mask (H, W) with ellipses, keep its largest component and fill its holes.

    Kernel sizes are diameters in px of the image given. Returns uint8 of 0 and 255, all 0 when opening leaves nothing.
    """
    cleaned = mask.astype(np.uint8) * 255
    for operation, size in ((cv2.MORPH_OPEN, open_kernel), (cv2.MORPH_CLOSE, close_kernel)):
        ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
        cleaned = cast(NDArray[np.uint8], cv2.morphologyEx(cleaned, operation, ellipse))
    return largest_without_holes(cleaned)
