"""Detections, and the labels where there are any, drawn on global images and in contact sheets.

Colours, boxes and names are those of the label overlays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.inference.detections import Detections, GroundTruth
from uveitis_assets.imaging.drawing import (
    SHEET_TILE_PX,
    Color,
    Rectangle,
    draw_box,
    draw_name,
    draw_polygon,
    name_rectangle,
    rectangles_overlap,
    reduced_to_sheet_tile,
    sheet_of,
)
from uveitis_assets.imaging.preview_jpeg import encode_within
from uveitis_assets.labels.overlays import NAMES_PER_CATEGORY
from uveitis_assets.labels.palette import category_color

Pixels = NDArray[np.uint8]

_DASH_PX = 7
_NAME_PX = 11
_SHEET_NAME_PX = 9


def draw_detections(
    image: Pixels,
    detections: Detections,
    names: Mapping[int, str],
    *,
    truth: GroundTruth | None = None,
    enlarge: float = 1.0,
    name_px: float = _NAME_PX,
    names_per_category: int = NAMES_PER_CATEGORY,
) -> None:
    """Draw detections into an RGB image, in place, with ``name:0.87`` where names do not overlap.

    Oriented detections are drawn as their polygons. Labels are broad dashes in their category's colour, without a name,
    below the detections' thin lines.

    Args:
        image: uint8 (H, W, 3).
        detections: px of the image, best first.
        names: names of the categories.
        truth: labelled lesions, px of the image.
        enlarge: factor of lines and letters, for images that are shown reduced.
        name_px: height of a name in px, before ``enlarge``.
        names_per_category: most names of one category.
    """
    thickness = max(1, round(enlarge))
    if truth is not None:
        for box, corners, label in zip(truth.boxes, truth.corners, truth.labels.tolist(), strict=True):
            outline = _rectangle(box) if np.isnan(corners).any() else corners.astype(np.float64)
            _draw_dashed(image, outline, category_color(label), thickness=3 * thickness, dash=_DASH_PX * enlarge)
    for row, label in enumerate(detections.labels.tolist()):
        color = category_color(label)
        if detections.corners is None:
            draw_box(image, detections.boxes[row].tolist(), color, thickness=thickness)
        else:
            draw_polygon(image, detections.corners[row].astype(np.float64), color, thickness=thickness)
    _draw_names(image, detections, names, height_px=round(name_px * enlarge), most=names_per_category)


def prediction_sheet(
    pictures: Sequence[tuple[Pixels, Detections, GroundTruth | None]],
    names: Mapping[int, str],
    *,
    text_if_empty: str,
) -> bytes:
    """JPEG (at most 150 kB) of global images with their detections.

    Args:
        pictures: RGB images, each with its detections and, to be drawn dashed, its labelled lesions, in its pixels;
            the images are not changed.
        names: names of the categories.
        text_if_empty: text of a sheet without pictures.
    """
    return encode_within(sheet_of([_cell(*picture, names) for picture in pictures], text_if_empty))


def _cell(image: Pixels, detections: Detections, truth: GroundTruth | None, names: Mapping[int, str]) -> Pixels:
    scale = SHEET_TILE_PX / max(image.shape[:2])
    drawn = image.copy()
    enlarge = max(1.0 / scale, 1.0)
    draw_detections(
        drawn, detections, names, truth=truth, enlarge=enlarge, name_px=_SHEET_NAME_PX, names_per_category=1
    )
    return reduced_to_sheet_tile(drawn)


def _draw_names(image: Pixels, detections: Detections, names: Mapping[int, str], *, height_px: int, most: int) -> None:
    """Draw names, best first, above the box or below it, some of each category.

    Below where the place above would cover another name.

    The best of each category gets its name even where it covers another.
    """
    taken: list[Rectangle] = []
    named: Counter[int] = Counter()
    for row, label in enumerate(detections.labels.tolist()):
        if named[label] >= most:
            continue
        text = f"{names.get(label, f'category {label}')}:{detections.scores[row]:.2f}"
        x0, y0, x1, y1 = detections.boxes[row].tolist()
        above = name_rectangle(image, text, (x0, y0, x1, y1), height_px=height_px)
        below = (x0, y1 + above[3] - above[1], x1, y1)
        anchors = [(x0, y0, x1, y1), below] if below[1] <= image.shape[0] else [(x0, y0, x1, y1)]
        free = [
            anchor
            for anchor in anchors
            if not any(
                rectangles_overlap(name_rectangle(image, text, anchor, height_px=height_px), other) for other in taken
            )
        ]
        if free or not named[label]:
            anchor = (free or anchors)[0]
            draw_name(image, text, anchor, category_color(label), height_px=height_px)
            taken.append(name_rectangle(image, text, anchor, height_px=height_px))
            named[label] += 1


def _rectangle(box: NDArray[np.float32]) -> NDArray[np.float64]:
    x0, y0, x1, y1 = box.tolist()
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _draw_dashed(image: Pixels, outline: NDArray[np.float64], color: Color, *, thickness: int, dash: float) -> None:
    """Draw a closed polygon, points (n, 2) at pixel edges, as dashes of ``dash`` px, in place."""
    for start, end in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        n_dashes = max(1, round(float(np.linalg.norm(end - start)) / (2 * dash)))
        for number in range(n_dashes):
            ends = start + (end - start) * (np.array([[number], [number + 0.5]]) / n_dashes)
            one, other = np.rint((ends - 0.5) * 16).astype(int).tolist()
            cv2.line(image, one, other, color, thickness, cv2.LINE_AA, shift=4)
