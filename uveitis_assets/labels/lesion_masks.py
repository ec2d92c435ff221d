"""Lesion masks of FGADR's layout: one folder per lesion class, one image file per photograph.

Masks come in many formats (1-bit, grey, palette, RGB, RGBA, 16-bit); all are read as "which pixels are lesion":
opaque and not black. 8-connected components become boxes and outlines in raw pixels. A mask of another size is set
aside, never resized, because it would put lesions in the wrong places.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageOps

from uveitis_assets.labels.class_map import LabelSpace, UnknownClassError
from uveitis_assets.labels.lesions import Lesions, join_lesions, no_lesions, only_areas
from uveitis_assets.landing.quarantine import QuarantineError

# Staircases of diagonal edges deviate by 0.71 px from the line through them: they go, square lesions stay square.
OUTLINE_TOLERANCE_PX = 0.75
EXIF_ORIENTATION = 0x0112


def parse_lesion_masks(
    files: Sequence[tuple[str, bytes]],
    label_space: LabelSpace,
    raw_size: tuple[int, int],
    min_component_area: int,
) -> Lesions:
    """Lesions of all masks of one image, sorted by file name.

    Masks of different folders stay apart also where they map to one category (hard and soft exudates): touching
    lesions do not merge, a lesion marked in both counts twice.

    Args:
        files: name (path below the dataset's landing folder) and bytes of each mask file; the nearest folder that the
            class map names gives the class.
        label_space: meaning of the folders.
        raw_size: width and height of the displayed raw image, px.
        min_component_area: smallest component, raw px.

    Raises:
        QuarantineError: ``bad_label`` with the file, found and expected.
    """
    parts = []
    for name, data in sorted(files):
        category_id = _category_of(name, label_space)
        mask = parse_mask(data, name, raw_size)
        parts.append(lesions_of_mask(mask, category_id, min_component_area))
    return join_lesions(parts)


def parse_mask(data: bytes, name: str, raw_size: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode one mask file: bool (height, width) in the displayed raw frame, True on lesions.

    A pixel is lesion when it is not transparent and its colour (for palettes: the colour of its entry) is not black;
    in JPEG files, whose black is not exact, when a channel is at least 128.

    Raises:
        QuarantineError: ``bad_label``: unreadable, truncated or animated file, another size than the image, a mask
            without any background, or one with lesions in its alpha channel only.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise _bad(name, f"found {getattr(image, 'n_frames', 1)} frames, expected one")
            # Before any pixel is decoded: the size (either way round, EXIF comes after the pixels in PNG files).
            if image.size not in {raw_size, raw_size[::-1]}:
                raise _bad(name, _other_size(*image.size, raw_size))
            # 16-bit colour: Pillow would keep the high bytes only.
            deep = len(image.getbands()) > 1 and any(";16" in str(tile.args) for tile in image.tile)
            image.load()
            lossy = image.format == "JPEG"
            levels, alpha = _deep_levels(data) if deep else _levels(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, QuarantineError):
            raise
        raise _bad(name, f"found {_reason(error)}, expected a mask image that can be decoded") from error
    if levels.shape != raw_size[::-1]:
        raise _bad(name, _other_size(levels.shape[1], levels.shape[0], raw_size))
    mask: NDArray[np.bool_] = levels >= 128 if lossy else levels > 0
    if alpha is not None:
        if not mask.any() and alpha.any() and not alpha.all():
            raise _bad(name, "found black on transparent, expected lesions in another colour than black")
        mask &= alpha > 0
    if mask.all():
        raise _bad(name, "found every pixel marked as lesion, expected lesions on a black or transparent background")
    return mask


def lesions_of_mask(mask: NDArray[np.bool_], category_id: int, min_component_area: int) -> Lesions:
    """8-connected components of at least ``min_component_area`` pixels, sorted by place.

    The place is the row, then the column of the upper left corner of a component's box.

    Boxes have exclusive upper edges; outlines follow the pixel edges of the component's outer border, simplified by
    at most ``OUTLINE_TOLERANCE_PX``; holes are filled.
    """
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    marked = mask.view(np.uint8)[top : top + height, left : left + width]
    if not marked.size:
        return no_lesions()
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(marked, connectivity=8, ltype=cv2.CV_32S)
    statistics = statistics.astype(np.int64)
    large = np.flatnonzero(statistics[1:, cv2.CC_STAT_AREA] >= min_component_area) + 1
    # OpenCV's numbering follows its blocks of pixels; ours is by place.
    large = large[np.lexsort((statistics[large, cv2.CC_STAT_LEFT], statistics[large, cv2.CC_STAT_TOP]))]
    if not len(large):
        return no_lesions()
    corners = statistics[large][:, [cv2.CC_STAT_LEFT, cv2.CC_STAT_TOP]]
    boxes = np.hstack([corners, corners + statistics[large][:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]]])
    rings = [
        np.add(_outer_edge(labels[y0:y1, x0:x1] == label), (x0 + left, y0 + top))
        for label, (x0, y0, x1, y1) in zip(large, boxes.tolist(), strict=True)
    ]
    owners = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    outlines = shapely.polygons(shapely.linearrings(np.concatenate(rings), indices=owners))
    # Pixels that meet only at a corner make a ring that touches itself; simplification needs valid areas.
    touching = ~shapely.is_valid(outlines)
    outlines[touching] = [
        shapely.MultiPolygon(only_areas(shapely.make_valid(outline))) for outline in outlines[touching]
    ]
    simple = shapely.simplify(outlines, OUTLINE_TOLERANCE_PX, preserve_topology=False)
    # The fast method can fold thin outlines; the one that keeps topology takes ten times as long.
    folded = ~shapely.is_valid(simple) | (shapely.area(simple) < 0.5 * shapely.area(outlines))
    simple[folded] = shapely.simplify(outlines[folded], OUTLINE_TOLERANCE_PX, preserve_topology=True)
    boxes_in_raw = np.add(boxes, (left, top, left, top), dtype=np.float64)
    return Lesions(np.full(len(boxes), category_id, np.int64), boxes_in_raw, simple)


def _outer_edge(component: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Outer border of a component as points on pixel edges, shape (n, 2).

    OpenCV's contours run through pixel centres and would shrink a lesion by half a pixel on each side. On a grid of
    twice the resolution, where a pixel takes its two edges and the sample between them, the border samples are the
    pixel edges.
    """
    height, width = component.shape
    samples = np.zeros((2 * height + 1, 2 * width + 1), np.uint8)
    samples[1::2, 1::2] = component
    samples = cv2.dilate(samples, np.ones((3, 3), np.uint8)).reshape(samples.shape)
    contours, _ = cv2.findContours(samples, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return np.asarray(contours[0], np.float64).reshape(-1, 2) / 2.0


def _levels(image: Image.Image) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Strongest channel and, where the file has one, alpha; shape (height, width) each, displayed frame."""
    if image.mode == "P" or (image.mode in {"1", "L", "RGB"} and "transparency" in image.info):
        image = image.convert("RGBA")
    if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        return pixels, None
    if image.mode in {"LA", "RGBA"}:
        return pixels[..., :-1].max(axis=2), pixels[..., -1]
    if image.mode == "RGB":
        return pixels.max(axis=2), None
    raise ValueError(f"colour mode {image.mode}")


def _deep_levels(data: bytes) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """``_levels`` of a file with 16 bits per channel and several channels."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3:
        raise ValueError("16-bit channels that OpenCV does not decode")
    if pixels.shape[2] in {2, 4}:
        return pixels[..., :-1].max(axis=2), pixels[..., -1]
    return pixels.max(axis=2), None


def mask_folder(label_path: str, label_space: LabelSpace) -> str:
    """Folder that gives a mask its class: the nearest in the class map, else the mask's own."""
    folders = PurePosixPath(label_path).parent.parts
    named = [folder for folder in folders if folder in label_space.category_ids]
    return (named or folders or ("",))[-1]


def _category_of(label_path: str, label_space: LabelSpace) -> int:
    try:
        return label_space.category_of(mask_folder(label_path, label_space))
    except UnknownClassError as error:
        raise _bad(label_path, f"{error} as the mask's folder") from error


def _other_size(width: int, height: int, raw_size: tuple[int, int]) -> str:
    return f"found {width}x{height} pixels, expected its image's {raw_size[0]}x{raw_size[1]}"


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _bad(name: str, message: str) -> QuarantineError:
    return QuarantineError("bad_label", f"{name}: {message}")
