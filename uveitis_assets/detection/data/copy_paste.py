"""Pastes lesions of other training images into a tile, rare classes more often.

Source: Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation, 2021. Here
lesions stay inside the retina, off other lesions, in the brightness and colour of where they are pasted, with soft
rims: the outline of a lesion is not known, only its box.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.data.augmentation import mirrored
from uveitis_assets.detection.data.labelled_split import LabelledImage
from uveitis_assets.detection.data.tile_windows import TileReader, picture_truth, read_region
from uveitis_assets.detection.inference.detections import GroundTruth

# Surroundings that are pasted along and fade out, as a share of the lesion's side, and at least, px.
_MARGIN_SHARE = 0.3
_SMALLEST_MARGIN_PX = 3
# Larger lesions would cover what the tile shows.
_LARGEST_SHARE_OF_TILE = 0.33
_PLACES_TRIED = 12

Pixels = NDArray[np.uint8]


class LesionBank:
    """The lesions of training images that may be pasted; draws rare classes more often."""

    def __init__(self, images: Sequence[LabelledImage]) -> None:
        """Chances are such that every class is drawn equally often, and every lesion of a class as well."""
        self._images = images
        self._rows = [(at, row) for at, image in enumerate(images) for row in range(len(image.truth))]
        labels = np.array([images[at].truth.labels[row] for at, row in self._rows], np.int64)
        counts = np.bincount(labels, minlength=1)
        weights = 1.0 / counts[labels] if len(labels) else np.zeros(0)
        self._ends = np.cumsum(weights)

    def draw(self, rng: np.random.Generator) -> tuple[LabelledImage, int]:
        """An image and the row of one of its lesions.

        Raises:
            ValueError: there are no lesions.
        """
        if not self._rows:
            raise ValueError("augmentation.copy_paste: expected lesions to paste, found none in the training images")
        at, row = self._rows[int(np.searchsorted(self._ends, rng.random() * self._ends[-1], side="right"))]
        return self._images[at], row


def paste_lesions(
    pixels: Pixels,
    truth: GroundTruth,
    bank: LesionBank,
    reader: TileReader,
    *,
    scale: float,
    n_lesions: int,
    rng: np.random.Generator,
) -> tuple[Pixels, GroundTruth]:
    """A tile with up to ``n_lesions`` more lesions; one that finds no place is left out.

    Args:
        pixels: (H, W, 3) uint8 RGB; not changed.
        truth: its lesions, px of the tile.
        bank: lesions to paste.
        reader: reads tiles of the bank's images.
        scale: px of the tile per px of the picture that the bank's tiles were cut from.
        n_lesions: lesions to draw.
        rng: source of all randomness.
    """
    result = pixels.copy()
    for _ in range(n_lesions):
        patch = _patch(reader, bank.draw(rng), scale, rng, min(pixels.shape[:2]))
        if patch is None:
            continue
        source, lesion = patch
        place = _free_place(result, truth, source.shape[:2], rng)
        if place is None:
            continue
        left, top = place
        height, width = source.shape[:2]
        target = result[top : top + height, left : left + width]
        target[:] = _blended(target, source, lesion.boxes[0])
        truth = _joined(truth, lesion, (left, top))
    return result, truth


def _patch(
    reader: TileReader, lesion: tuple[LabelledImage, int], scale: float, rng: np.random.Generator, tile_side: int
) -> tuple[Pixels, GroundTruth] | None:
    """A lesion with its surroundings, mirrored at random, and its label in px of the patch.

    None for one that is too large or lies at the rim of retina or picture.
    """
    image, row = lesion
    flips = rng.random(2) < 0.5
    tile = next(number for number, place in enumerate(image.frames.tiles) if not place.is_global)
    truth = picture_truth(image, tile)
    box = truth.boxes[row].astype(np.float64)
    side = float((box[2:] - box[:2]).max())
    if side <= 0 or side * scale > _LARGEST_SHARE_OF_TILE * tile_side:
        return None
    margin = max(_SMALLEST_MARGIN_PX / scale, _MARGIN_SHARE * side)
    low, high = np.floor(box[:2] - margin).astype(int), np.ceil(box[2:] + margin).astype(int)
    region, origin = read_region(reader, image, (*low.tolist(), *high.tolist()))
    if (origin != low).any() or region.shape[1::-1] != tuple(high - low) or not _is_lit(region):
        return None
    size = np.maximum(1, np.round((high - low) * scale).astype(int))
    if scale != 1.0:
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        region = np.asarray(cv2.resize(region, size.tolist(), interpolation=interpolation), np.uint8)
    ratio = size / (high - low)
    boxes = ((truth.boxes[[row]].reshape(1, 2, 2) - low) * ratio).reshape(1, 4).astype(np.float32)
    corners = ((truth.corners[[row]] - low) * ratio).astype(np.float32)
    for axis in (0, 1):
        if flips[axis]:
            region = np.asarray(cv2.flip(region, 1 - axis), np.uint8)
            boxes, corners = mirrored(boxes, corners, int(size[axis]), axis=axis)
    return region, GroundTruth(boxes, truth.labels[[row]], corners, truth.scores[[row]])


def _free_place(
    pixels: Pixels, truth: GroundTruth, size: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int] | None:
    """Left and top of a random place inside the retina that touches no lesion."""
    height, width = size
    for _ in range(_PLACES_TRIED):
        x, y = rng.random(2)
        left, top = int(x * (pixels.shape[1] - width + 1)), int(y * (pixels.shape[0] - height + 1))
        boxes = truth.boxes
        touched = (boxes[:, 0] < left + width) & (boxes[:, 2] > left) & (boxes[:, 1] < top + height)
        touched &= boxes[:, 3] > top
        if not touched.any() and _is_lit(pixels[top : top + height, left : left + width]):
            return left, top
    return None


def _is_lit(pixels: Pixels) -> bool:
    """Whether no pixel is black: outside the retina all are."""
    return bool(pixels.any(axis=2).all())


def _blended(target: Pixels, source: Pixels, box: NDArray[np.float32]) -> Pixels:
    """The patch faded into its place: whole inside the ellipse of its box, gone at its own rim."""
    height, width = source.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    centre, half = (box[:2] + box[2:]) / 2, np.maximum((box[2:] - box[:2]) / 2, 0.5)
    offset = np.hypot((x - centre[0]) / half[0], (y - centre[1]) / half[1])
    # Distance to the patch's rim in the same direction, in the same unit.
    reach = np.minimum(
        np.where(x > centre[0], width - centre[0], centre[0]) / np.maximum(np.abs(x - centre[0]), 1e-6),
        np.where(y > centre[1], height - centre[1], centre[1]) / np.maximum(np.abs(y - centre[1]), 1e-6),
    )
    rim = offset * reach
    alpha = np.clip((rim - offset) / np.maximum(rim - 1.0, 1e-6), 0.0, 1.0)[..., None]
    outside = (x < box[0]) | (x > box[2]) | (y < box[1]) | (y > box[3])
    around = outside[..., None]
    n_around = max(1, int(around.sum()))
    shift = ((target.astype(np.float64) - source) * around).sum(axis=(0, 1)) / n_around
    mixed = alpha * (source + shift) + (1.0 - alpha) * target
    # Black means outside the retina: nothing inside becomes black.
    result: Pixels = np.clip(np.rint(mixed), 1, 255).astype(np.uint8)
    return result


def _joined(truth: GroundTruth, lesion: GroundTruth, at: tuple[int, int]) -> GroundTruth:
    moved = lesion.boxes + np.array([*at, *at], np.float32)
    return GroundTruth(
        np.concatenate([truth.boxes, moved]),
        np.concatenate([truth.labels, lesion.labels]),
        np.concatenate([truth.corners, lesion.corners + np.array(at, np.float32)]),
        np.concatenate([truth.scores, lesion.scores]),
    )
