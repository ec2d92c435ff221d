"""Places lesions on an ultra-widefield retina and derives each one's oriented box from what was drawn.

How each class looks is in ``scattered_lesions`` and ``anchored_lesions``; here are the choice of classes, the
search for free and visible retina, and the smallest rotated rectangle around the drawn support.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.sample.anchored_lesions import ANCHORED
from uveitis_assets.sample.lesion_drawing import Drawing, LesionScene
from uveitis_assets.sample.painting import Layer
from uveitis_assets.sample.scattered_lesions import SCATTERED

CLASS_FREQUENCY = {
    4: 60, 7: 25, 5: 25, 2: 20, 1: 22, 16: 13, 9: 10, 10: 8, 18: 8, 15: 7, 3: 7, 12: 5, 6: 5, 8: 4, 14: 4, 17: 4,
    11: 3, 13: 2, 19: 2, 20: 2,
}  # fmt: skip
"""Share of images that show each class, about as in the real label files (rare classes raised a little)."""

INSTANCES = {4: (2, 6), 7: (1, 5), 5: (2, 7), 1: (1, 4), 2: (1, 2), 9: (1, 3), 10: (1, 2), 18: (1, 4), 15: (2, 5)}
"""Lesions of one class per image, both ends included; classes not named here occur once."""

_BACKGROUND = np.array([120.0, 92.0, 8.0])
_PLACING_ATTEMPTS = 60
_DRAWING_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class PlacedLesion:
    """A drawn lesion: its layers with their depth, the patch's upper left corner, and its box in pixels."""

    class_id: int
    layers: tuple[tuple[str, Layer], ...]
    left: int
    top: int
    corners: NDArray[np.float64]


def place_lesions(rng: np.random.Generator, scene: LesionScene, classes: Sequence[int] | None) -> list[PlacedLesion]:
    """Draw the lesions of one image; a lesion that finds no free visible retina is left out.

    Raises:
        ValueError: a class id is not in 1..20.
    """
    chosen = _choose_classes(rng) if classes is None else list(classes)
    for class_id in chosen:
        if class_id not in SCATTERED and class_id not in ANCHORED:
            raise ValueError(f"lesion class: expected 1..20, found {class_id}")
    free = scene.clear.copy()
    placed: list[PlacedLesion] = []
    for class_id in sorted(chosen, key=lambda c: (c not in ANCHORED, c)):
        low, high = INSTANCES.get(class_id, (1, 1))
        for _ in range(int(rng.integers(low, high + 1))):
            lesion = _place(rng, scene, free, class_id)
            if lesion is not None:
                placed.append(lesion)
    return placed


def smallest_rotated_box(support: NDArray[np.bool_], left: int, top: int) -> NDArray[np.float64]:
    """Smallest rotated rectangle around the true pixels: (4, 2) float64 x, y, clockwise on the screen.

    Pixel (row, column) covers [left + column, left + column + 1) x [top + row, top + row + 1).

    Raises:
        ValueError: no pixel is set.
    """
    contours, _ = cv2.findContours(support.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        raise ValueError("support: expected at least one set pixel, found none")
    pixels = np.concatenate([contour.reshape(-1, 2) for contour in contours])
    squares = np.concatenate([pixels + np.array(corner) for corner in ((0, 0), (1, 0), (1, 1), (0, 1))])
    corners = cv2.boxPoints(cv2.minAreaRect(squares.astype(np.float32))).astype(np.float64)
    x, y = corners[:, 0], corners[:, 1]
    if np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) < 0:
        corners = corners[::-1]
    start = int(np.argmin(corners.sum(axis=1)))
    return np.roll(corners, -start, axis=0) + np.array([left, top], np.float64)


def _choose_classes(rng: np.random.Generator) -> list[int]:
    ids = np.array(sorted(CLASS_FREQUENCY))
    weights = np.array([CLASS_FREQUENCY[class_id] for class_id in ids], np.float64)
    count = int(rng.integers(2, 6))
    return [int(c) for c in rng.choice(ids, size=count, replace=False, p=weights / weights.sum())]


