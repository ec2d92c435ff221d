"""Choice of the retina mask: runs a lane's methods in order until one gives a plausible mask.

The result says which method it was and why those before it failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.fundus.configuration import RoiConfiguration, RoiMethod
from uveitis_assets.fundus.roi.mask_shapes import area_ratio, border_touch_ratio
from uveitis_assets.landing.quarantine import QuarantineError

# A mask (0 or 255, of the given image's size) or the reason why there is none.
RoiFunction = Callable[[NDArray[np.uint8]], NDArray[np.uint8] | str]
MODEL_BASED_METHODS: frozenset[RoiMethod] = frozenset({"sam2_prompted"})


@dataclass(frozen=True, slots=True)
class RoiResult:
    """A plausible mask (H, W), uint8, 0 or 255, raw px.

    ``fallbacks``: ``method: reason`` of methods before it.
    """

    mask: NDArray[np.uint8]
    method: RoiMethod
    fallbacks: tuple[str, ...]
    area_ratio: float
    border_touch_ratio: float


def downscale_for_roi(image_rgb: NDArray[np.uint8], max_side: int) -> NDArray[np.uint8]:
    """Shrink an image to the size that ROI methods work at; smaller images stay as they are.

    Large images are halved by area averages first, and the last step, by less than two, is bilinear: five times faster
    than area averages in one step, with the same overlap with drawn outlines to a thousandth. An odd last row or column
    is left out of a halving, which moves the far edge by less than one pixel of the result.

    Args:
        image_rgb: (H, W, 3) uint8 RGB.
        max_side: longest side of the result, px.
    """
    height, width = image_rgb.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1.0:
        return image_rgb
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = image_rgb
    while small.shape[1] >= 2 * target[0] and small.shape[0] >= 2 * target[1]:
        half_height, half_width = small.shape[0] // 2, small.shape[1] // 2
        even = small[: 2 * half_height, : 2 * half_width]
        small = np.asarray(cv2.resize(even, (half_width, half_height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return np.asarray(cv2.resize(small, target, interpolation=cv2.INTER_LINEAR_EXACT), dtype=np.uint8)


def upscale_mask(mask: NDArray[np.uint8], size: tuple[int, int], *, smooth: bool) -> NDArray[np.uint8]:
    """Enlarge a mask to raw size, binary.

    Args:
        mask: (h, w) uint8, 0 or 255.
        size: width and height of the result.
        smooth: interpolate the outline instead of repeating pixels.
    """
    if (mask.shape[1], mask.shape[0]) == size:
        return mask
    if not smooth:
        return np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
    enlarged = cv2.resize(mask, size, interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.threshold(enlarged, 127, 255, cv2.THRESH_BINARY, dst=enlarged)[1], dtype=np.uint8)


def find_roi(
    image_rgb: NDArray[np.uint8],
    small_rgb: NDArray[np.uint8],
    methods: Mapping[RoiMethod, RoiFunction],
    configuration: RoiConfiguration,
) -> RoiResult:
    """Run the methods in the mapping's order and return the first plausible mask.

    A mask is plausible when it covers at least ``min_area_ratio`` of the image; a model's mask, which may be anything,
    also has to keep below ``max_area_ratio`` and ``max_border_touch_ratio``. (A regular photograph that is cropped
    inside the field of view rightly touches all borders.)

    Args:
        image_rgb: (H, W, 3) uint8 RGB raw image; only its size is used.
        small_rgb: the same downscaled (see downscale_for_roi).
        methods: the functions, each taking the small image.
        configuration: limits.

    Raises:
        QuarantineError: ``roi_not_found`` with each method's reason.
    """
    height, width = image_rgb.shape[:2]
    failures: list[str] = []
    for method, function in methods.items():
        small_mask = function(small_rgb)
        if isinstance(small_mask, str):
            failures.append(f"{method}: {small_mask}")
            continue
        mask = upscale_mask(small_mask, (width, height), smooth=method == "uwf")
        area, touch = area_ratio(mask), border_touch_ratio(mask)
        reason = _implausible(method, area, touch, configuration)
        if reason is None:
            return RoiResult(mask, method, tuple(failures), area, touch)
        failures.append(f"{method}: {reason}")
    raise QuarantineError("roi_not_found", "; ".join(failures))


def _implausible(method: RoiMethod, area: float, touch: float, configuration: RoiConfiguration) -> str | None:
    if area < configuration.min_area_ratio:
        return f"expected a mask of at least {configuration.min_area_ratio:.3f} of the image, found {area:.3f}"
    if method not in MODEL_BASED_METHODS:
        return None
    if area > configuration.max_area_ratio:
        return f"expected a mask of at most {configuration.max_area_ratio:.3f} of the image, found {area:.3f}"
    if touch > configuration.max_border_touch_ratio:
        limit = configuration.max_border_touch_ratio
        return f"expected a mask on at most {limit:.3f} of the image's border, found {touch:.3f}"
    return None
