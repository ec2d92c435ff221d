"""State of a training as plain values and back: weights, their average, optimizer, position.

A state is complete: a training continued from one ends with the same bits as one that was never interrupted (with the
same number of processes, on the CPU). When states are written is decided in ``loop``, where in ``run``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from uveitis_assets.training.distributed import gathered, process_rank
from uveitis_assets.training.random_state import random_state, restore_random_state


@dataclass
class TrainerPosition:
    """How far a training is; plain values.

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

    def best_row(self, metric: str | None) -> dict[str, Any] | None:
        """The first of the epochs with the highest value of a metric; None where none has it."""
        evaluated = [row for row in self.rows if metric is not None and row.get(metric) is not None]
        return max(evaluated, key=lambda row: float(row[str(metric)]), default=None)


@dataclass
class TrainingState:
    """A model in training, its averaged weights (None: not averaged), its optimizer and the position."""

    model: nn.Module
    average: nn.Module | None
    optimizer: torch.optim.Optimizer
    position: TrainerPosition

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are evaluated and used: the average where there is one."""
        return self.model if self.average is None else self.average

    @contextmanager
    def in_evaluation_mode(self) -> Iterator[nn.Module]:
        """Context in which ``evaluated`` is in evaluation mode; a model in training goes back to its mode."""
        if self.average is not None:
            yield self.average
            return
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.train()


def training_state(state: TrainingState, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a continued training needs; tensors and plain values only.

    The root keys epoch, model, config, metrics and optimizer are those of the earlier scripts' last.pth. Every process
    has to call this: each has random numbers of its own.
    """
    position = asdict(state.position)
    return {
        "epoch": state.position.epoch,
        "model": state.model.state_dict(),
        "config": dict(configuration),
        "metrics": state.position.rows[-1] if state.position.rows else {},
        "optimizer": state.optimizer.state_dict(),
        **({} if state.average is None else {"average": state.average.state_dict()}),
        "position": position,
        "random": gathered(random_state()),
    }


def restore_training_state(state: TrainingState, saved: Mapping[str, Any]) -> None:
    """Set model, average, optimizer, position and random generators to a state of ``training_state``."""
    state.model.load_state_dict(saved["model"])
    if state.average is not None:
        state.average.load_state_dict(saved["average"])
    # Rates and decays come from the configuration, which the state is of; Adam's moments go to the parameters' device.
    state.optimizer.load_state_dict(saved["optimizer"])
    state.position = TrainerPosition(**saved["position"])
    restore_random_state(saved["random"][process_rank()])
