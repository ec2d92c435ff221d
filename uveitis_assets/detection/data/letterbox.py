"""Scales and pads a tile to the network's input size, in training as in inference."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.imaging.geometry import AxisAlignedTransform


def fit_to_input(pixels: NDArray[np.uint8], input_size: int) -> tuple[NDArray[np.uint8], AxisAlignedTransform]:
    """Scale a tile so that its longer side is ``input_size`` and pad it with black, right and below.

    Args:
        pixels: (H, W, 3) uint8.
        input_size: side of the result, px.

    Returns:
        (input_size, input_size, 3) uint8, and the exact map from tile px to input px: whole pixel counts make the
        scales of the two axes differ by a fraction of a pixel.
    """
    height, width = pixels.shape[:2]
    if (height, width) == (input_size, input_size):
        return pixels, AxisAlignedTransform()
    longer = max(height, width)
    new_width, new_height = max(1, round(width * input_size / longer)), max(1, round(height * input_size / longer))
    fitted = np.zeros((input_size, input_size, 3), np.uint8)
    interpolation = cv2.INTER_AREA if longer > input_size else cv2.INTER_LINEAR
    fitted[:new_height, :new_width] = cv2.resize(pixels, (new_width, new_height), interpolation=interpolation)
    return fitted, AxisAlignedTransform(new_width / width, new_height / height)
