"""A masked autoencoder as a task of the training loop: its images, views, losses and first weights.

What an image looks like in an epoch depends on seed, epoch and image alone, so that a training that is continued shows
the same views.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from uveitis_assets.detection.data.preprocessed_images import PreprocessedImage, read_preprocessed_images
from uveitis_assets.detection.data.tile_files import read_global_image
from uveitis_assets.detection.pretraining.configuration import EncoderPretrainingConfiguration
from uveitis_assets.detection.pretraining.masked_autoencoder import SHAPES, MaskedAutoencoder
from uveitis_assets.detection.pretraining.views import View, random_view
from uveitis_assets.landing.manifest_table import read_manifest
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.batches_ahead import batches_ahead
from uveitis_assets.training.device import uses_bfloat16
from uveitis_assets.training.distributed import n_processes, process_rank
from uveitis_assets.training.loop import LoopOptions
from uveitis_assets.training.step import StepOptions
from uveitis_assets.training.task import Task
from uveitis_assets.training.weights_files import file_digest, read_weights_file
from uveitis_assets.training.weights_loading import load_matching_weights

_MIN_MATCHED = 0.9


class EncoderTask(Task[View]):
    """Trains a masked autoencoder on ``images``; ``started_from`` says where its first weights came from."""

    item_noun = "image"
    advice_out_of_memory = "take a smaller encoder"
    advice_not_finite = "lower learning_rate"

    def __init__(
        self,
        store: ArtefactStore,
        configuration: EncoderPretrainingConfiguration,
        images: Sequence[PreprocessedImage],
        *,
        device: str,
        threads: int,
    ) -> None:
        """``threads`` read images ahead."""
        self.images = images
        self.fingerprint = images_fingerprint(configuration, images)
        self.started_from = "random weights"
        self._store = store
        self._configuration = configuration
        self._device = torch.device(device)
        self._threads = threads
        self._half = uses_bfloat16(configuration.amp, device)
        self._shape = SHAPES[configuration.encoder]

    def identity(self) -> dict[str, Any]:
        """See ``Task``; complete once the model is built."""
        return {"fingerprint": self.fingerprint, "started_from": self.started_from}

    def build(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The model with its first weights: what was taken of their file is part of the identity."""
        model = MaskedAutoencoder(self._shape)
        if self._configuration.start_from is not None:
            self.started_from = _load_start(model, self._store.root / self._configuration.start_from)
        model.to(self._device).train()
        groups = _parameter_groups(model, self._configuration.weight_decay)
        return model, torch.optim.AdamW(groups, betas=(0.9, 0.95))

    @property
    def batches_per_epoch(self) -> int:
        """See ``Task``."""
        return math.ceil(math.ceil(len(self.images) / n_processes()) / self._configuration.batch_size)

    def batches(self, epoch: int, skip: int) -> Iterator[Sequence[View]]:
        """See ``Task``; processes that lack an image show one of the epoch's first again."""
        seed, size = self._configuration.seed, self._configuration.batch_size
        order = np.random.default_rng((seed, epoch)).permutation(len(self.images))
        order = np.resize(order, len(order) + -len(order) % n_processes())[process_rank() :: n_processes()]
        n_patches = (self._shape.image_size // self._shape.patch_size) ** 2

        def view(number: int) -> View:
            rng = np.random.default_rng((seed, epoch, number))
            pixels = read_global_image(self._store, self.images[number])
            shown = random_view(pixels, rng, self._shape.image_size, self._configuration.smallest_crop)
            return View(number, shown, rng.random(n_patches, dtype=np.float32))

        batches = [order[start : start + size].tolist() for start in range(0, len(order), size)]
        return batches_ahead(batches[skip:], view, threads=self._threads)

    def losses(self, model: nn.Module, items: Sequence[View], *, step: int) -> Mapping[str, Tensor]:
        """See ``Task``."""
        pixels = torch.from_numpy(np.stack([item.pixels for item in items])).to(self._device)
        noise = torch.from_numpy(np.stack([item.noise for item in items])).to(self._device)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._half):
            return {"loss": model(pixels, noise, self._configuration.masked_share)}

    def item_name(self, item: View) -> str:
        """The image's id."""
        return self.images[item.number].image_id

    def loop_options(self) -> LoopOptions:
        """The configuration as the training loop takes it: no average, no evaluation, gradients as they are."""
        configuration = self._configuration
        return LoopOptions(
            epochs=configuration.epochs,
            seed=configuration.seed,
            step=StepOptions(
                batch_size=configuration.batch_size,
                learning_rate=configuration.learning_rate * configuration.batch_size / 256,
                min_learning_rate=0.0,
                warmup_steps=round(configuration.warmup_epochs * self.batches_per_epoch),
            ),
            checkpoint_every_steps=configuration.checkpoint_every_steps,
        )


