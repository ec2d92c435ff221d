"""What a training changes as it goes: the weights, their average, the optimizer and the position; saved and restored.

A state is complete: a training continued from one ends with the same bits as one that was never interrupted (on the
same number of processes, on the CPU). It decides not when states are written; ``run_folder`` knows where.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from uveitis_assets.training.distributed import gathered, process_rank
from uveitis_assets.training.random_state import random_state, restore_random_state


@dataclass
class TrainerPosition:
    """Where a training stands; plain values.

    ``epoch`` and ``batch`` count what is done: ``batch`` batches of epoch ``epoch`` (from 0), ``step`` optimizer steps
    in all. ``loss_sums`` add up the current epoch's losses, ``rows`` are the lines of metrics.jsonl.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    micro_batch: int = 0
    loss_sums: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    elapsed_s: float = 0.0

    @property
    def best_row(self) -> dict[str, Any] | None:
        """The first of the epochs with the highest AP at the selection IoU; None before the first evaluation."""
        judged = [row for row in self.rows if row["map_selection"] is not None]
        return max(judged, key=lambda row: float(row["map_selection"]), default=None)


@dataclass
class TrainingState:
    """A model in training, its averaged weights, its optimizer and the position."""

    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    position: TrainerPosition


def training_state(learner: TrainingState, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a continued training needs; tensors and plain values only.

    The root keys epoch, model, config, metrics and optimizer are those of the earlier scripts' last.pth. Every process
    has to call this: each has random numbers of its own.
    """
    position = asdict(learner.position)
    return {
        "epoch": learner.position.epoch,
        "model": learner.model.state_dict(),
        "config": dict(configuration),
        "metrics": learner.position.rows[-1] if learner.position.rows else {},
        "optimizer": learner.optimizer.state_dict(),
        "average": learner.average.state_dict(),
        "position": position,
        "random": gathered(random_state()),
    }


def restore_training_state(learner: TrainingState, state: Mapping[str, Any]) -> None:
    """Set model, average, optimizer, position and random generators to a state of ``training_state``."""
    learner.model.load_state_dict(state["model"])
    learner.average.load_state_dict(state["average"])
    # Rates and decays come from the configuration, which the state is of; Adam's moments go to the parameters' device.
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.position = TrainerPosition(**state["position"])
    restore_random_state(state["random"][process_rank()])
