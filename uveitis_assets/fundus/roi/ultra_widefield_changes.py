"""Change points along the rays of a polar image: where brightness, colour or texture change outwards.

Likelihood ratios of two Gaussians against one, in nats, in narrow windows and, for lids out of focus, in wide ones.
The narrow windows pool neighbouring directions, at equal radius and along both diagonals: the straight edge of a lid
crosses the rays at a slant, and pooled at equal radius it is a soft edge, if any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.fundus.roi.ultra_widefield_parameters import UwfRetinaParameters
from uveitis_assets.fundus.roi.ultra_widefield_polar import Floats, PolarImage


class _Windows(NamedTuple):
    """Radial samples on either side of a change point, and those left out in between."""

    samples: int
    gap: int  # the border itself is blurred


_NARROW = _Windows(3, 1)
_WIDE = _Windows(8, 3)  # where the border is out of focus
_SOFT_EDGE_REACH = 4  # samples; nearer than this to a stronger sharp change, a soft one is only its echo
_OF_TEXTURE = _Windows(10, 2)  # texture needs a wide window to be measured
_TEXTURE_FLOOR = 0.3  # standard deviation below which log texture is called constant
_TANGENTIAL_WINDOW = 5  # directions pooled; suppresses lashes and vessels, which run across the outline
_SLANT = 2  # radial samples per direction, 37 degrees at radius 1: between a circle (0) and the steepest outline (4)


@dataclass(frozen=True)
class ChangePoints:
    """Likelihood ratio of a change at each polar sample, and whether the image brightens outwards there.

    ``along`` has one array for each way an outline may run there: inwards with the next direction, at equal radius, and
    outwards; ``total`` is the largest of them.
    """

    total: Floats
    along: tuple[Floats, Floats, Floats]
    brightens: NDArray[np.bool_]


def change_points(polar: PolarImage, weights: UwfRetinaParameters) -> ChangePoints:
    level, brightness_step = _colour_change(polar, weights, 1.0, _NARROW)
    soft, _ = _colour_change(polar, weights, weights.soft_edge_floor, _WIDE)
    texture, texture_step = _change_point(log_texture(polar), _TEXTURE_FLOOR, _OF_TEXTURE)
    lost_texture = np.float32(weights.texture_weight) * np.where(texture_step < 0, texture, 0)
    # The cap: the rim's edge is stronger than the lid's, not more credible.
    cap = np.float32(weights.largest_evidence)

    def combined(sharp: Floats) -> Floats:
        strongest_near = cv2.dilate(np.minimum(sharp, cap), np.ones((1, 2 * _SOFT_EDGE_REACH + 1), np.uint8))
        either = np.maximum(sharp, np.where(strongest_near < soft, soft, 0))
        return cast(Floats, np.minimum(either + lost_texture, cap))

    strongest, slanted = level, []
    for slant in (-_SLANT, _SLANT):
        sharp, slanted_step = _colour_change(polar, weights, 1.0, _NARROW, slant)
        brightness_step = np.where(sharp > strongest, slanted_step, brightness_step)
        strongest = np.maximum(strongest, sharp)
        slanted.append(combined(np.maximum(level, sharp)))
    inwards, outwards = slanted
    along = (inwards, combined(level), outwards)
    return ChangePoints(total=np.maximum.reduce(along), along=along, brightens=brightness_step > 0)


def _colour_change(
    polar: PolarImage, weights: UwfRetinaParameters, floor_factor: float, windows: _Windows, slant: int = 0
) -> tuple[Floats, Floats]:
    """Evidence of brightness and red/green ratio together, and the step of the brightness."""
    floors = floor_factor * weights.brightness_floor, floor_factor * weights.red_green_floor
    brightness, brightness_step = _change_point(polar.brightness, floors[0], windows, slant)
    red_green, red_green_step = _change_point(polar.red_green, floors[1], windows, slant)
    red_green = red_green * np.where(red_green_step < 0, 1, np.float32(weights.reddening_weight))
    return cast(Floats, brightness + red_green), brightness_step


def log_texture(polar: PolarImage) -> Floats:
    """Log of the local standard deviation of log brightness around its local mean."""
    residual = polar.brightness - cv2.blur(polar.brightness, (5, 5))
    return cast(Floats, 0.5 * np.log(cv2.blur(residual * residual, (7, 7)) + np.float32(1e-4)))


def _change_point(values: Floats, floor: float, windows: _Windows, slant: int = 0) -> tuple[Floats, Floats]:
    """Log likelihood ratio per sample of two Gaussians, inner and outer window, against one.

    Returned with the step of the mean.
    """
    mean = _window_mean(values, windows.samples, slant)
    variance = np.maximum(_window_mean(values * values, windows.samples, slant) - mean * mean, 0)
    inner_mean, inner_variance = shifted_outward(mean, windows.gap), shifted_outward(variance, windows.gap)
    outward = -(windows.samples - 1 + windows.gap)
    outer_mean, outer_variance = shifted_outward(mean, outward), shifted_outward(variance, outward)
    step = outer_mean - inner_mean
    joint_variance = (inner_variance + outer_variance) / 2 + (step / 2) ** 2
    noise = np.float32(floor * floor)
    ratio = np.log(joint_variance + noise) - 0.5 * np.log((inner_variance + noise) * (outer_variance + noise))
    return cast(Floats, ratio), cast(Floats, step)


def _window_mean(values: Floats, window: int, slant: int) -> Floats:
    """Mean over the samples r - window + 1 .. r and the neighbouring directions, which wrap around.

    Each next direction counts ``slant`` samples further out.
    """
    margin = _TANGENTIAL_WINDOW // 2
    wrapped = np.concatenate([values[-margin:], values, values[:margin]])
    height, anchor = (_TANGENTIAL_WINDOW, margin) if slant == 0 else (1, 0)
    mean = cv2.blur(wrapped, (window, height), anchor=(window - 1, anchor), borderType=cv2.BORDER_REPLICATE)
    if slant == 0:
        return cast(Floats, mean[margin:-margin])
    n_rows, n_columns = values.shape
    reach = margin * abs(slant)
    wide = cv2.copyMakeBorder(mean, 0, 0, reach, reach, cv2.BORDER_REPLICATE)
    total = np.zeros_like(values)
    for row in range(_TANGENTIAL_WINDOW):
        first = reach + slant * (row - margin)
        total += wide[row : row + n_rows, first : first + n_columns]
    return total / np.float32(_TANGENTIAL_WINDOW)


def shifted_outward(values: Floats, outward: int) -> Floats:
    """Move along the rays by whole samples, repeating the end."""
    index = np.clip(np.arange(values.shape[1]) - outward, 0, values.shape[1] - 1)
    return values[:, index]
