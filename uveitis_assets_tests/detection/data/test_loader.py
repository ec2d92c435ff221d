"""Batches: the same with any number of workers, every epoch anew, and readable when a worker dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from uveitis_assets.detection.configuration import AugmentationConfiguration, SamplingConfiguration
from uveitis_assets.detection.data.coco_reader import read_labelled_split
from uveitis_assets.detection.data.labelled_split import LabelledImage
from uveitis_assets.detection.data.loader import Batch, LoaderWorkerError, TileLoader, tile_loader
from uveitis_assets.detection.data.sampling import EpochSampler, overfit_split
from uveitis_assets.detection.data.tile_dataset import TileDataset, TileFiles
from uveitis_assets.detection.data.tile_store import open_tile_store
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.detection.tiled_lane import obb_line, write_lane

LABELS = [obb_line(4, (0.3, 0.4), (0.1, 0.15)), obb_line(15, (0.7, 0.6), (0.2, 0.1)), "", ""]


@pytest.fixture
def images(store: ArtefactStore) -> tuple[LabelledImage, ...]:
    write_lane(store, LABELS)
    return read_labelled_split(store, "uwf700", fold=0, split="train").images


def epochs(
    images: tuple[LabelledImage, ...], num_workers: int, store: ArtefactStore | None = None, n_epochs: int = 3
) -> list[list[Batch]]:
    pixels = open_tile_store(store, images) if store else None
    dataset = TileDataset(images, AugmentationConfiguration(), 5, 64, pixels)
    sampler = EpochSampler(images, SamplingConfiguration(), 5)
    batches = tile_loader(dataset, sampler, batch_size=3, num_workers=num_workers)
    seen = []
    for epoch in range(n_epochs):
        dataset.set_epoch(epoch)
        sampler.set_epoch(epoch)
        seen.append(list(batches))
        assert len(seen[-1]) == len(batches)
    return seen


def equal(first: list[Batch], second: list[Batch]) -> bool:
    if len(first) != len(second):
        return False
    for (images_a, targets_a), (images_b, targets_b) in zip(first, second, strict=True):
        if len(images_a) != len(images_b) or not all(map(torch.equal, images_a, images_b)):
            return False
        for target_a, target_b in zip(targets_a, targets_b, strict=True):
            assert target_a.keys() == target_b.keys()
            if not all(np.array_equal(target_a[n], target_b[n], equal_nan=n == "corners") for n in target_a):
                return False
    return True


def test_workers_seeds_and_the_cache_change_nothing(store: ArtefactStore, images: tuple[LabelledImage, ...]) -> None:
    here = epochs(images, 0)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    for other in (epochs(images, 2), epochs(images, 1, store)):
        assert all(map(equal, here, other))
    assert torch.equal(torch.get_rng_state(), before)
    assert not equal(here[0], here[1])


def test_a_training_that_goes_on_in_the_middle_of_an_epoch_sees_the_batches_that_were_left(
    images: tuple[LabelledImage, ...],
) -> None:
    whole = epochs(images, 0, n_epochs=2)[1]
    dataset = TileDataset(images, AugmentationConfiguration(), 5, 64)
    sampler = EpochSampler(images, SamplingConfiguration(), 5)
    batches = tile_loader(dataset, sampler, batch_size=3)
    dataset.set_epoch(1)
    sampler.set_epoch(1, first_draw=2 * 3)
    assert equal(list(batches), whole[2:])
    sampler.set_epoch(1)
    assert len(batches) == len(whole)


def test_without_sampler_every_tile_comes_once_in_order(images: tuple[LabelledImage, ...]) -> None:
    batches = tile_loader(TileDataset(images, None, 0, 96), None, batch_size=5)
    places = [(int(t["image_index"]), int(t["tile_index"])) for _, targets in batches for t in targets]
    assert places == [(image, tile) for image in range(len(images)) for tile in range(4)]


def test_an_overfitting_run_is_evaluated_on_the_images_it_trains_on(store: ArtefactStore) -> None:
    """The earlier scripts trained on the first training images and evaluated on the first validation images."""
    write_lane(store, ["", *LABELS])
    chosen = overfit_split(read_labelled_split(store, "uwf700", fold=0, split="train"), 2)
    assert [image.image_id for image in chosen.images] == ["uwf700::eye001", "uwf700::eye002"]
    sampler = EpochSampler(chosen.images, SamplingConfiguration(), 1)
    trained = tile_loader(TileDataset(chosen.images, None, 1, 96), sampler, batch_size=2)
    evaluated = tile_loader(TileDataset(chosen.images, None, 1, 96), None, batch_size=2)
    shown, expected = (
        {chosen.images[int(t["image_index"])].image_id for _, targets in batches for t in targets}
        for batches in (trained, evaluated)
    )
    assert shown == expected == {image.image_id for image in chosen.images}


class DeadlyPixels(TileFiles):
    """Kills the process that reads the third tile."""

    def read(self, image: LabelledImage, tile: int) -> NDArray[np.uint8]:
        if tile == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(image, tile)


def spend(batches: TileLoader, step_s: float) -> None:
    with batches.explaining_worker_deaths():
        for _ in batches:
            time.sleep(step_s)


# PyTorch notices the killed worker once more when its iterator is collected.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function _MultiProcessingDataLoaderIter.__del__:"
    "pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("step_s", [0.0, 0.01, 0.5])
def test_a_killed_worker_gives_an_error_that_says_what_to_do(images: tuple[LabelledImage, ...], step_s: float) -> None:
    """Also when the worker dies while the training is busy with a step."""
    dataset = TileDataset(images, None, 0, 96, DeadlyPixels())
    batches = tile_loader(dataset, None, batch_size=1, num_workers=1)
    with pytest.raises(LoaderWorkerError, match=r"loads tiles died: .*lower the number of loader workers \(now 1"):
        spend(batches, step_s)


@pytest.mark.parametrize("error", [ConnectionResetError("reset by peer"), EOFError("no more")])
def test_a_worker_that_dies_while_it_hands_a_batch_over_is_explained_too(error: Exception) -> None:
    class Handing:
        num_workers = 3

        def __iter__(self) -> Iterator[Batch]:
            yield [], []
            raise error

    with pytest.raises(LoaderWorkerError, match=r"died: (reset by peer|no more); .*now 3"):
        spend(TileLoader(Handing()), 0.0)


class FaultyPixels(TileFiles):
    """Fails without dying."""

    def read(self, image: LabelledImage, tile: int) -> NDArray[np.uint8]:
        raise RuntimeError(f"tile {tile} is upside down")


def test_an_error_of_a_living_worker_is_not_called_a_death(images: tuple[LabelledImage, ...]) -> None:
    batches = tile_loader(TileDataset(images, None, 0, 96, FaultyPixels()), None, batch_size=1, num_workers=1)
    with pytest.raises(RuntimeError, match="tile 0 is upside down") as caught:
        spend(batches, 0.0)
    assert not isinstance(caught.value, LoaderWorkerError)


def test_a_broken_tile_keeps_its_own_error_in_a_worker(images: tuple[LabelledImage, ...]) -> None:
    images[0].tiles[1].file.write_bytes(b"no png")
    batches = tile_loader(TileDataset(images, None, 0, 96), None, batch_size=1, num_workers=1)
    with pytest.raises(ValueError, match=r"tile_001\.png: expected a tile as PNG"):
        list(batches)
