"""Random windows of an image, of other origin, scale and angle than its tiles, and their lesions.

A window is a square in the px of the picture that its tile was cut from; what lies in neighbouring tiles is read from
them, so that no border of the tile shows. Outside the picture it is black.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.configuration import AugmentationConfiguration
from uveitis_assets.detection.data.labelled_split import LabelledImage
from uveitis_assets.detection.inference.detections import GroundTruth

# Share of a box inside a window, or of a window inside a box, from which it is kept: as in the tiles' labels.
_KEPT_SHARE = 0.2
_SMALLEST_SIDE_PX = 0.5
# Beyond, pixels of the source would be skipped between the samples of a bilinear interpolation.
_LARGEST_LINEAR_REDUCTION = 1.5

Pixels = NDArray[np.uint8]


class TileReader(Protocol):
    """Reads one tile of an image, (H, W, 3) uint8 RGB."""

    def read(self, image: LabelledImage, tile: int) -> Pixels: ...


@dataclass(frozen=True, slots=True)
class Window:
    """A turned square of a picture.

    ``centre`` and ``side`` are in px of the picture, ``angle`` in radians, ``drawn_side`` in px of what is drawn.
    """

    centre: tuple[float, float]
    side: float
    angle: float
    drawn_side: int

    def to_picture(self) -> NDArray[np.float64]:
        """Affine matrix (2, 3) from window px to picture px, pixel edges."""
        scale = self.side / self.drawn_side
        cos, sin = scale * np.cos(self.angle), scale * np.sin(self.angle)
        linear = np.array([[cos, -sin], [sin, cos]])
        offset = np.array(self.centre) - linear @ np.full(2, self.drawn_side / 2)
        return np.hstack([linear, offset[:, None]])


def wants_windows(configuration: AugmentationConfiguration) -> bool:
    """Whether tiles are shown moved, scaled or turned at all."""
    return bool(configuration.origin_shift or configuration.scale or configuration.rotation)


def random_window(
    image: LabelledImage, tile: int, configuration: AugmentationConfiguration, input_size: int, rng: np.random.Generator
) -> Window:
    """A window around a tile; the generator is asked for the same numbers whatever the configuration.

    Px are those of the picture that the tile was cut from, or of the global image where it is that.
    """
    shift = rng.uniform(-1.0, 1.0, 2)
    scale, angle = rng.uniform(-1.0, 1.0, 2)
    place = image.frames.tiles[tile]
    if place.is_global:
        corner, size, limits = (0, 0), (place.width, place.height), (place.width, place.height)
    else:
        corner, size, limits = (place.x0, place.y0), (place.width, place.height), image.frames.tiling_size
    side = max(size)
    # The whole image has no neighbours: moved, it would only lose lesions.
    most = 0.0 if place.is_global else configuration.origin_shift * side
    centre = [
        float(np.clip(start + length / 2 + move * most, 0, limit))
        for start, length, move, limit in zip(corner, size, shift.tolist(), limits, strict=True)
    ]
    return Window(
        centre=(centre[0], centre[1]),
        side=float(side * np.exp(-scale * configuration.scale)),
        angle=float(np.deg2rad(angle * configuration.rotation)),
        drawn_side=input_size,
    )


def read_window(reader: TileReader, image: LabelledImage, tile: int, window: Window) -> Pixels:
    """The window's pixels, (S, S, 3) uint8 RGB, bilinear; black outside the picture."""
    matrix = window.to_picture()
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * window.drawn_side
    reached = corners @ matrix[:, :2].T + matrix[:, 2]
    low, high = np.floor(reached.min(axis=0)).astype(int) - 2, np.ceil(reached.max(axis=0)).astype(int) + 2
    if image.frames.tiles[tile].is_global:
        region, origin = reader.read(image, tile), np.zeros(2, int)
    else:
        region, origin = read_region(reader, image, (*low.tolist(), *high.tolist()))
    reduction = window.side / window.drawn_side
    scale = np.ones(2)
    if reduction > _LARGEST_LINEAR_REDUCTION:
        reduced = [max(1, round(length / reduction)) for length in region.shape[1::-1]]
        scale = np.array(reduced) / region.shape[1::-1]
        region = np.asarray(cv2.resize(region, reduced, interpolation=cv2.INTER_AREA), np.uint8)
    to_region = np.hstack([matrix[:, :2], (matrix[:, 2] - origin)[:, None]]) * scale[:, None]
    # cv2 counts from the centre of the first pixel.
    to_region[:, 2] += to_region[:, :2].sum(axis=1) / 2 - 0.5
    size = (window.drawn_side, window.drawn_side)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(region, to_region, size, flags=flags), np.uint8)


