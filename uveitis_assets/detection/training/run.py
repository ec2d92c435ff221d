"""One call of a training, as its steps and epochs see it: what stays the same, and the learner that does not.

``training`` opens it; ``training`` and ``training_step`` change its learner. It computes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from uveitis_assets.detection.configuration import DetectorConfiguration
from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.data.tile_dataset import TilePixels
from uveitis_assets.detection.data.tile_seeds import TileSeeds
from uveitis_assets.detection.data.training_data import EpochBatches
from uveitis_assets.training.configuration import TrainingConfiguration
from uveitis_assets.training.device import uses_bfloat16
from uveitis_assets.training.progress import TrainingListener
from uveitis_assets.training.run_folder import RunFolder
from uveitis_assets.training.state import TrainingState


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One call of ``train_detector``; ``began`` lies earlier by what its former lives took (monotonic clock, s).

    ``learned_before`` are the ids of the images that the first weights learned.
    """

    folder: RunFolder
    identity: Mapping[str, Any]
    parent: Mapping[str, str] | None
    learned_before: frozenset[str]
    configuration: DetectorConfiguration
    train: LabelledSplit
    val: LabelledSplit
    batches: EpochBatches
    pixels: TilePixels
    learner: TrainingState
    tile_seeds: TileSeeds
    device: torch.device
    listener: TrainingListener
    began: float

    @property
    def options(self) -> TrainingConfiguration:
        """How it is optimized."""
        return self.configuration.training

    @property
    def n_steps(self) -> int:
        """Optimizer steps of all epochs."""
        return self.options.epochs * len(self.batches)

    @property
    def amp(self) -> bool:
        """Whether the forward pass runs in bfloat16."""
        return uses_bfloat16(self.options.amp, self.device.type)

    @property
    def elapsed_s(self) -> float:
        """Time since it began, former lives included."""
        return time.monotonic() - self.began
