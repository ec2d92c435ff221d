"""Choice of the ROI mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from uveitis_assets.fundus.configuration import RoiConfiguration, RoiMethod
from uveitis_assets.fundus.crop import crop_box
from uveitis_assets.fundus.roi.choice import (
    RoiFunction,
    area_ratio,
    border_touch_ratio,
    downscale_for_roi,
    find_roi,
    upscale_mask,
)
from uveitis_assets.fundus.roi.threshold import threshold_retina_mask
from uveitis_assets.fundus.roi.ultra_widefield import uwf_retina_mask
from uveitis_assets.landing.quarantine import QuarantineError
from uveitis_assets_tests.fundus.preprocess_inputs import read_rgb

RAW = np.zeros((400, 600, 3), dtype=np.uint8)
SMALL = np.zeros((200, 300, 3), dtype=np.uint8)


def box_mask(x0: int, y0: int, x1: int, y1: int) -> NDArray[np.uint8]:
    mask = np.zeros(SMALL.shape[:2], dtype=np.uint8)
    mask[y0:y1, x0:x1] = 255
    return mask


def function(result: NDArray[np.uint8] | str) -> RoiFunction:
    return lambda image: result


def test_the_first_plausible_mask_is_taken_and_failures_before_it_are_kept() -> None:
    methods: dict[RoiMethod, RoiFunction] = {
        "sam2_prompted": function("empty mask"),
        "uwf": function(box_mask(0, 0, 20, 20)),
        "threshold": function(box_mask(75, 50, 225, 150)),
    }
    result = find_roi(RAW, SMALL, methods, RoiConfiguration())
    assert result.method == "threshold"
    assert result.fallbacks[0] == "sam2_prompted: empty mask"
    assert result.fallbacks[1].startswith("uwf: expected a mask of at least 0.100 of the image, found 0.007")
    assert result.area_ratio == pytest.approx(0.25)
    assert result.border_touch_ratio == 0.0
    expected = np.zeros((400, 600), dtype=np.uint8)
    expected[100:300, 150:450] = 255
    np.testing.assert_array_equal(result.mask, expected)


def test_a_model_that_marks_everything_is_implausible_but_a_threshold_may() -> None:
    whole = box_mask(0, 0, 300, 200)
    result = find_roi(RAW, SMALL, {"sam2_prompted": function(whole), "threshold": function(whole)}, RoiConfiguration())
    assert result.method == "threshold"
    assert "at most 0.980" in result.fallbacks[0]
    assert result.border_touch_ratio == 1.0


def test_a_model_mask_along_the_borders_is_implausible() -> None:
    frame = box_mask(0, 0, 300, 200)
    frame[60:140, 60:240] = 0
    with pytest.raises(QuarantineError, match=r"border, found 1\.000") as caught:
        find_roi(RAW, SMALL, {"sam2_prompted": function(frame)}, RoiConfiguration())
    assert caught.value.reason == "roi_not_found"


def test_without_a_plausible_mask_the_image_is_quarantined_with_every_reason() -> None:
    methods: dict[RoiMethod, RoiFunction] = {
        "uwf": function("no outline"),
        "threshold": function(box_mask(0, 0, 0, 0)),
    }
    with pytest.raises(QuarantineError, match=r"uwf: no outline; threshold: expected .* found 0\.000"):
        find_roi(RAW, SMALL, methods, RoiConfiguration())


def test_border_touch_is_the_mean_of_the_four_lines_of_the_mask_itself() -> None:
    mask = np.zeros((40, 80), dtype=np.uint8)
    mask[0, 1:21] = 255  # a quarter of the top line
    mask[20:, 79] = 255  # half of the right line and one pixel of the bottom line
    assert border_touch_ratio(mask) == pytest.approx((0.25 + 0.5 + 0.0 + 1 / 80) / 4)
    assert area_ratio(mask) == pytest.approx(40 / 3200)


@pytest.mark.parametrize(("width", "height"), [(3900, 3072), (3901, 3073), (1280, 1280), (769, 100), (5000, 40)])
def test_downscaling_reaches_the_longest_side_and_keeps_block_means(width: int, height: int) -> None:
    ramp = np.linspace(0, 255, width, dtype=np.float32)[None, :].repeat(height, axis=0)
    small = downscale_for_roi(np.dstack([ramp.astype(np.uint8)] * 3), 768)
    assert max(small.shape[:2]) == 768
    assert small.shape[1] / small.shape[0] == pytest.approx(width / height, rel=0.06)
    expected = np.linspace(0, 255, small.shape[1])
    assert np.abs(small[small.shape[0] // 2, :, 0] - expected).max() <= 2.0


def test_small_images_are_not_enlarged() -> None:
    image = np.zeros((500, 700, 3), dtype=np.uint8)
    assert downscale_for_roi(image, 768) is image


@pytest.mark.parametrize("smooth", [False, True])
def test_enlarged_masks_stay_binary_and_keep_their_area(smooth: bool) -> None:
    y, x = np.mgrid[:150, :200]
    mask = np.where((x - 100) ** 2 + (y - 75) ** 2 < 60**2, np.uint8(255), np.uint8(0))
    large = upscale_mask(mask, (1033, 777), smooth=smooth)
    assert large.shape == (777, 1033)
    assert set(np.unique(large)) == {0, 255}
    assert area_ratio(large) == pytest.approx(area_ratio(mask), abs=0.003)


def test_the_crop_is_the_masks_box_with_a_margin_inside_the_image() -> None:
    mask = np.zeros((100, 120), dtype=np.uint8)
    mask[5:80, 30:110] = 255
    assert crop_box(mask, 12) == (18, 0, 120, 92)
    assert crop_box(mask, 0) == (30, 5, 110, 80)
    with pytest.raises(ValueError, match="empty"):
        crop_box(np.zeros_like(mask), 12)


@pytest.mark.parametrize("method", [threshold_retina_mask, uwf_retina_mask])
def test_the_masks_of_drive_agree_with_its_field_of_view_masks(
    real_data: Path, method: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> None:
    ious = {}
    for path in sorted((real_data / "drive" / "images").iterdir()):
        truth = cv2.imread(str(real_data / "drive" / "fov_masks" / f"{path.stem}_mask.png"), cv2.IMREAD_GRAYSCALE)
        assert truth is not None
        mask = method(read_rgb(path)) > 0
        ious[path.stem] = np.count_nonzero(mask & (truth > 0)) / np.count_nonzero(mask | (truth > 0))
    assert len(ious) == 10
    assert min(ious.values()) >= 0.985, ious
