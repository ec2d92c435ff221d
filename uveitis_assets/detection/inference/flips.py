"""Flips as test-time augmentation: tiles are shown mirrored, and what is found is mirrored back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.configuration import Flip
from uveitis_assets.detection.data.augmentation import mirrored
from uveitis_assets.detection.inference.detections import Detections

Tile = NDArray[np.uint8]

_AXES: dict[Flip, tuple[int, ...]] = {"none": (), "horizontal": (0,), "vertical": (1,), "both": (0, 1)}


def flipped(tile: Tile, flip: Flip) -> Tile:
    """The tile (H, W, 3) mirrored: left and right, top and bottom, or both."""
    axes = tuple(1 - axis for axis in _AXES[flip])
    return np.ascontiguousarray(np.flip(tile, axes)) if axes else tile


def flipped_back(found: Sequence[Detections], tiles: Sequence[Tile], flip: Flip) -> list[Detections]:
    """Detections of mirrored tiles, tile px, as they lie in the tiles themselves; exact."""
    return [_back(detections, tile.shape, flip) for detections, tile in zip(found, tiles, strict=True)]


def _back(found: Detections, shape: tuple[int, ...], flip: Flip) -> Detections:
    boxes = found.boxes
    corners = np.zeros((len(found), 4, 2), np.float32) if found.corners is None else found.corners
    for axis in _AXES[flip]:
        boxes, corners = mirrored(boxes, corners, shape[1 - axis], axis=axis)
    return Detections(boxes, found.scores, found.labels, None if found.corners is None else corners)
