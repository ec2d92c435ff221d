"""Tiles and their lesions as a torch dataset of input images and torchvision targets.

Pixels are uint8 at the network's input size. What an item looks like depends on the seed, the epoch and the draw alone,
never on the worker that made it. Order and batches are decided by ``sampling`` and ``loader``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from uveitis_assets.detection.configuration import AugmentationConfiguration
from uveitis_assets.detection.data.augmentation import augment
from uveitis_assets.detection.data.copy_paste import LesionBank, paste_lesions
from uveitis_assets.detection.data.labelled_split import LabelledImage
from uveitis_assets.detection.data.letterbox import fit_to_input
from uveitis_assets.detection.data.tile_files import (
    UnreadableTilesError,
    damage_reported,
    read_global_image,
    read_picture,
    read_tile_file,
    read_tile_pixels,
    tiled_picture,
)
from uveitis_assets.detection.data.tile_windows import (
    picture_truth,
    random_window,
    read_window,
    truth_in_window,
    wants_windows,
)
from uveitis_assets.detection.inference.detections import GroundTruth
from uveitis_assets.imaging.geometry import AxisAlignedTransform
from uveitis_assets.imaging.tiling import cut_tile
from uveitis_assets.storage.store import ArtefactStore

Target = dict[str, Tensor]

# Each kind of random change has a stream of its own: adding one leaves the others as they were.
_WINDOWS, _PASTES = 1, 2


class TileDraw(NamedTuple):
    """What a sampler asks for: a dataset position and how often the epoch drew that tile before."""

    item: int
    repeat: int


class TilePixels(Protocol):
    """Where tiles come from: ``TileFiles`` or a ``TileStore``."""

    def read(self, image: LabelledImage, tile: int) -> NDArray[np.uint8]:
        """The tile's pixels, (H, W, 3) uint8 RGB; the caller may change them."""
        ...


class TileFiles:
    """Decodes tiles one by one from PNG files.

    With a store also from the larger images of tiles that are not persisted.
    """

    def __init__(self, store: ArtefactStore | None = None) -> None:
        self._store = store
        # Validation asks for an image's tiles one after the other.
        self._picture: tuple[Path, NDArray[np.uint8]] | None = None

    def read(self, image: LabelledImage, tile: int) -> NDArray[np.uint8]:
        """The tile's pixels, (H, W, 3) uint8 RGB.

        Raises:
            UnreadableTilesError: the file is gone, is not an image or has another size than its label.
        """
        if self._store is None:
            return _as_labelled(image, tile, read_tile_file(image, tile))
        with damage_reported(self._store):
            return self._read(self._store, image, tile)

    def _read(self, store: ArtefactStore, image: LabelledImage, tile: int) -> NDArray[np.uint8]:
        if image.frames.tiles[tile].is_global:
            return _as_labelled(image, tile, read_global_image(store, image))
        source = tiled_picture(store, image)
        if source is None:
            return _as_labelled(image, tile, read_tile_file(image, tile))
        picture = self._picture
        if picture is None or picture[0] != source:
            picture = self._picture = (source, read_picture(source))
        return _as_labelled(image, tile, cut_tile(picture[1], image.frames.tiles[tile]).copy())


def read_labelled_tiles(store: ArtefactStore, image: LabelledImage) -> list[NDArray[np.uint8]]:
    """All tiles of an image, (H, W, 3) uint8 RGB each.

    Raises:
        UnreadableTilesError: a file is gone, is not an image or has another size than its label.
    """
    return [_as_labelled(image, tile, pixels) for tile, pixels in enumerate(read_tile_pixels(store, image))]


