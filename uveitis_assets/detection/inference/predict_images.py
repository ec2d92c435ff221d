"""Detections of many images, one after the other: read ahead, detected across images, merged.

Memory is bounded: a window of a few batches is in work while the next one is being read. Nothing is written here;
``prediction_batch`` writes files and records what is done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product
from typing import Any, TypeVar

import numpy as np
import torch

from uveitis_assets.detection.configuration import InferenceConfiguration
from uveitis_assets.detection.data.tile_files import Pixels, TiledImage, UnreadableTilesError, read_tile_files
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.inference.flips import flipped, flipped_back
from uveitis_assets.detection.inference.merging import merge_detectors
from uveitis_assets.detection.inference.tile_inference import detect_tiles, tiles_per_pass

# Batches per window: the last batch of a window may be part full, so more batches waste less and hold more memory.
_BATCHES_PER_WINDOW = 4


Image = TypeVar("Image", bound=TiledImage)


def predict_images(
    models: Sequence[torch.nn.Module],
    images: Iterable[Image],
    configuration: InferenceConfiguration,
    *,
    device: torch.device | str,
    amp: bool | Sequence[bool] | None = None,
    read_tiles: Callable[[Image], Sequence[Pixels]] | None = None,
    readers: int = 2,
    on_unreadable: Callable[[Image, UnreadableTilesError], None] | None = None,
    on_full: Callable[[Image, int], None] | None = None,
) -> Iterator[tuple[Image, Detections]]:
    """Detect lesions in images, in the order given.

    The result for an image does not depend on the images beside it (``tile_inference`` defines how far). To evaluate a
    detector, pass a copy of the configuration with a ``score_threshold`` of 0: AP wants the weak detections too, and
    those from the threshold on are the same (see ``merging``).

    Args:
        models: detectors, already on ``device``; several are an ensemble whose answers are fused.
        images: consumed as they are needed.
        configuration: batch size, merging, score threshold.
        device: where the models are.
        amp: mixed precision, of all detectors or of each; None: on CUDA.
        read_tiles: returns an image's tiles as uint8 RGB (H, W, 3), in the order of its frames; called in threads.
            None reads the PNG files of ``image.tiles``.
        readers: threads that read tiles ahead.
        on_unreadable: called with an image whose tiles cannot be read, which is then left out; None: an error.
        on_full: called with an image and the number of its tiles that gave as many detections of at least the score
            threshold as a detector keeps of a tile (``model.detections_per_tile``): it may have found more.

    Yields:
        Each image with its detections in global px.

    Raises:
        ValueError: no models.
        UnreadableTilesError: an image's tiles cannot be read.
    """
    if not models:
        raise ValueError("expected at least one model to predict with, found none")
    device = torch.device(device)
    of_all = device.type == "cuda" if amp is None else amp
    mixed = [of_all] * len(models) if isinstance(of_all, bool) else list(of_all)
    tiles_per_window = configuration.batch_size * _BATCHES_PER_WINDOW
    for window in _windows(images, read_tiles or read_tile_files, tiles_per_window, readers, on_unreadable):
        in_window = [image for image, _ in window]
        frames = [image.frames for image in in_window]
        pixels = [tile for _, tiles in window for tile in tiles]
        found = []
        full: list[set[int]] = [set() for _ in in_window]
        for (model, half), flip in product(zip(models, mixed, strict=True), configuration.flips):
            of_flipped = detect_tiles(
                model,
                [flipped(tile, flip) for tile in pixels],
                batch_size=tiles_per_pass(device, configuration.batch_size),
                device=device,
                amp=half,
            )
            detected = iter(flipped_back(of_flipped, pixels, flip))
            per_image = [[next(detected) for _ in tiles] for _, tiles in window]
            found.append(per_image)
            for numbers, of_tiles in zip(full, per_image, strict=True):
                numbers.update(_full_tiles(model, of_tiles, configuration.score_threshold))
        if on_full is not None:
            for image, numbers in zip(in_window, full, strict=True):
                if numbers:
                    on_full(image, len(numbers))
        yield from zip(in_window, merge_detectors(frames, found, configuration), strict=True)


def _full_tiles(model: torch.nn.Module, of_tiles: Sequence[Detections], score: float) -> set[int]:
    """Numbers of the tiles whose list of detections from a score on is full."""
    limit = getattr(getattr(model, "roi_heads", None), "detections_per_img", None)
    if limit is None:
        return set()
    return {number for number, found in enumerate(of_tiles) if (found.scores >= np.float32(score)).sum() >= limit}


def _windows(
    images: Iterable[Image],
    read_tiles: Callable[[Image], Sequence[Pixels]],
    n_tiles: int,
    readers: int,
    on_unreadable: Callable[[Image, UnreadableTilesError], None] | None,
) -> Iterator[list[tuple[Image, Sequence[Pixels]]]]:
    """Images with their pixels in groups of about ``n_tiles`` tiles; as many again are read meanwhile."""
    waiting: deque[tuple[Image, Future[Sequence[Pixels]]]] = deque()
    source = iter(images)
    ahead = 0
    with ThreadPoolExecutor(readers, thread_name_prefix="read-tiles") as pool:
        try:
            while True:
                while ahead < 2 * n_tiles and (image := next(source, None)) is not None:
                    waiting.append((image, pool.submit(_checked_tiles, image, read_tiles)))
                    ahead += len(image.frames.tiles)
                if not waiting:
                    return
                window: list[tuple[Image, Sequence[Pixels]]] = []
                in_window = 0
                while waiting and in_window < n_tiles:
                    image, future = waiting.popleft()
                    ahead -= len(image.frames.tiles)
                    try:
                        window.append((image, future.result()))
                    except UnreadableTilesError as error:
                        if on_unreadable is None:
                            raise
                        on_unreadable(image, error)
                        continue
                    in_window += len(image.frames.tiles)
                yield window
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _checked_tiles(image: Any, read_tiles: Callable[[Any], Sequence[Pixels]]) -> Sequence[Pixels]:
    tiles = read_tiles(image)
    expected = [(tile.height, tile.width) for tile in image.frames.tiles]
    found = [tile.shape[:2] for tile in tiles]
    if expected != found:
        raise UnreadableTilesError(
            f"{image.image_id}: expected tiles of (height, width) {expected}, found {found}; "
            "materialize the tiles again"
        )
    return tiles
