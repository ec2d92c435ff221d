"""Decoded tiles on disk: epochs after the first read raw bytes, an order of magnitude faster than PNG.

One file per image, ``cache/tiles/<key>.<fingerprint>.rgb``: its tiles one after the other, uint8 (H, W, 3) RGB, without
a header. Images and not splits, so that folds and experiments share them, a new image adds only itself, and changed
labels change nothing; a file is there whole or not at all, so a killed build goes on where it stopped. The name
holds the fingerprint of what the pixels were made from: a file never goes stale, it only goes unused.

Limit: when a new file would exceed it, files unused for a day are removed, longest unused first, until all fits;
younger ones and those asked for stay. Use is the modification time, renewed hourly by readers. The cache may be
deleted whole while nothing trains.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.data.labelled_split import LabelledImage
from uveitis_assets.detection.data.tile_dataset import TileFiles, TilePixels, read_labelled_tiles
from uveitis_assets.storage.files import remove_half_files, write_bytes
from uveitis_assets.storage.store import ArtefactStore

_UNUSED_AFTER_S = 86400
_RENEW_USE_AFTER_S = 3600
# What the rest of the platform should still find on the disk.
_LEFT_FREE_BYTES = 2**30


class TileStoreFullError(RuntimeError):
    """The decoded tiles would not fit; the message names what would free space."""


class TileStore:
    """Reads tiles that ``open_tile_store`` has put in place; it may be handed to other processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._used: dict[str, float] = {}

    def read(self, image: LabelledImage, tile: int) -> NDArray[np.uint8]:
        """The tile's pixels, (H, W, 3) uint8 RGB, an array of the caller's own.

        Raises:
            FileNotFoundError: the image's file is gone.
            ValueError: it is too short.
        """
        path = cached_file(self._folder, image)
        offset = sum(3 * before.width * before.height for before in image.tiles[:tile])
        height, width = image.tiles[tile].height, image.tiles[tile].width
        try:
            pixels = np.fromfile(path, np.uint8, count=3 * width * height, offset=offset)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path}: expected the decoded tiles of {image.image_id}, found no file; the cache was removed while "
                "it was in use: start again"
            ) from error
        if pixels.size != 3 * width * height:
            raise ValueError(f"{path}: expected {_size_of(image)} bytes, found {path.stat().st_size}; delete the file")
        self._renew_use(path)
        return pixels.reshape(height, width, 3)

    def _renew_use(self, path: Path) -> None:
        now = time.time()
        if now - self._used.get(path.name, 0.0) > _RENEW_USE_AFTER_S:
            self._used[path.name] = now
            os.utime(path)


def tile_pixels(store: ArtefactStore, images: Sequence[LabelledImage], *, limit_gb: float) -> TilePixels:
    """Reader of the images' tiles: from the cache, filled first, or from files for a limit of 0 GiB.

    Raises:
        TileStoreFullError: limit or disk are too small; other errors are those of ``open_tile_store``.
    """
    if not limit_gb:
        return TileFiles(store)
    return open_tile_store(store, images, limit_bytes=int(limit_gb * 2**30))


def open_tile_store(
    store: ArtefactStore,
    images: Sequence[LabelledImage],
    *,
    limit_bytes: int = 64 * 2**30,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> TileStore:
    """Decode the tiles that are not cached yet and return their reader.

    Processes that ask at the same time take turns: the second finds what the first has made.

    Args:
        store: its ``cache/tiles`` holds the files.
        images: images as ``read_labelled_split`` gives them.
        limit_bytes: largest size of the cache; rule in the module's docstring.
        workers: threads that decode.
        progress: called with the number of images done and to do.

    Raises:
        TileStoreFullError: limit or disk are too small.
        UnreadableTilesError: a tile is neither persisted nor can it be cut, is damaged or of another size.
        ValueError: an image has no fingerprint.
    """
    folder = store.tile_cache_folder()
    with store.lock("tile_cache"):
        folder.mkdir(parents=True, exist_ok=True)
        remove_half_files(folder)
        wanted = {cached_file(folder, image): image for image in images}
        missing = [image for path, image in sorted(wanted.items()) if not _is_whole(path, image)]
        for path in sorted(wanted.keys() - {cached_file(folder, image) for image in missing}):
            os.utime(path)
        _free_space(folder, wanted.keys(), sum(map(_size_of, missing)), limit_bytes)
        _decode(store, folder, missing, workers, progress)
    return TileStore(folder)


def cached_file(folder: Path, image: LabelledImage) -> Path:
    """Where an image's decoded tiles lie.

    Raises:
        ValueError: it has no fingerprint of its tiles' pixels.
    """
    if not image.tiles_fingerprint:
        raise ValueError(f"{image.image_id}: expected tiles_fingerprint, found none; read_labelled_split sets it")
    return folder / f"{image.key}.{image.tiles_fingerprint}.rgb"


def _size_of(image: LabelledImage) -> int:
    return sum(3 * tile.width * tile.height for tile in image.tiles)


def _is_whole(path: Path, image: LabelledImage) -> bool:
    return path.exists() and path.stat().st_size == _size_of(image)


def _free_space(folder: Path, wanted: Collection[Path], needed: int, limit: int) -> None:
    """Remove unused files where the limit asks for it, then make sure that limit and disk suffice."""
    files = {path: path.stat() for path in sorted(folder.glob("*.rgb"))}
    used = sum(entry.st_size for entry in files.values())
    old = time.time() - _UNUSED_AFTER_S
    unused = [path for path, entry in files.items() if entry.st_mtime < old and path not in wanted]
    for path in sorted(unused, key=lambda path: files[path].st_mtime):
        if used + needed <= limit:
            break
        path.unlink()
        used -= files[path].st_size
    if needed and used + needed > limit:
        raise TileStoreFullError(
            f"{folder}: expected at most {_gb(limit)} of decoded tiles, found {_gb(used)} in use and {_gb(needed)} "
            "to add; raise the limit (training.tile_cache_gb; 0 goes without the cache), limit the images, or delete "
            "files that nothing uses"
        )
    free = shutil.disk_usage(folder).free
    if needed and needed + _LEFT_FREE_BYTES > free:
        raise TileStoreFullError(
            f"{folder}: expected {_gb(needed + _LEFT_FREE_BYTES)} free for decoded tiles, found {_gb(free)}; free "
            "space on the disk or train without the cache (training.tile_cache_gb: 0)"
        )


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB"


def _decode(
    store: ArtefactStore,
    folder: Path,
    images: Sequence[LabelledImage],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    if progress is not None:
        progress(0, len(images))
    with ThreadPoolExecutor(max(1, workers)) as pool:
        tasks = [pool.submit(_decode_image, store, folder, image) for image in images]
        try:
            for done, task in enumerate(as_completed(tasks), start=1):
                task.result()
                if progress is not None:
                    progress(done, len(images))
        finally:
            pool.shutdown(cancel_futures=True)


def _decode_image(store: ArtefactStore, folder: Path, image: LabelledImage) -> None:
    decoded = np.concatenate([pixels.ravel() for pixels in read_labelled_tiles(store, image)])
    path = cached_file(folder, image)
    try:
        write_bytes(path, decoded.data)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise TileStoreFullError(
            f"{path}: the disk is full; free space and start again, what is done is kept"
        ) from error