def images_to_show(
    store: ArtefactStore, configuration: EncoderPretrainingConfiguration
) -> tuple[list[PreprocessedImage], int]:
    """Images that may be shown, and how many are held out because they are test images in some fold.

    Raises:
        ValueError: there is none.
    """
    found: list[PreprocessedImage] = []
    test_images: set[str] = set()
    for lane in configuration.learn_from:
        for batch in store.indexed_batches(lane, "tiles"):
            found += read_preprocessed_images(store, lane, batch)
        rows = read_manifest(store, lane).select("image_id", "fold_splits").iter_rows()
        test_images |= {image_id for image_id, splits in rows if "test" in splits}
    shown = [image for image in found if image.image_id not in test_images]
    if not shown:
        raise ValueError(
            f"{configuration.name}: found no image with tiles outside test in {', '.join(configuration.learn_from)}; "
            "materialize their tiles first"
        )
    return shown, len(found) - len(shown)


def images_fingerprint(configuration: EncoderPretrainingConfiguration, images: Sequence[PreprocessedImage]) -> str:
    """Digest of the settings that decide the weights, and of the images; 16 hex digits."""
    settings = configuration.model_dump_json(exclude={"description", "owners", "checkpoint_every_steps"})
    digest = hashlib.blake2b(settings.encode(), digest_size=8)
    for image in images:
        digest.update(f"\n{image.image_id} {image.fingerprint}".encode())
    return digest.hexdigest()


def _load_start(model: MaskedAutoencoder, path: Path) -> str:
    """Loads a masked autoencoder's file into encoder and decoder; returns what was taken.

    Only the encoder has to be in it: RETFound publishes files with and without the decoder.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsMismatchError: the file provides too little of the encoder.
        ValueError: the file is damaged, holds code, or is of another kind of training.
    """
    file = read_weights_file(path)
    if file.root not in ("model", ""):
        # DINOv2's blocks have the same names and scale their branches besides: they would fit and mean something else.
        raise ValueError(
            f"{path}: expected a masked autoencoder's weights (root `model`, or nothing but tensors), found the root "
            f"`{file.root}`; take the MAE file"
        )
    encoder = [name for name in model.state_dict() if not name.startswith(("decoder_", "mask_token"))]
    report = load_matching_weights(model, file.tensors, file=path, min_matched=_MIN_MATCHED, wanted=encoder)
    return f"{path.name} ({file_digest(path)}), {len(report.matched)} of {len(model.state_dict())} tensors"


def _parameter_groups(model: MaskedAutoencoder, weight_decay: float) -> list[dict[str, Any]]:
    """No weight decay on vectors: biases, norms, tokens."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    flat = [parameter for parameter in trained if parameter.ndim <= 1 or parameter.shape[:2] == (1, 1)]
    held = {id(parameter) for parameter in flat}
    return [
        {"params": [parameter for parameter in trained if id(parameter) not in held], "weight_decay": weight_decay},
        {"params": flat, "weight_decay": 0.0},
    ]
