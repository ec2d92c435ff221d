"""Change points along the rays of a polar image: where brightness, colour or texture change outwards.

Likelihood ratios of two Gaussians against one, in nats, in narrow windows and, for lids out of focus, in wide ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.fundus.roi.ultra_widefield_parameters import UwfRetinaParameters
from uveitis_assets.fundus.roi.ultra_widefield_polar import Floats, PolarImage

_WINDOW = 3  # radial samples on either side of a change point
_GAP = 1  # samples left out in between: the border itself is blurred
_SOFT_EDGE_WINDOW = 8  # the same where the border is out of focus
_SOFT_EDGE_GAP = 3
_SOFT_EDGE_REACH = 4  # samples; nearer than this to a stronger sharp change, a soft one is only its echo
_TEXTURE_WINDOW = 10  # texture needs a wide window to be measured
_TEXTURE_GAP = 2
_TEXTURE_FLOOR = 0.3  # standard deviation below which log texture is called constant
_TANGENTIAL_WINDOW = 5  # directions pooled; suppresses lashes and vessels, which run across the outline


@dataclass(frozen=True)
class ChangePoints:
    """Likelihood ratio of a change at each polar sample, and whether the image brightens outwards there."""

    total: Floats
    brightens: NDArray[np.bool_]


def change_points(polar: PolarImage, weights: UwfRetinaParameters) -> ChangePoints:
    sharp, brightness_step = _colour_change(polar, weights, 1.0, _WINDOW, _GAP)
    texture, texture_step = _change_point(log_texture(polar), _TEXTURE_FLOOR, _TEXTURE_WINDOW, _TEXTURE_GAP)
    # The cap: the rim's edge is stronger than the lid's, not more credible.
    cap = np.float32(weights.largest_evidence)
    soft, _ = _colour_change(polar, weights, weights.soft_edge_floor, _SOFT_EDGE_WINDOW, _SOFT_EDGE_GAP)
    strongest_near = cv2.dilate(np.minimum(sharp, cap), np.ones((1, 2 * _SOFT_EDGE_REACH + 1), np.uint8))
    total = np.maximum(sharp, np.where(strongest_near < soft, soft, 0))
    total += np.float32(weights.texture_weight) * np.where(texture_step < 0, texture, 0)
    return ChangePoints(total=np.minimum(total, cap), brightens=brightness_step > 0)


def _colour_change(
    polar: PolarImage, weights: UwfRetinaParameters, floor_factor: float, window: int, gap: int
) -> tuple[Floats, Floats]:
    """Evidence of brightness and red/green ratio together, and the step of the brightness."""
    brightness, brightness_step = _change_point(polar.brightness, floor_factor * weights.brightness_floor, window, gap)
    red_green, red_green_step = _change_point(polar.red_green, floor_factor * weights.red_green_floor, window, gap)
    red_green = red_green * np.where(red_green_step < 0, 1, np.float32(weights.reddening_weight))
    return cast(Floats, brightness + red_green), brightness_step


def log_texture(polar: PolarImage) -> Floats:
    """Log of the local standard deviation of log brightness around its local mean."""
    residual = polar.brightness - cv2.blur(polar.brightness, (5, 5))
    return cast(Floats, 0.5 * np.log(cv2.blur(residual * residual, (7, 7)) + np.float32(1e-4)))


def _change_point(values: Floats, floor: float, window: int, gap: int) -> tuple[Floats, Floats]:
    """Log likelihood ratio per sample of two Gaussians, inner and outer window, against one.

    Returned with the step of the mean.
    """
    mean = _window_mean(values, window)
    variance = np.maximum(_window_mean(values * values, window) - mean * mean, 0)
    inner_mean, inner_variance = shifted_outward(mean, gap), shifted_outward(variance, gap)
    outward = -(window - 1 + gap)
    outer_mean, outer_variance = shifted_outward(mean, outward), shifted_outward(variance, outward)
    step = outer_mean - inner_mean
    joint_variance = (inner_variance + outer_variance) / 2 + (step / 2) ** 2
    noise = np.float32(floor * floor)
    ratio = np.log(joint_variance + noise) - 0.5 * np.log((inner_variance + noise) * (outer_variance + noise))
    return cast(Floats, ratio), cast(Floats, step)


def _window_mean(values: Floats, window: int) -> Floats:
    """Mean over the samples r - window + 1 .. r and the neighbouring directions, which wrap around."""
    margin = _TANGENTIAL_WINDOW
    wrapped = np.concatenate([values[-margin:], values, values[:margin]])
    mean = cv2.blur(
        wrapped,
        (window, _TANGENTIAL_WINDOW),
        anchor=(window - 1, _TANGENTIAL_WINDOW // 2),
        borderType=cv2.BORDER_REPLICATE,
    )
    return cast(Floats, mean[margin:-margin])


def shifted_outward(values: Floats, outward: int) -> Floats:
    """Move along the rays by whole samples, repeating the end."""
    index = np.clip(np.arange(values.shape[1]) - outward, 0, values.shape[1] - 1)
    return values[:, index]
