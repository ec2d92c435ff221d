"""Images that a training learns from and is evaluated on, and the batches of each epoch.

How items look is decided in ``tile_dataset``, their order in ``sampling``; this puts them together for one of several
processes, beginning anywhere in an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager

import torch

from uveitis_assets.detection.configuration import DetectorConfiguration
from uveitis_assets.detection.data.labelled_split import LabelledImage, LabelledSplit
from uveitis_assets.detection.data.loader import Batch, tile_loader
from uveitis_assets.detection.data.sampling import EpochSampler, limit_images, overfit_split
from uveitis_assets.detection.data.tile_dataset import TileDataset, TilePixels
from uveitis_assets.detection.evaluation.oriented_average_precision import has_oriented_labels
from uveitis_assets.training.distributed import n_processes, process_rank


def chosen_splits(
    configuration: DetectorConfiguration, train: LabelledSplit, val: LabelledSplit
) -> tuple[LabelledSplit, LabelledSplit]:
    """The splits that a training learns from and is evaluated on.

    With ``overfit_images`` both are the same few training images. A training whose best checkpoint oriented boxes
    choose is refused before it begins when a lesion has none.

    Raises:
        ValueError: no image with a lesion to learn from or to evaluate on, lesions of categories that the network
            does not have, or without the boxes that choose.
    """
    if configuration.overfit_images:
        train = val = overfit_split(train, configuration.overfit_images)
    for split in (train, val):
        if not any(len(image.truth) for image in split.images):
            raise ValueError(
                f"{split.lane}, fold {split.fold}, {split.split}: expected images with lesions, found none among "
                f"{len(split.images)}; label some, or choose another fold"
            )
        _check_categories(split, configuration.model.n_categories)
    if configuration.evaluation.selection == "oriented" and not has_oriented_labels([i.truth for i in val.images]):
        raise ValueError(
            f"{val.lane}, fold {val.fold}, {val.split}: evaluation.selection: expected an oriented box on every "
            "lesion, found lesions without; set it to axis_aligned"
        )
    return train, val


def _check_categories(split: LabelledSplit, n_categories: int) -> None:
    """Refuse labels of categories that the network does not have: on a GPU they would end the process."""
    largest = max(int(image.truth.labels.max(initial=0)) for image in split.images)
    if largest > n_categories:
        raise ValueError(
            f"{split.lane}, fold {split.fold}, {split.split}: model.n_categories: expected at least {largest}, the "
            f"largest category id of the labels, found {n_categories}"
        )


def check_never_learned(learned_before: Collection[str], val: LabelledSplit) -> None:
    """Refuse first weights that were trained on images by which the best epoch is to be chosen.

    Raises:
        ValueError: some of the images were learned.
    """
    learned = sorted(image.image_id for image in val.images if image.image_id in learned_before)
    if learned:
        raise ValueError(
            f"initialise: the first weights learned {len(learned)} of the {len(val.images)} images of fold {val.fold}, "
            f"{val.split}, e.g. {learned[0]}: AP there would be meaningless; start each fold from weights of the same "
            "fold and splits (initialise.experiment), or from weights that never saw these images"
        )


def images_shown(configuration: DetectorConfiguration, train: LabelledSplit, val: LabelledSplit) -> list[LabelledImage]:
    """The images whose pixels a training on ``chosen_splits`` reads, each once."""
    # Decoding more would only fill the tile cache.
    learned = limit_images(train.images, configuration.sampling.max_images, configuration.training.seed)
    return list({image.image_id: image for image in (*learned, *val.images)}.values())


class EpochBatches:
    """This process's batches of every epoch."""

    def __init__(
        self, configuration: DetectorConfiguration, train: LabelledSplit, device: torch.device, pixels: TilePixels
    ) -> None:
        options = configuration.training
        self._dataset = TileDataset(
            train.images, configuration.augmentation, options.seed, configuration.model.input_size, pixels
        )
        self._sampler = EpochSampler(
            train.images, configuration.sampling, options.seed, rank=process_rank(), world_size=n_processes()
        )
        self._batch_size = options.batch_size
        self._batches = tile_loader(
            self._dataset,
            self._sampler,
            batch_size=self._batch_size,
            num_workers=options.loader_workers if device.type == "cuda" else 0,
            pin_memory=device.type == "cuda",
        )

    def __len__(self) -> int:
        """Batches per epoch; the same in every process."""
        return math.ceil(self._sampler.draws_per_epoch / self._batch_size)

    def of_epoch(self, epoch: int, *, skip: int) -> Iterator[Batch]:
        """The epoch's batches but the first ``skip``: uint8 images (3, S, S) and their targets."""
        self._dataset.set_epoch(epoch)
        self._sampler.set_epoch(epoch, first_draw=skip * self._batch_size)
        return iter(self._batches)

    def explaining_worker_deaths(self) -> AbstractContextManager[None]:
        """Context around a loop over batches that raises ``LoaderWorkerError`` when a loading process dies."""
        return self._batches.explaining_worker_deaths()
