"""Integrity of PNG files: every cut and every changed byte is found, sound files of any encoder pass."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from uveitis_assets.imaging.png import encode_png
from uveitis_assets.imaging.png_integrity import png_finding

PICTURE = np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def by_pillow() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "PNG", dpi=(72, 72))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data", [encode_png(PICTURE), encode_png(PICTURE[..., 0]), cv2.imencode(".png", PICTURE)[1].tobytes(), by_pillow()]
)
def test_sound_files_pass_and_every_cut_and_changed_byte_is_found(data: bytes) -> None:
    assert png_finding(data) is None
    assert png_finding(memoryview(data)) is None
    assert png_finding(b"") == "found an empty file"
    assert "2 bytes behind its end" in str(png_finding(data + b"\0\0"))
    for length in range(1, len(data)):
        assert png_finding(data[:length]) is not None, length
    for place in range(len(data)):
        for bit in (0, 7):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            assert png_finding(bytes(changed)) is not None, (place, bit)
