"""Channels that hold noise of their encoding only: which are named, and what normalization makes of them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from uveitis_assets.fundus.channel_signal import channels_without_signal, signal_shares
from uveitis_assets.fundus.color import erode_mask, normalize_crop
from uveitis_assets.fundus.configuration import NormalizationConfiguration, NormalizationMethod
from uveitis_assets.fundus.roi.choice import downscale_for_roi, upscale_mask
from uveitis_assets.fundus.roi.threshold import threshold_retina_mask

Pixels = NDArray[np.uint8]


def structure(seed: int, side: int = 512) -> NDArray[np.float64]:
    """Smooth random structure of unit deviation, as shading and choroid have."""
    noise = np.random.default_rng(seed).normal(0, 1, (side, side))
    smooth = cv2.GaussianBlur(noise, (0, 0), 20)
    return np.asarray(smooth / smooth.std())


def compressed(image: Pixels, quality: int) -> Pixels:
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB), dtype=np.uint8)


def two_lasers(quality: int) -> tuple[Pixels, Pixels]:
    """Red and green structure and texture, black blue, as JPEG; and a round mask."""
    grain = np.random.default_rng(9).normal(0, 4, (512, 512))
    image = np.stack([90 + 24 * structure(1) + grain, 60 + 20 * structure(2) + grain, np.zeros((512, 512))], axis=2)
    mask = np.zeros((512, 512), dtype=np.uint8)
    cv2.circle(mask, (256, 256), 240, 255, -1)
    return compressed(np.clip(image, 0, 255).astype(np.uint8), quality), mask


def normalized(image: Pixels, mask: Pixels, method: NormalizationMethod) -> tuple[Pixels, dict[str, object]]:
    return normalize_crop(image, mask, NormalizationConfiguration(method=method))


@pytest.mark.parametrize("quality", [30, 60, 75, 90, 98])
def test_black_blue_is_noise_after_any_jpeg_compression(quality: int) -> None:
    image, mask = two_lasers(quality)
    assert image[..., 2].std() > 0.3
    assert channels_without_signal(image, mask) == ("blue",)


def test_a_weak_channel_with_structure_has_signal() -> None:
    """One and a half grey levels of structure, as the blue of some regular photographs has."""
    image, mask = two_lasers(95)
    image[..., 2] = np.clip(np.rint(3 + 1.5 * structure(3)), 0, 255)
    assert channels_without_signal(image, mask) == ()


def test_a_constant_channel_has_no_signal() -> None:
    image, mask = two_lasers(95)
    image[..., 1] = 70
    assert channels_without_signal(image, mask) == ("green", "blue")


def test_a_strong_channel_is_kept_even_where_its_pixels_have_little_in_common() -> None:
    image, mask = two_lasers(95)
    image[..., 2] = np.random.default_rng(6).integers(100, 160, image.shape[:2])
    assert channels_without_signal(image, mask) == ()


def test_nothing_is_told_where_no_channel_has_structure_or_pixels_are_few() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    assert channels_without_signal(noise, np.full((512, 512), 255, np.uint8)) == ()
    image, mask = two_lasers(90)
    assert signal_shares(image[:200, :200], mask[:200, :200]) is None
    assert channels_without_signal(image[:200, :200], mask[:200, :200]) == ()
    assert channels_without_signal(image, np.zeros_like(mask)) == ()


def test_the_share_is_the_signals_part_of_the_variance() -> None:
    signal, noise = 20 * structure(4, 2048), np.random.default_rng(5).normal(0, 20, (2048, 2048, 3))
    weights = np.array([1.0, 0.5, 0.0])
    image = np.clip(np.rint(128 + signal[..., None] * weights + noise), 0, 255).astype(np.uint8)
    statistics = signal_shares(image, np.full((2048, 2048), 255, np.uint8))
    assert statistics is not None
    # The structure itself correlates by exp(-16**2 / (4 * 20**2)) over 16 px.
    expected = weights**2 / (weights**2 + 1) * np.exp(-(16**2) / (4 * 20**2))
    np.testing.assert_allclose(statistics[0], expected, atol=0.03)


def test_zscore_leaves_noise_as_small_as_it_is_and_stretches_the_others() -> None:
    image, mask = two_lasers(75)
    inside = cv2.erode(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))) > 0
    pixels = image[inside].astype(np.float64)
    result, metadata = normalized(image, mask, "zscore_rgb")
    assert metadata["channels_without_signal"] == ["blue"]
    blue = np.where(mask > 0, np.clip(np.rint(image[..., 2] - pixels[:, 2].mean() + 127.5), 0, 255), 0)
    np.testing.assert_array_equal(result[..., 2], blue)
    assert result[inside][:, 2].std() == pytest.approx(pixels[:, 2].std(), rel=0.1)
    for channel in (0, 1):
        assert result[inside][:, channel].std() == pytest.approx(255 / 5, rel=0.05)


def test_grayworld_leaves_noise_alone_and_out_of_the_mean() -> None:
    image, mask = two_lasers(75)
    inside = cv2.erode(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))) > 0
    result, _ = normalized(image, mask, "grayworld")
    np.testing.assert_array_equal(result[..., 2], np.where(mask > 0, image[..., 2], 0))
    means = image[inside].mean(axis=0)
    np.testing.assert_allclose(result[inside][:, :2].mean(axis=0), means[:2].mean(), atol=1)


def test_other_metadata_is_as_before_where_all_channels_have_signal() -> None:
    image, mask = two_lasers(90)
    image[..., 2] = image[..., 0] // 2
    assert list(normalized(image, mask, "zscore_rgb")[1]) == ["method", "mean", "std"]


def test_real_photographs_of_two_lasers_lack_blue_and_regular_ones_lack_nothing(real_data: Path) -> None:
    for path in sorted((real_data / "uwf" / "images").glob("*.jpg")):
        image = np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), dtype=np.uint8)
        mask = np.zeros(image.shape[:2], dtype=np.uint8)
        height, width = mask.shape
        cv2.ellipse(mask, (width // 2, height // 2), (width // 3, height // 3), 0, 0, 360, 255, -1)
        assert channels_without_signal(image, mask) == ("blue",), path.name
    regular = [*(real_data / "drive" / "images").glob("*.tif"), *(real_data / "idrid_fgadr_layout").rglob("*.jpg")]
    assert len(regular) == 24
    for path in sorted(regular):
        image = np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), dtype=np.uint8)
        mask = threshold_retina_mask(downscale_for_roi(image, 768))
        full = erode_mask(upscale_mask(mask, (image.shape[1], image.shape[0]), smooth=False), 4)
        assert channels_without_signal(image, full) == (), path.name
