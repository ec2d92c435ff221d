"""Shapes of binary masks: largest component, filled holes, shares of the image and of its border."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]


def largest_component(mask: Mask) -> Mask:
    """Keep the largest 8-connected component of a mask (H, W), 0 or 255; of equal ones, the first.

    A mask of one component is returned itself.
    """
    # Most masks are one component already; their outlines show it twenty times faster than labels. Outlines without a
    # parent are those of components, also of ones inside another's hole.
    _, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if hierarchy is None or np.count_nonzero(hierarchy[0, :, 3] < 0) == 1:
        return mask
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8, ltype=cv2.CV_32S)
    largest = 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))
    return np.where(labels == largest, np.uint8(255), np.uint8(0))


def largest_without_holes(mask: Mask) -> Mask:
    """Keep the component of a mask (H, W) that encloses the largest area, filled; 0 or 255."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros_like(mask)
    if contours:
        cv2.drawContours(filled, [max(contours, key=cv2.contourArea)], -1, 255, cv2.FILLED)
    return filled


def area_ratio(mask: Mask) -> float:
    """Share of the image that the mask covers."""
    return cv2.countNonZero(mask) / mask.size


def border_touch_ratio(mask: Mask | NDArray[np.bool_]) -> float:
    """Mean over the four border lines of the share of the line that the mask covers."""
    lines = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    return float(np.mean([np.count_nonzero(line) / line.size for line in lines]))