def _as_labelled(image: LabelledImage, tile: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    labelled = image.tiles[tile]
    if pixels.shape != (labelled.height, labelled.width, 3):
        raise UnreadableTilesError(
            f"{image.image_id}: {labelled.file}: expected {labelled.width}x{labelled.height} px as in the labels, "
            f"found {pixels.shape[1]}x{pixels.shape[0]}; materialize the lane's coco_labels again"
        )
    return pixels


class TileDataset(Dataset[tuple[Tensor, Target]]):
    """Every tile of some images, image after image; ``len`` is the number of tiles.

    An item is ``(pixels, target)``: uint8 (3, S, S) RGB with S the input size, and ``boxes`` float32 (N, 4) x0 y0 x1
    y1, ``labels`` int64 (N,), ``corners`` float32 (N, 4, 2) with NaN rows where a lesion has no oriented box, all in
    input px; ``image_index`` and ``tile_index``, int64 scalars, are the places of image and tile in ``images``.

    Items are asked for by position or by ``TileDraw``: a tile that an epoch shows twice is augmented in two ways.
    """

    def __init__(
        self,
        images: Sequence[LabelledImage],
        augmentation: AugmentationConfiguration | None,
        seed: int,
        input_size: int,
        pixels: TilePixels | None = None,
    ) -> None:
        """``augmentation`` None leaves the tiles as they are; ``pixels`` None decodes the PNG files."""
        self.images = tuple(images)
        self.input_size = input_size
        self._augmentation = augmentation
        self._seed = seed
        self._pixels = pixels or TileFiles()
        self._bank = LesionBank(self.images) if augmentation is not None and augmentation.copy_paste else None
        self._places = [(i, t) for i, image in enumerate(self.images) for t in range(len(image.tiles))]
        # Shared memory: workers that live for several epochs would keep a plain number at its first value.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self._places)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose random changes the following items get; call it before iterating."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int | TileDraw) -> tuple[Tensor, Target]:
        item, repeat = index if isinstance(index, TileDraw) else (index, 0)
        image_index, tile_index = self._places[item]
        image = self.images[image_index]
        seed = (self._seed, int(self._epoch), item, repeat)
        if self._augmentation is None:
            pixels, truth = self._as_it_is(image, tile_index)
            boxes, corners = truth.boxes, truth.corners
        else:
            pixels, truth = self._changed(image, tile_index, self._augmentation, seed)
            rng = np.random.default_rng(seed)
            pixels, boxes, corners = augment(pixels, truth.boxes, truth.corners, self._augmentation, rng)
        # cv2 takes the channels apart five times as fast as a transposed copy.
        planes = np.empty((3, self.input_size, self.input_size), np.uint8)
        cv2.split(pixels, list(planes))
        return torch.from_numpy(planes), {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.from_numpy(truth.labels.copy()),
            "corners": torch.from_numpy(corners),
            "image_index": torch.tensor(image_index),
            "tile_index": torch.tensor(tile_index),
        }

    def _as_it_is(self, image: LabelledImage, tile: int) -> tuple[NDArray[np.uint8], GroundTruth]:
        """The tile and its lesions in input px."""
        pixels, to_input = fit_to_input(self._pixels.read(image, tile), self.input_size)
        return pixels, _moved(image.tiles[tile].truth, to_input)

    def _changed(
        self, image: LabelledImage, tile: int, augmentation: AugmentationConfiguration, seed: tuple[int, ...]
    ) -> tuple[NDArray[np.uint8], GroundTruth]:
        """A window around the tile, and lesions pasted into it, as far as the configuration says."""
        if wants_windows(augmentation):
            rng = np.random.default_rng((*seed, _WINDOWS))
            window = random_window(image, tile, augmentation, self.input_size, rng)
            pixels = read_window(self._pixels, image, tile, window)
            truth = truth_in_window(picture_truth(image, tile), window)
        else:
            pixels, truth = self._as_it_is(image, tile)
        place = image.frames.tiles[tile]
        if self._bank is None or place.is_global:
            return pixels, truth
        rng = np.random.default_rng((*seed, _PASTES))
        if rng.random() >= augmentation.copy_paste:
            return pixels, truth
        return paste_lesions(
            pixels,
            truth,
            self._bank,
            self._pixels,
            scale=self.input_size / max(place.width, place.height),
            n_lesions=int(rng.integers(1, augmentation.copy_paste_lesions, endpoint=True)),
            rng=rng,
        )


def _moved(truth: GroundTruth, to_input: AxisAlignedTransform) -> GroundTruth:
    """The ground truth in input px, as arrays of its own."""
    boxes = to_input.apply_boxes(truth.boxes).astype(np.float32)
    corners = to_input.apply(truth.corners).astype(np.float32)
    return GroundTruth(boxes, truth.labels, corners, truth.scores)


def collate(items: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Images and targets of a batch as two lists, as torchvision's detectors take them."""
    images, targets = zip(*items, strict=True)
    return list(images), list(targets)
