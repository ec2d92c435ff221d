"""Loads batches of tiles with torch; the results do not depend on the number of workers.

Errors in workers are raised with readable messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from uveitis_assets.detection.data.tile_dataset import Target, TileDataset, collate

Batch = tuple[list[Tensor], list[Target]]


class LoaderWorkerError(RuntimeError):
    """A process that loads tiles died; the message names the usual cause."""


class TileLoader:
    """Iterates batches as two lists, images (uint8 3xSxS) and targets; ``len`` is the number of batches.

    Put the loop over an epoch into ``with batches.explaining_worker_deaths():``. torch learns of a dead worker by a
    signal, and raises wherever the training then is: mostly in the middle of a step, not while a batch is awaited.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        with self.explaining_worker_deaths():
            batches = iter(self._loader)
            while True:
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                except (ConnectionError, EOFError) as error:
                    # It died while it handed a batch over.
                    raise self._death(error) from error
                yield batch

    @contextmanager
    def explaining_worker_deaths(self) -> Iterator[None]:
        """Turn torch's error about a dead worker into a ``LoaderWorkerError``; others pass."""
        try:
            yield
        except RuntimeError as error:
            # Errors that a living worker passes on read "... in DataLoader worker process 0".
            if not str(error).startswith("DataLoader worker (pid"):
                raise
            raise self._death(error) from error

    def _death(self, error: Exception) -> LoaderWorkerError:
        return LoaderWorkerError(
            f"a process that loads tiles died: {error}; most often memory is short: lower the number of loader workers "
            f"(now {self._loader.num_workers}; 0 loads in the training process), and in a container raise --shm-size"
        )


def tile_loader(
    dataset: TileDataset,
    sampler: Sampler[Any] | None,
    *,
    batch_size: int,
    num_workers: int = 0,
    pin_memory: bool | None = None,
) -> TileLoader:
    """Batches of a dataset in the sampler's order, the last one smaller where it does not fill.

    Call ``set_epoch`` of dataset and sampler before iterating an epoch; workers are kept between epochs.

    Args:
        dataset: what is loaded.
        sampler: which items; None takes every tile once in the dataset's order, for validation.
        batch_size: tiles per batch.
        num_workers: processes that load; 0 loads in this one. Batches are the same whatever their number.
        pin_memory: put batches into page-locked memory for CUDA; None does so where CUDA is there.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        persistent_workers=num_workers > 0,
        prefetch_factor=2 if num_workers else None,
        worker_init_fn=_one_thread,
        # Nothing draws from it; given, the loader leaves the process's own random state alone.
        generator=torch.Generator().manual_seed(0),
    )
    return TileLoader(loader)


def _one_thread(worker: int) -> None:
    """A pool of threads that was started before the fork would hang, and workers are parallel already."""
    cv2.setNumThreads(0)
