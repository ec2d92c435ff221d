"""The preprocessed images of a batch, as inference reads them: where their tiles lie, and their pixels.

Which images are usable is the tiles' index's word. Labels play no role here: lanes without labels are predicted too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.predict_images import TileFile, UnreadableTilesError, read_tile_files
from uveitis_assets.fundus.geometry import ImageFrames
from uveitis_assets.fundus.stage_index import read_stage_index
from uveitis_assets.fundus.tiling import cut_tile, padded_canvas, render_global
from uveitis_assets.storage import ArtefactStore, artefact_key, read_json

Pixels = NDArray[np.uint8]


class Preprocessed(Protocol):
    """What has to be known of an image to read its pixels; ``LabelledImage`` is one too."""

    @property
    def image_id(self) -> str: ...

    @property
    def key(self) -> str: ...

    @property
    def frames(self) -> ImageFrames: ...

    @property
    def tiles(self) -> Sequence[TileFile]: ...


@dataclass(frozen=True, slots=True)
class PreprocessedTile:
    """One tile; ``file`` is its RGB PNG, which exists when tiles are persisted."""

    file: Path


@dataclass(frozen=True, slots=True)
class PreprocessedImage:
    """One usable image of a batch; ``fingerprint`` changes with its content and with what its tiles depend on."""

    image_id: str
    key: str
    frames: ImageFrames
    tiles: tuple[PreprocessedTile, ...]
    fingerprint: str


def read_preprocessed_images(store: ArtefactStore, lane: str, batch: str) -> list[PreprocessedImage]:
    """Usable images of a batch, sorted by id; those set aside (quarantined) are left out.

    Raises:
        FileNotFoundError: the batch's tiles have not been materialized, or an image's metadata is gone.
    """
    path = store.stage_index(lane, "tiles", batch)
    if not path.exists():
        raise FileNotFoundError(f"{lane}/tiles[{batch}]: expected {path}, found none; materialize the tiles first")
    images = []
    for image_id, row in sorted(read_stage_index(path).items()):
        if row["quarantine_reason"] is not None:
            continue
        key = artefact_key(image_id)
        frames = ImageFrames.from_metadata(read_json(store.crop_metadata(key)), read_json(store.tiles_metadata(key)))
        content = f"{row['content_hash']}:{row['fingerprint']}"
        images.append(
            PreprocessedImage(
                image_id=image_id,
                key=key,
                frames=frames,
                tiles=tuple(PreprocessedTile(store.tile(key, tile.tile_id)) for tile in frames.tiles),
                fingerprint=hashlib.blake2b(content.encode(), digest_size=8).hexdigest(),
            )
        )
    return images


def read_tile_pixels(store: ArtefactStore, image: Preprocessed) -> list[Pixels]:
    """An image's tiles, RGB uint8: from their files, or cut from what they were cut from when they are not persisted.

    Raises:
        UnreadableTilesError: neither is there, or a file is damaged.
    """
    source = _tiled_picture(store, image)
    if any(tile.file.is_file() for tile in image.tiles) or not source.is_file():
        return read_tile_files(image)
    whole = _read_rgb(source)
    return [cut_tile(whole, tile) for tile in image.frames.tiles]


def read_global_image(store: ArtefactStore, image: Preprocessed) -> Pixels:
    """The global image, RGB uint8: from its file, or made again from the tiles when it is not persisted."""
    path = store.global_image(image.key, image.frames.global_size)
    if path.is_file():
        return _read_rgb(path)
    frames = image.frames
    width, height = frames.tiling_size
    whole = np.zeros((height, width, 3), np.uint8)
    for tile, pixels in zip(frames.tiles, read_tile_pixels(store, image), strict=True):
        cut_tile(whole, tile)[:] = pixels
    if frames.frame == "global":
        return whole
    canvas, view = padded_canvas(frames)
    view[:] = whole
    return render_global(canvas, frames.global_size)


def _tiled_picture(store: ArtefactStore, image: Preprocessed) -> Path:
    if image.frames.frame == "native":
        return store.normalized_crop(image.key)
    return store.global_image(image.key, image.frames.global_size)


def _read_rgb(path: Path) -> Pixels:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise UnreadableTilesError(f"{path}: expected a PNG, found it damaged; materialize the tiles again")
    return np.asarray(picture, dtype=np.uint8)
