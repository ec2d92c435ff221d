"""Global image and tiles of a normalized crop: grid, pixels, and reconstruction from the tiles.

Coordinates are those of ``geometry``.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.imaging.configuration import TilingConfiguration
from uveitis_assets.imaging.geometry import ImageFrames, Tile


def image_frames(
    raw_size: tuple[int, int], crop_box: tuple[int, int, int, int], configuration: TilingConfiguration
) -> ImageFrames:
    """Lay out the frames of one image: centred square padding of the crop, global image and tile grid.

    Args:
        raw_size: width and height of the raw image, px.
        crop_box: x0, y0, x1, y1 in raw px, x1 and y1 exclusive.
    """
    width, height = crop_box[2] - crop_box[0], crop_box[3] - crop_box[1]
    side = max(width, height)
    size = configuration.global_size
    tiled = (width, height) if configuration.frame == "native" else (size, size)
    return ImageFrames(
        raw_size=raw_size,
        crop_box=crop_box,
        global_size=size,
        pad_xy=((side - width) // 2, (side - height) // 2),
        padded_side=side,
        frame=configuration.frame,
        tiles=tile_grid(*tiled, configuration.tile_size, configuration.overlap),
    )


def tile_grid(width: int, height: int, tile_size: int, overlap: float) -> tuple[Tile, ...]:
    """Tiles that cover an image, row by row, ids ``tile_000``, ``tile_001``, ...

    Neighbours are ``round(tile_size * (1 - overlap))`` px apart; the last of a row or column is shifted back to the
    image's edge. A side shorter than a tile gets one tile of its own length: no two tiles are the same.
    """
    stride = max(1, round(tile_size * (1.0 - overlap)))
    boxes = [
        (x, y, min(x + tile_size, width), min(y + tile_size, height))
        for y in _starts(height, tile_size, stride)
        for x in _starts(width, tile_size, stride)
    ]
    return tuple(Tile(f"tile_{number:03d}", *box) for number, box in enumerate(boxes))


def _starts(length: int, tile_size: int, stride: int) -> list[int]:
    last = max(0, length - tile_size)
    return [*range(0, last, stride), last]


def padded_canvas(
    frames: ImageFrames, memory: NDArray[np.uint8] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Black-margined square that the global image is made from, and the view that holds the crop.

    Rendering the normalized crop into the view, whose pixels are not set yet, saves a copy of the image.

    Args:
        frames: the image's frames.
        memory: (side, side, 3) uint8 to make the square in; new memory without it.

    Returns:
        (side, side, 3) uint8 and its (crop height, crop width, 3) view.
    """
    side = frames.padded_side
    (pad_x, pad_y), (width, height) = frames.pad_xy, frames.crop_size
    canvas = np.empty((side, side, 3), dtype=np.uint8) if memory is None else memory
    canvas[:pad_y] = canvas[pad_y + height :] = 0
    canvas[:, :pad_x] = canvas[:, pad_x + width :] = 0
    return canvas, canvas[pad_y : pad_y + height, pad_x : pad_x + width]


def render_global(canvas: NDArray[np.uint8], size: int, *, black_from: int | None = None) -> NDArray[np.uint8]:
    """Scale the padded square to the global image: area averages downwards, bilinear upwards.

    Args:
        canvas: (side, side, 3) uint8 RGB.
        size: side of the result, px.
        black_from: row from which on the canvas is known to be black, so that it need not be averaged.
    """
    side = canvas.shape[0]
    if side <= size:
        return np.asarray(cv2.resize(canvas, (size, size), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    # Whole rows of the result, and the canvas rows that reach into them.
    n_rows = size if black_from is None else max(1, -(-black_from * size // side))
    lit = canvas[: -(-n_rows * side // size)]
    scaled = cv2.resize(lit, None, fx=size / side, fy=size / side, interpolation=cv2.INTER_AREA)
    global_image = np.zeros((size, size, 3), dtype=np.uint8)
    global_image[:n_rows] = scaled[:n_rows]
    return global_image


def cut_tile(image: NDArray[np.uint8], tile: Tile) -> NDArray[np.uint8]:
    """The tile's pixels: a view into the image that it was laid out on."""
    return image[tile.y0 : tile.y1, tile.x0 : tile.x1]


def reconstruction_error(
    image: NDArray[np.uint8], tiles: Sequence[Tile], tile_images: Sequence[NDArray[np.uint8]]
) -> float:
    """Mean absolute difference, in grey levels, between an image and the one put together from its tiles.

    Pixels that no tile covers count with the error of their inverse, so that a gap never passes.

    Args:
        image: (H, W, 3) uint8, the frame that the tiles were cut from.
        tiles: where each tile belongs.
        tile_images: the tiles' pixels in the same order.
    """
    together = cv2.bitwise_not(image)
    for tile, pixels in zip(tiles, tile_images, strict=True):
        together[tile.y0 : tile.y1, tile.x0 : tile.x1] = pixels
    return float(cv2.norm(image, together, cv2.NORM_L1)) / image.size
