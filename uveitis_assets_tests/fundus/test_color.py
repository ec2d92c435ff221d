"""Photometric normalization, against plain numpy over all pixels."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from uveitis_assets.fundus import color
from uveitis_assets.fundus.channel_statistics import ChannelSummation, ChannelSums, median_level
from uveitis_assets.fundus.color import ReferenceColor, erode_mask, normalize_crop
from uveitis_assets.fundus.configuration import NormalizationConfiguration
from uveitis_assets.imaging.lab import LabConverter
from uveitis_assets_tests.fundus.preprocess_inputs import fundus_picture

REFERENCE = ReferenceColor((90.0, 150.0, 160.0), (25.0, 9.0, 11.0))
METHODS = ["none", "zscore_rgb", "grayworld", "clahe_luminance", "reinhard_lab_ref"]


@pytest.fixture(params=[0, 10**12], ids=["lab tables", "lab without tables"], autouse=True)
def converter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tables: LabConverter) -> None:
    monkeypatch.setattr(color, "lab_converter", tables if request.param == 0 else LabConverter(request.param))


@pytest.fixture(scope="module")
def tables() -> LabConverter:
    converter = LabConverter(0)
    converter.announce(1)
    return converter


def crop_and_mask(seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A crop whose ROI holds some black pixels, and is not convex."""
    crop = fundus_picture(seed, 231, 190)
    mask = np.zeros(crop.shape[:2], dtype=np.uint8)
    cv2.ellipse(mask, (115, 95), (100, 80), 0, 0, 360, 255, -1)
    mask[90:, 60:80] = 0
    crop[40:60, 100:130] = 0
    crop[70, 70] = (0, 0, 3)
    return crop, mask


def expected_statistics(crop: NDArray[Any], mask: NDArray[np.uint8], erode_px: int) -> NDArray[np.bool_]:
    """Pixels that count, by scipy: the eroded ROI without pure black."""
    side = 2 * erode_px + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)) > 0
    eroded = ndimage.binary_erosion(mask > 0, kernel, border_value=1)
    return eroded & (crop.sum(axis=2, dtype=int) > 0)


