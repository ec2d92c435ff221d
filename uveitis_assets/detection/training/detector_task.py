"""A lesion detector as a task of the training loop: tiles, losses, evaluation, lineage and report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from uveitis_assets.detection.checkpoints.lineage import weights_lineage
from uveitis_assets.detection.configuration import DetectorConfiguration
from uveitis_assets.detection.data.fitted_anchors import with_fitted_anchors
from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.data.tile_dataset import Target, TilePixels
from uveitis_assets.detection.data.tile_geometry import TileGeometry
from uveitis_assets.detection.data.tile_seeds import TileSeeds
from uveitis_assets.detection.data.tile_store import tile_pixels
from uveitis_assets.detection.data.training_data import EpochBatches, check_never_learned, chosen_splits, images_shown
from uveitis_assets.detection.evaluation.detection_limits import answers_that_lack_room, samples_that_lack_room
from uveitis_assets.detection.evaluation.evaluate import Evaluation
from uveitis_assets.detection.evaluation.report import validation_report
from uveitis_assets.detection.models.acceleration import speed_up
from uveitis_assets.detection.models.class_logits import mask_untaught_classes
from uveitis_assets.detection.models.detector import build_detector
from uveitis_assets.detection.models.freezing import ever_frozen, freeze_blocks, n_frozen_blocks, parameter_groups
from uveitis_assets.detection.training.identity import training_identity
from uveitis_assets.detection.training.initial_weights import (
    check_frozen_weights,
    images_learned_before,
    load_initial_weights,
    parent_weights,
)
from uveitis_assets.detection.training.resolved_configuration import resolved_configuration
from uveitis_assets.detection.training.validation import validate
from uveitis_assets.storage.files import write_bytes, write_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.curves import training_curves
from uveitis_assets.training.device import answers_in_half_precision, uses_bfloat16
from uveitis_assets.training.distributed import process_rank
from uveitis_assets.training.run_folder import RunFolder
from uveitis_assets.training.task import EpochResult, RunTask

Tile = tuple[Tensor, Target]

_METRICS = ("map_50", "map_30", "map_50_95", "map_selection")
_CURVES = {"map_30": "AP at IoU 0.3", "map_50": "AP at IoU 0.5", "map_50_95": "AP at IoU 0.5:0.95"}


class DetectorTask(RunTask[Tile]):
    """Trains a detector on the tiles of ``train``; AP on the images of ``val`` chooses the best epoch.

    An item is uint8 (3, S, S) RGB and its target of ``TileDataset``, on the CPU.
    """

    selection_metric = "map_selection"
    item_noun = "tile"
    advice_out_of_memory = "lower model.input_size, take a smaller backbone, or set model.recompute_activations"
    advice_not_finite = "lower training.learning_rate or training.gradient_clip_norm, or set training.amp to off"

    def __init__(
        self,
        store: ArtefactStore,
        configuration: DetectorConfiguration,
        train: LabelledSplit,
        val: LabelledSplit,
        device: torch.device,
    ) -> None:
        """Take the splits that ``chosen_splits`` makes of these.

        Raises:
            ValueError: no lesions to learn from or to evaluate on, or labels that do not fit the network.
        """
        self.train, self.val = chosen_splits(configuration, train, val)
        self._store = store
        fitted = with_fitted_anchors(configuration, self.train.images)
        self._configuration = resolved_configuration(fitted, store, self.train, self.val)
        self._options = configuration.training
        self._device = device
        self._amp = uses_bfloat16(configuration.training.amp, device.type)
        # Of answers in validation, not of training steps.
        self._mixed_precision = answers_in_half_precision(configuration.training.amp, device.type)

    # Files are read once the folder's lock is held: before, another training may be writing them.
    @cached_property
    def _parent(self) -> dict[str, str] | None:
        return parent_weights(self._store, self._configuration.initialise)

    @cached_property
    def _learned_before(self) -> frozenset[str]:
        """Ids of the images that the first weights learned."""
        return images_learned_before(self._store, self._configuration.initialise)

    @cached_property
    def _pixels(self) -> TilePixels:
        images = images_shown(self._configuration, self.train, self.val)
        return tile_pixels(self._store, images, limit_gb=self._options.tile_cache_gb)

    @cached_property
    def _epoch_batches(self) -> EpochBatches:
        return EpochBatches(self._configuration, self.train, self._device, self._pixels)

    def identity(self) -> dict[str, Any]:
        """See ``Task``."""
        return training_identity(self._configuration, self.train, self.val, self._parent)

    def configuration(self) -> dict[str, Any]:
        """See ``RunTask``."""
        return self._configuration.model_dump(mode="json")

    def check(self) -> None:
        """Refuse first weights that learned images which choose the best epoch, and frozen random ones."""
        check_frozen_weights(self._configuration)
        if not self._configuration.overfit_images:
            check_never_learned(self._learned_before, self.val)

    def build(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """See ``Task``."""
        model = build_detector(self._configuration.model).to(self._device).train()
        mask_untaught_classes(model, self.train.categories)
        if self._device.type == "cuda":
            speed_up(model, channels_last=self._options.channels_last, compiled=self._options.compile)
        self._tile_seeds = TileSeeds(model)
        return model, torch.optim.AdamW(parameter_groups(model, self._options))

    def initialise(self, model: nn.Module, log: Callable[[str], None]) -> None:
        """See ``Task``."""
        report = load_initial_weights(model, self._store, self._configuration.initialise)
        log("starting from random weights" if report is None else report.summary())
        if report is None and ever_frozen(self._options):
            log(
                f"warning: training.freeze_blocks {self._options.freeze_blocks} keeps random weights as they are; "
                "initialise.frozen_random_weights allows it"
            )
        network, shown = self._configuration.model, [*self.train.images, *self.val.images]
        for message in (*answers_that_lack_room(network, shown), *samples_that_lack_room(network, self.train.images)):
            log(f"warning: {message}")

    @property
    def batches_per_epoch(self) -> int:
        """See ``Task``."""
        return len(self._epoch_batches)

    def batches(self, epoch: int, skip: int) -> Iterator[Sequence[Tile]]:
        """See ``Task``."""
        for images, targets in self._epoch_batches.of_epoch(epoch, skip=skip):
            yield list(zip(images, targets, strict=True))

    @contextmanager
    def in_epoch(self, model: nn.Module, epoch: int) -> Iterator[None]:
        """Freezes the epoch's blocks, and explains the death of a loading process.

        Such a death can show anywhere in the loop.
        """
        freeze_blocks(model, n_frozen_blocks(self._options, epoch))
        with self._epoch_batches.explaining_worker_deaths():
            yield

    def losses(self, model: nn.Module, items: Sequence[Tile], *, step: int) -> Mapping[str, Tensor]:
        """See ``Task``."""
        pixels = [image.to(self._device, non_blocking=True).float() / 255 for image, _ in items]
        labels = [
            {name: target[name].to(self._device, non_blocking=True) for name in ("boxes", "labels", "corners")}
            for _, target in items
        ]
        seed = self._options.seed
        self._tile_seeds.set([(seed, step, int(t["image_index"]), int(t["tile_index"])) for _, t in items])
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._amp):
            try:
                losses: Mapping[str, Tensor] = model(pixels, labels)
            except AssertionError as error:
                raise ValueError(self._refused_labels(items, error)) from error
        return losses

    def _refused_labels(self, items: Sequence[Tile], error: AssertionError) -> str:
        """Name what torchvision refuses: it knows a target by its place in the batch only."""
        empty = [item for item in items if (item[1]["boxes"][:, 2:] <= item[1]["boxes"][:, :2]).any()]
        names = ", ".join(self.item_name(item) for item in empty or items)
        train = self.train
        file = self._store.coco_file(train.lane, train.split, train.fold, tiles=True)
        return (
            f"{names}: expected labels that the network takes, found: {error} They are in {file} (or in the "
            "pseudo-labels made from it); correct the label files of these images and materialize "
            f"{train.lane}/coco_labels again"
        )

    def item_name(self, item: Tile) -> str:
        """Image id and tile id."""
        image = self.train.images[int(item[1]["image_index"])]
        return f"{image.image_id}/{image.tiles[int(item[1]['tile_index'])].tile_id}"

    def evaluate(self, model: nn.Module) -> dict[str, float | None]:
        """AP on the validation images."""
        evaluation = self._evaluation(model, intervals=False)
        return {name: getattr(evaluation, name) for name in _METRICS}

    def _evaluation(self, model: nn.Module, *, intervals: bool) -> Evaluation:
        return validate(
            model,
            self.val,
            self._configuration,
            pixels=self._pixels,
            device=self._device,
            amp=self._mixed_precision,
            intervals=intervals,
        )

    def epoch_row(self, result: EpochResult) -> dict[str, Any]:
        """The epoch's line of metrics.jsonl; metrics are null in epochs that are not evaluated."""
        metrics = {name: result.metrics.get(name) for name in _METRICS}
        return {
            "epoch": result.epoch,
            "train_loss": result.train_loss,
            # The earlier key; it holds the AP by which the best checkpoint is chosen, no proxy.
            "val_mAP_proxy": metrics["map_selection"],
            "elapsed_sec": round(result.elapsed_s, 3),
            "lr": result.learning_rate,
            "step": result.step,
            "n_frozen_blocks": n_frozen_blocks(self._options, result.epoch - 1),
            **metrics,
            **result.losses,
        }

    def lineage(self, row: Mapping[str, Any], *, created_at: str) -> dict[str, Any]:
        """See ``RunTask``."""
        input_size = self._configuration.model.input_size
        tiles = TileGeometry.of_images((image.frames for image in self.train.images), input_size)
        return weights_lineage(
            self._configuration,
            categories=self.train.categories,
            data_fingerprint=self.train.fingerprint,
            metrics=row,
            parent=self._parent,
            learned_images={*self._learned_before, *(image.image_id for image in self.train.images)},
            created_at=created_at,
            tiles=None if tiles is None else tiles.plain(),
            mixed_precision=self._mixed_precision,
        )

    def report(
        self, model: nn.Module, folder: RunFolder, best: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Evaluate the best weights with intervals, and write val_report.json and curves.png."""
        evaluation = self._evaluation(model, intervals=True)
        if process_rank() == 0:
            report = validation_report(evaluation, best_epoch=best["epoch"], fingerprint=self.val.fingerprint)
            write_json(folder.report_file, report)
            curves = training_curves(
                rows, title="Validation, per image", metrics=_CURVES, selection_metric="map_selection"
            )
            write_bytes(folder.curves_file, curves)
        return {name: getattr(evaluation, name) for name in ("map_selection", "map_50", "map_30")}
