"""One colour per lesion category and how boxes with names are drawn: overlays of labels and of predictions share it.

It draws on arrays and writes no files.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]

# Light, saturated colours that stand out on dark red and green fundus images and from each other (RGB).
PALETTE: tuple[Color, ...] = (
    (255, 225, 25),
    (255, 250, 150),
    (240, 50, 230),
    (255, 255, 255),
    (255, 120, 60),
    (170, 255, 195),
    (0, 170, 255),
    (250, 190, 212),
    (145, 120, 255),
    (200, 200, 200),
    (255, 70, 110),
    (188, 246, 12),
    (255, 216, 177),
    (0, 210, 160),
    (70, 240, 240),
    (220, 160, 255),
    (120, 200, 90),
    (255, 165, 0),
    (120, 160, 255),
    (230, 140, 140),
)
TEXT_SCALE_PX = 22.0  # height in px of OpenCV's Hershey simplex font at scale 1
MARGIN_PX = 2


def category_color(category_id: int) -> Color:
    """RGB colour of a category; ids from 1, after the last colour from the start again."""
    return PALETTE[(category_id - 1) % len(PALETTE)]


def draw_box(image: NDArray[np.uint8], box: Sequence[float], color: Color, *, thickness: int = 2) -> None:
    """Draw a box (x0, y0, x1, y1 in px, pixel edges, upper edges exclusive) into an RGB image, in place."""
    x0, y0, x1, y1 = (round(value) for value in box)
    cv2.rectangle(image, (x0, y0), (max(x1 - 1, x0), max(y1 - 1, y0)), color, thickness, cv2.LINE_8)


def draw_polygon(image: NDArray[np.uint8], points: NDArray[np.float64], color: Color, *, thickness: int = 1) -> None:
    """Draw a closed polygon, points of shape (n, 2) in px at pixel edges, into an RGB image, in place."""
    sixteenths = np.rint((points - 0.5) * 16).astype(np.int32)
    cv2.polylines(image, [sixteenths], isClosed=True, color=color, thickness=thickness, lineType=cv2.LINE_AA, shift=4)


def name_rectangle(
    image: NDArray[np.uint8], text: str, box: Sequence[float], *, height_px: int = 12
) -> tuple[int, int, int, int]:
    """Where ``draw_name`` puts a name: above the box, below its upper edge where there is no room; x0, y0, x1, y1."""
    (width, height), baseline = _text_size(text, height_px)
    width, height = width + 2 * MARGIN_PX, height + baseline + MARGIN_PX
    left = min(max(round(box[0]), 0), max(image.shape[1] - width, 0))
    top = round(box[1]) - height
    if top < 0:
        top = min(max(round(box[1]), 0), max(image.shape[0] - height, 0))
    return left, top, left + width, top + height


def draw_name(image: NDArray[np.uint8], text: str, box: Sequence[float], color: Color, *, height_px: int = 12) -> None:
    """Write a name in black on its colour at ``name_rectangle``; RGB, in place."""
    x0, y0, x1, y1 = name_rectangle(image, text, box, height_px=height_px)
    (_, height), _ = _text_size(text, height_px)
    cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), color, cv2.FILLED)
    origin = (x0 + MARGIN_PX, y0 + height + MARGIN_PX // 2)
    scale = height_px / TEXT_SCALE_PX
    cv2.putText(image, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)


def _text_size(text: str, height_px: int) -> tuple[Sequence[int], int]:
    return cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, height_px / TEXT_SCALE_PX, 1)
