"""Boxes, outlines, names and contact sheets drawn into RGB images."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]


TEXT_SCALE_PX = 22.0  # height in px of OpenCV's Hershey simplex font at scale 1


MARGIN_PX = 2


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


SHEET_COLUMNS = 4


SHEET_TILE_PX = 300


SHEET_GAP_PX = 4


def sheet_of(pictures: list[NDArray[np.uint8]], text_if_empty: str) -> NDArray[np.uint8]:
    """Square RGB pictures of ``SHEET_TILE_PX`` side by side; without pictures, the text that says so."""
    if not pictures:
        sheet = np.zeros((60, 600, 3), np.uint8)
        draw_name(sheet, text_if_empty, (10, 40, 11, 41), (200, 200, 200))
        return sheet
    columns = min(SHEET_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    step = SHEET_TILE_PX + SHEET_GAP_PX
    sheet = np.full((rows * step - SHEET_GAP_PX, columns * step - SHEET_GAP_PX, 3), 255, np.uint8)
    for index in range(rows * columns):
        y, x = divmod(index, columns)
        cell = sheet[y * step : y * step + SHEET_TILE_PX, x * step : x * step + SHEET_TILE_PX]
        cell[:] = pictures[index] if index < len(pictures) else 0
    return sheet
