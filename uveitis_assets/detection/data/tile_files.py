"""Pixels of preprocessed images: tiles from PNG files, or cut from the image they were laid out on.

Training and inference read by the same functions, so that both work on lanes that do not persist their tiles. What is
kept decoded for the next epoch is ``tile_store``'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets.imaging.png_integrity import png_finding
from uveitis_assets.imaging.tiling import cut_tile, padded_canvas, render_global
from uveitis_assets.stages.suspect_files import report_damage
from uveitis_assets.storage.store import ArtefactStore

Pixels = NDArray[np.uint8]


class TileFile(Protocol):
    """A tile that lies on the disk."""

    @property
    def file(self) -> Path: ...


class TiledImage(Protocol):
    """What has to be known of an image to read its persisted tiles; ``LabelledImage`` is one."""

    @property
    def image_id(self) -> str: ...

    @property
    def frames(self) -> ImageFrames: ...

    @property
    def tiles(self) -> Sequence[TileFile]: ...


class Preprocessed(TiledImage, Protocol):
    """What has to be known of an image to read its pixels, persisted or not; ``LabelledImage`` is one too."""

    @property
    def key(self) -> str: ...


class UnreadableTilesError(ValueError):
    """An image's tiles are missing, damaged or of another size than its frames; it is named.

    ``path`` is the file that is missing or damaged, where it is one.
    """

    def __init__(self, message: str, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path


def read_tile_file(image: TiledImage, number: int) -> Pixels:
    """Decode one tile's PNG, RGB uint8 (H, W, 3).

    Raises:
        UnreadableTilesError: the file is missing or damaged; the message names it.
    """
    path = image.tiles[number].file
    try:
        data = np.fromfile(path, np.uint8)
    except FileNotFoundError as error:
        raise UnreadableTilesError(
            f"{image.image_id}: {path}: expected a tile as PNG, found it missing; materialize the lane's tiles "
            "again, with `tiles` or what they are cut from in `persist`",
            path,
        ) from error
    # OpenCV decodes what it can of a damaged file.
    finding = png_finding(data.data)
    pixels = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if finding is None else None
    if pixels is None:
        raise UnreadableTilesError(
            f"{image.image_id}: {path}: expected a tile as PNG, found it damaged ({data.size} bytes, "
            f"{finding or 'no image'}); materialize the lane's tiles again",
            path,
        )
    return np.asarray(pixels, dtype=np.uint8)


def read_tile_files(image: TiledImage) -> list[Pixels]:
    """Read an image's tiles from their PNG files, RGB uint8.

    Raises:
        UnreadableTilesError: a file is missing or damaged; the message names it.
    """
    return [read_tile_file(image, number) for number in range(len(image.tiles))]


def tiled_picture(store: ArtefactStore, image: Preprocessed) -> Path | None:
    """File that an image's tiles have to be cut from; None where they are persisted or it is missing."""
    cut = [tile for tile, frame in zip(image.tiles, image.frames.tiles, strict=True) if not frame.is_global]
    if any(tile.file.is_file() for tile in cut):
        return None
    if image.frames.frame == "native":
        path = store.normalized_crop(image.key)
    else:
        path = store.global_image(image.key, image.frames.global_size)
    return path if path.is_file() else None


def read_tile_pixels(store: ArtefactStore, image: Preprocessed) -> list[Pixels]:
    """An image's tiles, RGB uint8, from their files or cut from a persisted larger image.

    The global image as one more tile comes from its own file, or is made again from the other tiles.

    Raises:
        UnreadableTilesError: neither is there, or a file is damaged; it is noted for the next run of the tiles.
    """
    pixels = _read_cut_tiles(store, image)
    if len(pixels) < len(image.frames.tiles):
        pixels.append(_read_global_image(store, image, pixels))
    return pixels


def _read_cut_tiles(store: ArtefactStore, image: Preprocessed) -> list[Pixels]:
    """The tiles that are parts of a larger image; the scaled global image, always the last, is left out."""
    cut = [tile for tile in image.frames.tiles if not tile.is_global]
    source = tiled_picture(store, image)
    with damage_reported(store):
        if source is None:
            return [read_tile_file(image, number) for number in range(len(cut))]
        whole = read_picture(source)
    return [cut_tile(whole, tile) for tile in cut]


def read_global_image(store: ArtefactStore, image: Preprocessed) -> Pixels:
    """The global image, RGB uint8: from its file, or made again from the tiles when it is not persisted."""
    return _read_global_image(store, image, None)


def _read_global_image(store: ArtefactStore, image: Preprocessed, cut_tiles: Sequence[Pixels] | None) -> Pixels:
    path = store.global_image(image.key, image.frames.global_size)
    if path.is_file():
        with damage_reported(store):
            return read_picture(path)
    frames = image.frames
    width, height = frames.tiling_size
    whole = np.zeros((height, width, 3), np.uint8)
    for tile, pixels in zip(frames.tiles, cut_tiles or _read_cut_tiles(store, image), strict=False):
        cut_tile(whole, tile)[:] = pixels
    if frames.frame == "global":
        return whole
    canvas, view = padded_canvas(frames)
    view[:] = whole
    return render_global(canvas, frames.global_size)


def read_picture(path: Path) -> Pixels:
    """Decode a global image or a normalized crop, RGB uint8 (H, W, 3).

    Raises:
        UnreadableTilesError: the file is damaged.
    """
    data = np.fromfile(path, np.uint8)
    finding = png_finding(data.data)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if finding is None else None
    if picture is None:
        raise UnreadableTilesError(
            f"{path}: expected a PNG, found it damaged ({finding or 'no image'}); materialize the tiles again", path
        )
    return np.asarray(picture, dtype=np.uint8)


@contextmanager
def damage_reported(store: ArtefactStore) -> Iterator[None]:
    """Notes a file that is found missing or damaged for the next run of its batch, which makes it again."""
    try:
        yield
    except UnreadableTilesError as error:
        if error.path is not None:
            report_damage(store, error.path)
        raise
