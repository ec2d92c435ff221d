"""Figures for the UI: PNG to JPEG, which is what an event may carry."""

from __future__ import annotations

import cv2
import numpy as np

_QUALITY = 80


def png_as_jpeg(png: bytes) -> bytes:
    """Encode a PNG again as JPEG.

    Raises:
        ValueError: the bytes are no PNG.
    """
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR_BGR)
    if pixels is None:
        raise ValueError(f"expected a PNG, found {len(png)} bytes that do not decode")
    _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return bytes(data)
