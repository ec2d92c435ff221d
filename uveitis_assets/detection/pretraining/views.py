"""Inputs of a masked autoencoder: a random view of an image, and the noise that selects its mask."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.pretraining.masked_autoencoder import CHANNEL_MEAN, CHANNEL_STD


class View(NamedTuple):
    """One example: normalized pixels of a view, and the noise that selects its hidden patches.

    ``pixels`` is float32 (3, S, S), normalized channels; ``noise`` float32 (n_patches,), 0 to 1. ``number`` is the
    image's position among those that are shown.
    """

    number: int
    pixels: NDArray[np.float32]
    noise: NDArray[np.float32]


def random_view(
    pixels: NDArray[np.uint8], rng: np.random.Generator, side: int, smallest_crop: float
) -> NDArray[np.float32]:
    """Random crop, resized to a square and flipped horizontally at random; normalized channels.

    The crop's aspect ratio is 3:4 to 4:3, the result float32 (3, side, side).

    Args:
        pixels: RGB (H, W, 3).
        rng: decides crop and mirror.
        side: of the result, px.
        smallest_crop: smallest area of the crop, share of the image.
    """
    height, width = pixels.shape[:2]
    area = height * width * rng.uniform(smallest_crop, 1.0)
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    crop_width = min(width, max(1, round(math.sqrt(area * ratio))))
    crop_height = min(height, max(1, round(math.sqrt(area / ratio))))
    x = int(rng.integers(0, width - crop_width + 1))
    y = int(rng.integers(0, height - crop_height + 1))
    crop = pixels[y : y + crop_height, x : x + crop_width]
    shrinks = crop_width >= side and crop_height >= side
    view = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        view = view[:, ::-1]
    mean, std = np.array(CHANNEL_MEAN, np.float32), np.array(CHANNEL_STD, np.float32)
    normalized = (view.astype(np.float32) / 255.0 - mean) / std
    return np.ascontiguousarray(normalized.transpose(2, 0, 1))
