"""Figures for the UI: PNG to JPEG, which is what an event may carry."""

from __future__ import annotations

import cv2
import numpy as np

from uveitis_assets.preview_jpeg import encode_within


def png_as_jpeg(png: bytes) -> bytes:
    """Encode a PNG again as JPEG, small enough for an event.

    Raises:
        ValueError: the bytes are no PNG.
    """
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise ValueError(f"expected a PNG, found {len(png)} bytes that do not decode")
    return encode_within(np.asarray(pixels, np.uint8))
