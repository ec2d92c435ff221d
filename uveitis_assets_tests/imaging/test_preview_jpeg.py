"""Previews: never too heavy for an event, in their colours."""

import cv2
import numpy as np
import pytest

from uveitis_assets.imaging.preview_jpeg import MAX_JPEG_BYTES, encode_within


@pytest.mark.parametrize("limit", [MAX_JPEG_BYTES, 5_000])
def test_noise_becomes_coarser_and_then_smaller_until_it_fits(limit: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 1300, 3), dtype=np.uint8)
    data = encode_within(noise, limit)
    assert len(data) <= limit
    height, width = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[:2]
    assert height < 900
    assert width / height == pytest.approx(1300 / 900, rel=0.1)


def test_a_picture_that_fits_keeps_its_size_and_colours() -> None:
    picture = np.zeros((60, 90, 3), np.uint8)
    picture[:, :45] = (200, 40, 10)
    shown = cv2.imdecode(np.frombuffer(encode_within(picture), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert shown.shape == picture.shape
    assert np.abs(shown[30, 20].astype(int) - (200, 40, 10)).max() < 12
