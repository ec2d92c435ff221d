"""JPEG previews for event metadata, limited in size.

Importing it imports no OpenCV, because the definitions import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_JPEG_BYTES = 150_000
_QUALITIES = (85, 75, 65, 55, 45, 35, 25, 15)
_SMALLEST_SIDE_PX = 16


def encode_within(picture: NDArray[np.uint8], max_bytes: int = MAX_JPEG_BYTES) -> bytes:
    """JPEG of a picture of shape (height, width, 3), RGB, uint8, with at most ``max_bytes``.

    The quality, then the size, go down until the limit holds or a side has 16 px.
    """
    import cv2

    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    while True:
        for quality in _QUALITIES:
            data = bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])
            if len(data) <= max_bytes or min(bgr.shape[:2]) <= _SMALLEST_SIDE_PX:
                return data
        bgr = cv2.resize(bgr, (bgr.shape[1] // 2, bgr.shape[0] // 2), interpolation=cv2.INTER_AREA)
