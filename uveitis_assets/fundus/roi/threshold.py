"""Retina mask by saturation and brightness: the classical method for regular fundus photographs.

On ultra-widefield images it marks lids, lashes and device rims as retina too.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.fundus.roi.mask_shapes import largest_component

_KERNEL_PX = 11
# Below this the saturation of a pixel is the sensor's or the JPEG's noise: without it the black surround of DRIVE and
# IDRiD counts as retina (IoU with DRIVE's field-of-view masks 0.91 instead of 0.998).
_DARKEST_VALUE = 21


def threshold_retina_mask(image_rgb: NDArray[np.uint8], sat_threshold: int = 18) -> NDArray[np.uint8]:
    """Mark pixels above a saturation or above Otsu's grey value, and keep the largest component.

    Then opened, closed, reduced to the largest 8-connected component and closed again (11 px ellipse). As the earlier
    scripts did, but that the saturation of nearly black pixels, which is noise, does not count.

    Args:
        image_rgb: (H, W, 3) uint8 RGB, downscaled (kernels are in its pixels).
        sat_threshold: HSV saturation, 0-255, above which a pixel is retina.

    Returns:
        (H, W) uint8 mask, 0 or 255; all zero when nothing is left.
    """
    hsv = cv2.cvtColor(image_rgb, cv2.COLOR_RGB2HSV)
    saturated = cv2.inRange(hsv, (0.0, sat_threshold + 1.0, _DARKEST_VALUE), (255.0, 255.0, 255.0))
    _, bright = cv2.threshold(cv2.cvtColor(image_rgb, cv2.COLOR_RGB2GRAY), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    mask = cv2.bitwise_or(saturated, bright)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_KERNEL_PX, _KERNEL_PX))
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, kernel)
    closed = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel), dtype=np.uint8)
    largest = largest_component(closed)
    if largest is closed:  # closing again changes nothing
        return closed
    return np.asarray(cv2.morphologyEx(largest, cv2.MORPH_CLOSE, kernel), dtype=np.uint8)
