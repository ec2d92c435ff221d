"""Boxes, outlines and names drawn into RGB images, and contact sheets of pictures."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]

TEXT_SCALE_PX = 22.0  # height in px of OpenCV's Hershey simplex font at scale 1
MARGIN_PX = 2
SHEET_COLUMNS = 4
SHEET_TILE_PX = 300
SHEET_GAP_PX = 4


def draw_box(image: NDArray[np.uint8], box: Sequence[float], color: Color, *, thickness: int = 2) -> None:
    """Draw a box (x0, y0, x1, y1 in px, pixel edges, upper edges exclusive) into an RGB image, in place."""
    x0, y0, x1, y1 = (round(value) for value in box)
    cv2.rectangle(image, (x0, y0), (max(x1 - 1, x0), max(y1 - 1, y0)), color, thickness, cv2.LINE_8)


def draw_polygon(image: NDArray[np.uint8], points: NDArray[np.float64], color: Color, *, thickness: int = 1) -> None:
    """Draw a closed polygon, points of shape (n, 2) in px at pixel edges, into an RGB image, in place."""
    sixteenths = np.rint((points - 0.5) * 16).astype(np.int32)
    cv2.polylines(image, [sixteenths], isClosed=True, color=color, thickness=thickness, lineType=cv2.LINE_AA, shift=4)


def name_rectangle(image: NDArray[np.uint8], text: str, box: Sequence[float], *, height_px: int = 12) -> Rectangle:
    """Rectangle x0, y0, x1, y1 of a name: above the box, or inside it at the image's upper edge."""
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


def rectangles_overlap(one: Rectangle, other: Rectangle) -> bool:
    """Whether two rectangles (x0, y0, x1, y1; upper edges exclusive) share a pixel."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def sheet_of(pictures: list[NDArray[np.uint8]], text_if_empty: str) -> NDArray[np.uint8]:
    """Square RGB pictures of ``SHEET_TILE_PX`` side by side; without pictures, a text."""
    if not pictures:
        sheet = np.zeros((60, 600, 3), np.uint8)
        draw_name(sheet, text_if_empty, (10, 40, 11, 41), (200, 200, 200))
        return sheet
    return picture_grid(pictures, SHEET_COLUMNS, gap_px=SHEET_GAP_PX)


def picture_grid(pictures: Sequence[NDArray[np.uint8]], columns: int, *, gap_px: int = 0) -> NDArray[np.uint8]:
    """RGB pictures of one size in rows of at most ``columns``, black where the last row has none.

    ``gap_px`` white pixels lie between neighbours.
    """
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    height, width = pictures[0].shape[:2]
    step_y, step_x = height + gap_px, width + gap_px
    grid = np.full((rows * step_y - gap_px, columns * step_x - gap_px, 3), 255, np.uint8)
    for index in range(rows * columns):
        y, x = divmod(index, columns)
        cell = grid[y * step_y : y * step_y + height, x * step_x : x * step_x + width]
        cell[:] = pictures[index] if index < len(pictures) else 0
    return grid


def fitted_size(picture: NDArray[np.uint8], side: int) -> tuple[int, int]:
    """Width and height (at least 1 px) of a picture (H, W, 3) scaled so that its longer side is ``side``."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def on_black_square(picture: NDArray[np.uint8], side: int, *, centred: bool) -> NDArray[np.uint8]:
    """A picture of at most ``side`` px on a black square, centred or at its upper left corner."""
    height, width = picture.shape[:2]
    y, x = ((side - height) // 2, (side - width) // 2) if centred else (0, 0)
    square = np.zeros((side, side, 3), np.uint8)
    square[y : y + height, x : x + width] = picture
    return square


def reduced_to_sheet_tile(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture for ``sheet_of``: its longer side scaled to ``SHEET_TILE_PX``, on a black square."""
    reduced = cv2.resize(picture, fitted_size(picture, SHEET_TILE_PX), interpolation=cv2.INTER_AREA)
    return on_black_square(np.asarray(reduced, np.uint8), SHEET_TILE_PX, centred=False)
