"""Random changes of a training tile and its boxes: flips, saturation, brightness, contrast, gamma.

Pixels stay uint8 throughout: colour goes through one 3x3 matrix and one table of 256 entries. Black pixels, the padding
outside the retina, stay black whatever the change. It draws nothing itself but from the generator it is given.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.configuration import AugmentationConfiguration

# Luminance of ITU-R BT.601, as in grey images of cv2.
_LUMINANCE = np.array([0.299, 0.587, 0.114])


def augment(
    pixels: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    corners: NDArray[np.float32],
    configuration: AugmentationConfiguration,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """One random variant of a tile.

    The generator is asked for the same numbers whatever the configuration, so that one probability can be changed
    without changing the other draws.

    Args:
        pixels: (H, W, 3) uint8 RGB; not changed.
        boxes: (N, 4) x0 y0 x1 y1 in px.
        corners: (N, 4, 2) in px, NaN where there is no oriented box.
        configuration: probabilities and largest changes.
        rng: source of all randomness.

    Returns:
        Pixels, boxes and corners of the variant; flipped corners go around in the same direction as before.
    """
    flips = rng.random(2)
    brightness, contrast, saturation, gamma = rng.uniform(-1.0, 1.0, 4)
    pixels = change_colours(
        pixels,
        brightness=1.0 + brightness * configuration.brightness,
        contrast=1.0 + contrast * configuration.contrast,
        saturation=1.0 + saturation * configuration.saturation,
        gamma=float(np.exp(gamma * configuration.gamma)),
    )
    height, width = pixels.shape[:2]
    if flips[0] < configuration.horizontal_flip:
        pixels = np.asarray(cv2.flip(pixels, 1), np.uint8)
        boxes, corners = mirrored(boxes, corners, width, axis=0)
    if flips[1] < configuration.vertical_flip:
        pixels = np.asarray(cv2.flip(pixels, 0), np.uint8)
        boxes, corners = mirrored(boxes, corners, height, axis=1)
    return pixels, boxes, corners


def mirrored(
    boxes: NDArray[np.float32], corners: NDArray[np.float32], length: int, *, axis: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Boxes and corners of an image that was mirrored.

    Args:
        boxes: (N, 4) x0 y0 x1 y1 in px, pixel edges: x becomes ``length - x``.
        corners: (N, 4, 2) in px; mirroring turns their direction around, so they are listed backwards from the first.
        length: the image's width (axis 0) or height (axis 1), px.
        axis: 0 mirrors x, 1 mirrors y.
    """
    moved = boxes.copy()
    moved[:, axis], moved[:, axis + 2] = length - boxes[:, axis + 2], length - boxes[:, axis]
    turned = corners[:, [0, 3, 2, 1]]
    turned[..., axis] = length - turned[..., axis]
    return moved, turned


def change_colours(
    pixels: NDArray[np.uint8], *, brightness: float, contrast: float, saturation: float, gamma: float
) -> NDArray[np.uint8]:
    """Change saturation, brightness, contrast and gamma of the pixels that are not black.

    In that order; contrast changes around the mean grey of these pixels.

    Args:
        pixels: (H, W, 3) uint8 RGB; not changed.
        brightness: factor on grey levels.
        contrast: factor on the distance from the mean grey.
        saturation: factor on the distance from the pixel's own grey.
        gamma: exponent on levels scaled to 0..1.

    Returns:
        (H, W, 3) uint8; pixels that were black in all channels still are.
    """
    if brightness == contrast == saturation == gamma == 1.0:
        return pixels
    lit = cv2.bitwise_not(cv2.inRange(pixels, np.zeros(3), np.zeros(3)))
    changed = pixels
    if saturation != 1.0:
        matrix = saturation * np.eye(3) + (1.0 - saturation) * _LUMINANCE
        changed = np.asarray(cv2.transform(pixels, matrix), np.uint8)
    mean = float(np.dot(cv2.mean(changed, lit)[:3], _LUMINANCE)) * brightness
    levels = np.arange(256) * brightness
    levels = np.clip((levels - mean) * contrast + mean, 0.0, 255.0)
    levels = 255.0 * (levels / 255.0) ** gamma
    changed = np.asarray(cv2.LUT(changed, np.rint(levels).astype(np.uint8)), np.uint8)
    # What the mask leaves out is zero in the new array.
    return np.asarray(cv2.copyTo(changed, lit), np.uint8)