def normalized(
    method: str, *, band_pixels: int = color.BAND_PIXELS, **settings: Any
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    crop, mask = crop_and_mask()
    configuration = NormalizationConfiguration.model_validate({"method": method, **settings})
    return normalize_crop(crop, mask, configuration, REFERENCE, band_pixels=band_pixels)


def channel_sums(image: NDArray[np.uint8], mask: NDArray[np.uint8], n_bands: int = 1) -> ChannelSums:
    """Sums over an image in bands of rows."""
    summation = ChannelSummation()
    for rows in np.array_split(np.arange(len(image)), n_bands):
        summation.add(image[rows], mask[rows])
    return summation.total()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("erode_px", [0, 4, 11])
def test_metadata_holds_the_statistics_of_the_eroded_roi_without_black(method: str, erode_px: int) -> None:
    crop, mask = crop_and_mask()
    pixels = crop[expected_statistics(crop, mask, erode_px)].astype(np.float64)
    _, metadata = normalized(method, stats_erode_px=erode_px)
    assert metadata["method"] == method
    np.testing.assert_allclose(metadata["mean"], pixels.mean(axis=0), rtol=0, atol=1e-9)
    np.testing.assert_allclose(metadata["std"], pixels.std(axis=0), rtol=0, atol=1e-9)
    assert ("ref_lab_mean" in metadata) == (method == "reinhard_lab_ref")


@pytest.mark.parametrize("method", METHODS)
def test_everything_outside_the_roi_becomes_black_and_bands_leave_no_seams(method: str) -> None:
    _, mask = crop_and_mask()
    whole, _ = normalized(method)
    assert not whole[mask == 0].any()
    np.testing.assert_array_equal(normalized(method, band_pixels=231 * 7)[0], whole)


def test_none_keeps_the_colours_of_the_roi() -> None:
    crop, mask = crop_and_mask()
    np.testing.assert_array_equal(normalized("none")[0], np.where(mask[..., None] > 0, crop, 0))


@pytest.mark.parametrize("clip", [2.5, 1.0])
def test_zscore_maps_the_clip_range_to_all_grey_levels(clip: float) -> None:
    crop, mask = crop_and_mask()
    counted = expected_statistics(crop, mask, 4)
    pixels = crop[counted].astype(np.float64)
    z = np.clip((crop - pixels.mean(axis=0)) / pixels.std(axis=0), -clip, clip)
    expected = np.where(mask[..., None] > 0, np.rint((z + clip) / (2 * clip) * 255), 0)
    np.testing.assert_array_equal(normalized("zscore_rgb", zscore_clip=clip)[0], expected)


def test_grayworld_gives_all_channels_the_mean_of_their_means() -> None:
    crop, mask = crop_and_mask()
    counted = expected_statistics(crop, mask, 4)
    means = crop[counted].mean(axis=0)
    expected = np.where(mask[..., None] > 0, np.clip(np.rint(crop * (means.mean() / means)), 0, 255), 0)
    image, _ = normalized("grayworld")
    np.testing.assert_array_equal(image, expected)
    # Trap of the earlier scripts: nearly everything white. Here the channels agree up to clipping.
    assert (image[counted] == 255).mean() < 0.3
    assert np.ptp(image[counted].mean(axis=0)) < np.ptp(means) / 2


def test_grayworld_leaves_an_empty_channel_alone() -> None:
    crop = np.zeros((40, 40, 3), dtype=np.uint8)
    crop[..., 0], crop[..., 1] = 100, 50
    mask = np.full((40, 40), 255, dtype=np.uint8)
    image, _ = normalize_crop(crop, mask, NormalizationConfiguration(method="grayworld"))
    assert image[20, 20].tolist() == [50, 50, 0]


def test_reinhard_gives_lab_the_references_mean_and_deviation() -> None:
    crop, mask = crop_and_mask()
    counted = expected_statistics(crop, mask, 4)
    lab = cv2.cvtColor(crop, cv2.COLOR_RGB2LAB).astype(np.float64)
    mean, std = lab[counted].mean(axis=0), lab[counted].std(axis=0)
    matched = (lab - mean) / np.maximum(std, 1.0) * REFERENCE.lab_std + REFERENCE.lab_mean
    matched_lab = np.clip(np.rint(matched), 0, 255).astype(np.uint8)
    expected = np.where(mask[..., None] > 0, cv2.cvtColor(matched_lab, cv2.COLOR_LAB2RGB), 0)
    image, metadata = normalized("reinhard_lab_ref")
    np.testing.assert_array_equal(image, expected)
    assert metadata["ref_lab_mean"] == [90.0, 150.0, 160.0]
    assert metadata["ref_lab_std"] == [25.0, 9.0, 11.0]


def test_reinhard_floors_the_deviation_of_a_flat_image_at_one_level() -> None:
    crop = np.full((50, 50, 3), (120, 80, 40), dtype=np.uint8)
    crop[10, 10] = (124, 83, 44)
    mask = np.full((50, 50), 255, dtype=np.uint8)
    image, _ = normalize_crop(crop, mask, NormalizationConfiguration(method="reinhard_lab_ref"), REFERENCE)
    assert np.unique(image.reshape(-1, 3), axis=0).shape[0] == 2
    distance = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)[20, 20].astype(int) - REFERENCE.lab_mean
    assert np.abs(distance).max() <= 2