def _support(drawing: Drawing) -> NDArray[np.bool_]:
    """Pixels where the lesion visibly changes the image: above a fifth of its strongest change."""
    visible = np.zeros(drawing.layers[0][1].alpha.shape, np.float32)
    for _, layer in drawing.layers:
        colour = np.asarray(layer.colour)
        change = float(np.abs(_BACKGROUND * colour if layer.absorbs else colour - _BACKGROUND).max())
        np.maximum(visible, layer.alpha * np.float32(change), out=visible)
    peak = float(visible.max())
    return visible > max(0.22 * peak, 1e-6)


def _place(rng: np.random.Generator, scene: LesionScene, free: NDArray[np.bool_], class_id: int) -> PlacedLesion | None:
    for _ in range(_DRAWING_ATTEMPTS):
        if class_id in ANCHORED:
            drawing = ANCHORED[class_id](rng, scene)
            candidates = [] if drawing is None else [(drawing.left, drawing.top)]
        else:
            drawing = SCATTERED[class_id](rng, scene.pixels_per_unit)
            candidates = _candidates(rng, scene, free, class_id, drawing)
        if drawing is None:
            continue
        support = _support(drawing)
        if not support.any():
            continue
        box = smallest_rotated_box(support, 0, 0)
        for left, top in candidates:
            corners = box + np.array([left, top], np.float64)
            if _claim(scene, free, corners):
                return PlacedLesion(class_id, drawing.layers, left, top, corners)
    return None


def _candidates(
    rng: np.random.Generator, scene: LesionScene, free: NDArray[np.bool_], class_id: int, drawing: Drawing
) -> list[tuple[int, int]]:
    """Patch corners (left, top) whose centre lies on free retina, most of them near the posterior pole."""
    spread = (1.7 if class_id in {15, 18, 19} else 3.6) * scene.placement.disc_diameter
    near = np.array([scene.placement.disc_x, scene.placement.disc_y]) + rng.normal(0, spread, (_PLACING_ATTEMPTS, 2))
    far = rng.uniform((0, 0), (scene.width, scene.height), (_PLACING_ATTEMPTS, 2))
    points = np.where(rng.random((_PLACING_ATTEMPTS, 1)) < 0.8, near, far)
    cell = scene.width / free.shape[1]
    column, row = np.floor(points / cell).astype(int).T
    inside = (column >= 0) & (row >= 0) & (column < free.shape[1]) & (row < free.shape[0])
    inside[inside] = free[row[inside], column[inside]]
    off_disc = np.hypot(*(points - [scene.placement.disc_x, scene.placement.disc_y]).T)
    inside &= off_disc > 0.9 * scene.placement.disc_diameter
    height, width = drawing.layers[0][1].alpha.shape
    return [(round(x - width / 2.0), round(y - height / 2.0)) for x, y in points[inside].tolist()]


def _claim(scene: LesionScene, free: NDArray[np.bool_], corners: NDArray[np.float64]) -> bool:
    """Take the box's area out of ``free`` if all of it is free retina inside the image."""
    if corners.min() < 0 or corners[:, 0].max() > scene.width or corners[:, 1].max() > scene.height:
        return False
    cell = scene.width / free.shape[1]
    grid = np.round(corners / cell - 0.5).astype(np.int32)
    column, row = np.maximum(grid.min(axis=0), 0)
    last_column, last_row = grid.max(axis=0)
    window = free[row : last_row + 1, column : last_column + 1]
    area = np.zeros(window.shape, np.uint8)
    cv2.fillConvexPoly(area, grid - np.array([column, row], np.int32), 1)
    inside = area.astype(bool)
    if not window[inside].all():
        return False
    window[inside] = False
    return True