def read_region(
    reader: TileReader, image: LabelledImage, box: tuple[int, int, int, int]
) -> tuple[Pixels, NDArray[np.int64]]:
    """Pixels of a box in tiling px, put together from its tiles, and the corner that they begin at.

    What lies outside the picture is left out. Tiles are read in their order until nothing is missing.
    """
    width, height = image.frames.tiling_size
    x0, y0, x1, y1 = max(0, box[0]), max(0, box[1]), min(width, box[2]), min(height, box[3])
    region = np.zeros((max(1, y1 - y0), max(1, x1 - x0), 3), np.uint8)
    missing = np.ones(region.shape[:2], np.bool_)
    for number, place in enumerate(image.frames.tiles):
        left, top = max(x0, place.x0), max(y0, place.y0)
        right, bottom = min(x1, place.x1), min(y1, place.y1)
        if place.is_global or left >= right or top >= bottom:
            continue
        rows, columns = slice(top - y0, bottom - y0), slice(left - x0, right - x0)
        if not missing[rows, columns].any():
            continue
        pixels = reader.read(image, number)
        region[rows, columns] = pixels[top - place.y0 : bottom - place.y0, left - place.x0 : right - place.x0]
        missing[rows, columns] = False
    return region, np.array([x0, y0])


def picture_truth(image: LabelledImage, tile: int) -> GroundTruth:
    """All lesions of the image in px of the picture that the tile was cut from."""
    truth, frames = image.truth, image.frames
    if frames.frame != "native" or frames.tiles[tile].is_global:
        return truth
    to_tiling = frames.crop_to_global.inverse()
    boxes = to_tiling.apply_boxes(truth.boxes).astype(np.float32)
    return GroundTruth(boxes, truth.labels, to_tiling.apply(truth.corners).astype(np.float32), truth.scores)


def truth_in_window(truth: GroundTruth, window: Window) -> GroundTruth:
    """The lesions that a window shows, clipped, in its px.

    A turned oriented box has the bounding box of its corners. Of an upright box the shape inside is not known: the
    ellipse that fills it is turned, whose bounding box is right for round lesions, where that of the turned corners
    would be up to 1.41 times too wide. A lesion stays when a fifth of its box is inside, or it covers a fifth of the
    window; corners are kept where all four are inside.
    """
    matrix = window.to_picture()
    back = np.linalg.inv(matrix[:, :2])

    def moved(points: NDArray[Any]) -> NDArray[np.float64]:
        result: NDArray[np.float64] = (points.astype(np.float64) - matrix[:, 2]) @ back.T
        return result

    low, high = truth.boxes[:, :2].astype(np.float64), truth.boxes[:, 2:].astype(np.float64)
    centre, half = moved((low + high) / 2), (high - low) / 2
    reach = np.sqrt((half**2) @ (back**2).T)
    boxes = np.hstack([centre - reach, centre + reach])
    corners = moved(truth.corners)
    oriented = np.isfinite(corners).all(axis=(1, 2))
    boxes[oriented] = np.hstack([corners[oriented].min(axis=1), corners[oriented].max(axis=1)])
    side = float(window.drawn_side)
    clipped = np.clip(boxes, 0.0, side)
    sizes = clipped[:, 2:] - clipped[:, :2]
    areas = sizes.prod(axis=1)
    whole = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    kept = (areas >= _KEPT_SHARE * whole) | (areas >= _KEPT_SHARE * side**2)
    kept &= (sizes >= _SMALLEST_SIDE_PX).all(axis=1)
    outside = oriented & ((corners < 0) | (corners > side)).any(axis=(1, 2))
    corners[outside] = np.nan
    return GroundTruth(
        clipped[kept].astype(np.float32), truth.labels[kept], corners[kept].astype(np.float32), truth.scores[kept]
    )
