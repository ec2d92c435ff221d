"""Lesion heat maps: the detector's confidence place by place, on one scale for all images.

A detection spreads its score over its box (or oriented box) as a smooth hill; where hills meet, they join as
independent witnesses, 1 - (1 - a)(1 - b), so that values stay between 0 and 1 and two images can be compared: nothing
is stretched to an image's own maximum.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.inference.detections import Detections

# Width of a hill in half sides of its box: at the middle of a side it has fallen to 0.28 of its height.
_HILL_WIDTH = 0.63
# Where a hill is cut off, in half sides: it has fallen below 0.02.
_HILL_REACH = 1.8
_SMALLEST_SIDE_PX = 6.0
_LARGEST_OPACITY = 0.75


def heat_map(detections: Detections, size: tuple[int, int]) -> NDArray[np.float32]:
    """Heat map of one image.

    Args:
        detections: px of the image.
        size: width and height of the image, px.

    Returns:
        float32 (height, width), 0 where nothing was found, below or equal to 1.
    """
    width, height = size
    doubt = np.ones((height, width), np.float32)
    centres, axes = _centres_and_axes(detections)
    for centre, (along, across), score in zip(centres, axes, detections.scores.tolist(), strict=True):
        reach = _HILL_REACH * (np.abs(along) + np.abs(across))
        x0, y0 = np.maximum(np.floor(centre - reach), 0).astype(int).tolist()
        x1, y1 = np.minimum(np.ceil(centre + reach), size).astype(int).tolist()
        if x0 >= x1 or y0 >= y1:
            continue
        x = np.arange(x0, x1) + 0.5 - centre[0]
        y = (np.arange(y0, y1) + 0.5 - centre[1])[:, None]
        u = (x * along[0] + y * along[1]) / (along @ along)
        v = (x * across[0] + y * across[1]) / (across @ across)
        squared = u * u + v * v
        hill = np.where(squared < _HILL_REACH**2, np.exp(squared / (-2 * _HILL_WIDTH**2)), 0.0)
        doubt[y0:y1, x0:x1] *= (1.0 - score * hill).astype(np.float32)
    return 1.0 - doubt


def draw_heat_map(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Lay a heat map over an RGB image (H, W, 3), with the scale at its right edge; returns a new image."""
    colors = _color_table()[np.clip(np.rint(heat * 255), 0, 255).astype(np.uint8)].astype(np.float32)
    # Faint values show faintly, but still show.
    opacity = (_LARGEST_OPACITY * np.sqrt(np.clip(heat, 0.0, 1.0)))[..., None]
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB).astype(np.float32)
    blended = np.rint(grey * (1.0 - opacity) + colors * opacity).astype(np.uint8)
    _draw_scale(blended)
    return blended


def _centres_and_axes(detections: Detections) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres (N, 2) and half axes (N, 2, 2) of the boxes, the oriented ones where there are any."""
    if detections.corners is None:
        x0, y0, x1, y1 = detections.boxes.astype(np.float64).T
        corners = np.stack([np.stack(point, -1) for point in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))], axis=1)
    else:
        corners = detections.corners.astype(np.float64)
    halves = np.stack([corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 0]], axis=1) / 2.0
    lengths = np.linalg.norm(halves, axis=2, keepdims=True)
    directions = np.divide(halves, lengths, out=np.tile(np.eye(2), (len(halves), 1, 1)), where=lengths > 0)
    return corners.mean(axis=1), directions * np.maximum(lengths, _SMALLEST_SIDE_PX / 2.0)


@functools.cache
def _color_table() -> NDArray[np.uint8]:
    """256 RGB colours of OpenCV's inferno map: even in lightness, so that it reads in grey too."""
    steps = np.arange(256, dtype=np.uint8)[:, None]
    return cv2.cvtColor(cv2.applyColorMap(steps, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)[:, 0].astype(np.uint8)


def _draw_scale(image: NDArray[np.uint8]) -> None:
    """Draw a bar from 0 to 1 with its numbers at the lower right, in place."""
    height, width = image.shape[:2]
    bar_height, bar_width = height // 4, max(width // 64, 4)
    right, bottom = width - width // 32, height - height // 32
    left, top = right - bar_width, bottom - bar_height
    values = np.rint(np.linspace(255, 0, bar_height)).astype(np.uint8)
    image[top:bottom, left:right] = _color_table()[values][:, None]
    cv2.rectangle(image, (left - 1, top - 1), (right, bottom), (200, 200, 200), 1)
    scale = height / 1024 * 0.6
    for text, y in (("1", top), ("0.5", (top + bottom) // 2), ("0", bottom)):
        (text_width, text_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        place = (left - text_width - bar_width // 2, y + text_height // 2)
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (230, 230, 230), 1, cv2.LINE_AA)