def test_clahe_equalizes_luminance_only_with_the_median_of_every_fourth_row_outside_the_roi() -> None:
    crop, mask = crop_and_mask()
    counted = expected_statistics(crop, mask, 4)
    counted[np.arange(len(counted)) % 4 > 0] = False
    lab = cv2.cvtColor(crop, cv2.COLOR_RGB2LAB)
    counted &= lab[..., 0] > 0
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    levels = np.sort(lab[..., 0][counted])
    filled = np.where(mask > 0, lab[..., 0], levels[(len(levels) - 1) // 2])[box]
    lab[..., 0][box] = cv2.createCLAHE(2.0, (8, 8)).apply(np.ascontiguousarray(filled))
    expected = np.where(mask[..., None] > 0, cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), 0)
    np.testing.assert_array_equal(normalized("clahe_luminance")[0], expected)


@pytest.mark.parametrize("height", [1, 2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_a_mask_between_every_fourth_row_is_normalized_by_the_pixels_it_has(method: str, height: int) -> None:
    crop = np.zeros((height + 4, 6, 3), dtype=np.uint8)
    crop[1 : 1 + height] = (180, 120, 60)
    mask = np.zeros(crop.shape[:2], dtype=np.uint8)
    mask[1 : 1 + height, 2:4] = 255
    configuration = NormalizationConfiguration.model_validate({"method": method})
    whole = np.full_like(crop, 9)
    part, _ = normalize_crop(crop, mask, configuration, REFERENCE, out=whole)
    alone, _ = normalize_crop(
        np.tile(crop[1:2, :1], (8, 6, 1)), np.full((8, 6), 255, dtype=np.uint8), configuration, REFERENCE
    )
    assert not part[mask == 0].any()
    if method == "clahe_luminance":  # filled with its own level, the box is flat: each cell maps it like any other
        assert len(np.unique(part[mask > 0], axis=0)) == 1
    else:
        np.testing.assert_array_equal(part[mask > 0], np.broadcast_to(alone[0, 0], part[mask > 0].shape))


def test_the_median_of_a_plane_is_taken_from_all_rows_where_every_fourth_holds_nothing() -> None:
    plane = np.full((3, 5), 9, dtype=np.uint8)
    plane[1, 1:4] = (40, 50, 60)
    mask = np.zeros_like(plane)
    mask[1, 1:4] = 255
    assert median_level(plane, mask) == 50
    plane[:] = 0
    assert median_level(plane, mask) == 1


def test_sums_over_few_pixels_are_exact() -> None:
    generator = np.random.default_rng(1)
    for _ in range(200):
        height, width = generator.integers(1, 90, 2)
        image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        mask = np.where(generator.random((height, width)) < 0.7, np.uint8(255), np.uint8(0))
        pixels = image[mask > 0].astype(np.int64)
        sums = channel_sums(image, mask)
        assert sums.sums.tolist() == pixels.sum(axis=0).tolist()
        assert sums.squares.tolist() == (pixels**2).sum(axis=0).tolist()


def test_sums_over_many_pixels_are_exact() -> None:
    image = np.random.default_rng(0).integers(200, 256, (2100, 2000, 3), dtype=np.uint8)
    mask = np.full(image.shape[:2], 255, dtype=np.uint8)
    mask[:1000, :700] = 0
    image[1500:1510] = 0
    sums = channel_sums(image, mask, n_bands=33)
    pixels = image[mask > 0].astype(np.int64)
    assert sums.n_pixels == len(pixels)
    assert sums.n_black == 20000
    assert sums.sums.tolist() == pixels.sum(axis=0).tolist()
    assert sums.squares.tolist() == (pixels**2).sum(axis=0).tolist()


@pytest.mark.parametrize("radius_px", [1, 4, 11])
def test_erosion_takes_off_an_ellipse_and_nothing_at_the_array_s_border(radius_px: int) -> None:
    mask = np.full((120, 90), 255, dtype=np.uint8)
    cv2.circle(mask, (0, 20), 15, 0, -1)
    mask[80:83, 40:60] = 0
    side = 2 * radius_px + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)) > 0
    expected = ndimage.binary_erosion(mask > 0, kernel, border_value=1)
    np.testing.assert_array_equal(erode_mask(mask, radius_px) > 0, expected)


@pytest.mark.parametrize(("height", "width", "radius_px"), [(700, 900, 4), (289, 577, 4), (500, 700, 30)])
def test_masks_of_many_blocks_are_eroded_like_one(height: int, width: int, radius_px: int) -> None:
    mask = np.zeros((height, width), dtype=np.uint8)
    cv2.ellipse(mask, (width // 2, height // 2), (width // 2 - 5, height // 2 + 40), 0, 0, 360, 255, -1)
    mask[height // 2, width // 2] = 0
    mask[: height // 3, :3] = 255
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1, 2 * radius_px + 1))
    np.testing.assert_array_equal(erode_mask(mask, radius_px), cv2.erode(mask, kernel))


def test_an_erosion_that_would_empty_the_roi_is_left_out() -> None:
    mask = np.zeros((30, 30), dtype=np.uint8)
    mask[10:15, 10:15] = 255
    np.testing.assert_array_equal(erode_mask(mask, 4), mask)
    assert np.count_nonzero(erode_mask(mask, 1)) == 9


def test_an_roi_of_black_pixels_alone_is_normalized_with_what_it_has() -> None:
    crop = np.zeros((30, 30, 3), dtype=np.uint8)
    mask = np.full((30, 30), 255, dtype=np.uint8)
    for method in METHODS:
        configuration = NormalizationConfiguration.model_validate({"method": method})
        _, metadata = normalize_crop(crop, mask, configuration, REFERENCE)
        assert metadata["mean"] == [0.0, 0.0, 0.0]


def test_rendering_into_a_view_leaves_the_rest_of_the_array_alone() -> None:
    crop, mask = crop_and_mask()
    canvas = np.full((250, 260, 3), 7, dtype=np.uint8)
    inside = canvas[30:220, 10:241]
    normalize_crop(crop, mask, NormalizationConfiguration(), out=inside)
    np.testing.assert_array_equal(inside, normalized("zscore_rgb")[0])
    inside[:] = 7
    assert (canvas == 7).all()


def test_an_empty_mask_and_a_missing_reference_are_refused() -> None:
    crop, mask = crop_and_mask()
    with pytest.raises(ValueError, match="empty"):
        normalize_crop(crop, np.zeros_like(mask), NormalizationConfiguration())
    with pytest.raises(ValueError, match="reference_color"):
        normalize_crop(crop, mask, NormalizationConfiguration(method="reinhard_lab_ref"))
