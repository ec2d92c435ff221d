"""Position of an image's crop: the retina mask's bounding box with a margin."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def crop_box(mask: NDArray[np.uint8], pad_px: int) -> tuple[int, int, int, int]:
    """Bounding box of a mask, widened on every side and clipped to the image.

    Args:
        mask: (H, W) uint8, non-zero is retina.
        pad_px: margin in the mask's pixels.

    Returns:
        x0, y0, x1, y1 in the mask's pixels; x1 and y1 exclusive.

    Raises:
        ValueError: the mask is empty.
    """
    x, y, width, height = cv2.boundingRect(mask)
    if width == 0 or height == 0:
        raise ValueError("expected a mask with at least one pixel set, found an empty one")
    image_height, image_width = mask.shape
    return (
        max(0, x - pad_px),
        max(0, y - pad_px),
        min(image_width, x + width + pad_px),
        min(image_height, y + height + pad_px),
    )
