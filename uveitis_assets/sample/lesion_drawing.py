"""What the drawings of all lesion classes share: scene, layered patches, colours, clusters.

Sizes are in reference pixels (the image is 3900 wide); ``unit`` is pixels per reference pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.sample.painting import Field, Layer, paste_maximum, ragged_blob
from uveitis_assets.sample.vessels import Placement, VesselBranch

BELOW_VESSELS, ON_RETINA, IN_VITREOUS = "below vessels", "on retina", "in vitreous"

BLOOD = (0.34, 0.80, 0.70)
PIGMENT = (0.62, 0.62, 0.55)
CREAM = (208.0, 188.0, 34.0)
YELLOW = (214.0, 196.0, 26.0)


@dataclass(frozen=True, slots=True)
class LesionScene:
    """What a lesion needs to know of the image: size, scale, anatomy, and where retina is visible.

    ``clear`` is a coarse (h, w) bool plane covering the whole image.
    """

    width: int
    height: int
    pixels_per_unit: float
    placement: Placement
    branches: Sequence[VesselBranch]
    clear: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Drawing:
    """Layers (depth, layer) on one patch, all of the same shape; left and top place an anchored patch."""

    layers: tuple[tuple[str, Layer], ...]
    left: int = 0
    top: int = 0


def lesion_size(rng: np.random.Generator, low: float, median: float, high: float, unit: float) -> float:
    """Log-normal length in px around ``median`` reference px, within [low, high] and at least 3 px."""
    spread = np.log(high / low) / 4.0
    return max(float(np.clip(median * np.exp(rng.normal(0, spread)), low, high)) * unit, 3.0)


def drawing_around(layers: Sequence[tuple[str, Layer]], x: float, y: float) -> Drawing:
    height, width = layers[0][1].alpha.shape
    return Drawing(tuple(layers), round(x - width / 2.0), round(y - height / 2.0))


def ring_of(alpha: Field, inner: Field) -> Field:
    return np.asarray(np.clip(alpha - inner, 0.0, 1.0), np.float32)


def centred(patch: Field, side: int) -> Field:
    plane = np.zeros((side, side), np.float32)
    paste_maximum(plane, patch, side / 2.0, side / 2.0)
    return plane


def cluster(
    rng: np.random.Generator,
    extent: float,
    count: int,
    size: tuple[float, float],
    *,
    flatten: float = 0.7,
    softness: float = 0.35,
    raggedness: float = 0.25,
) -> Field:
    """Blobs scattered over an oval of ``extent`` pixels: (s, s) alpha."""
    side = int(np.ceil(extent * 1.1 + size[1] * 2.2 + 4))
    plane = np.zeros((side, side), np.float32)
    angle = rng.uniform(0, np.pi)
    for _ in range(count):
        along, across = rng.normal(0, 0.2, 2) * np.array([extent, extent * flatten])
        limit = extent / 2.0
        along, across = np.clip(along, -limit, limit), np.clip(across, -limit * flatten, limit * flatten)
        length = float(rng.uniform(*size))
        blob = ragged_blob(
            rng, length, length * rng.uniform(0.6, 1.0), rng.uniform(0, np.pi), softness=softness, raggedness=raggedness
        )
        x = side / 2.0 + along * np.cos(angle) - across * np.sin(angle)
        y = side / 2.0 + along * np.sin(angle) + across * np.cos(angle)
        paste_maximum(plane, blob * np.float32(rng.uniform(0.7, 1.0)), x, y)
    return plane
