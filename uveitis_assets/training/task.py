"""Interface of a task of the training loop: model, batches, losses, evaluation and identity.

A task subclasses ``Task``, or ``RunTask`` where it trains in a run folder, and writes the abstract methods; the others
have defaults. Everything else (position, states, learning rate, averages, processes, logs) is the loop's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from uveitis_assets.training.run_folder import RunFolder

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class EpochResult:
    """Result of a finished epoch.

    ``epoch`` counts from 1, ``losses`` are means by name, ``metrics`` are empty where not evaluated. ``step`` counts
    optimizer steps over all epochs, ``learning_rate`` is that of the last one, ``elapsed_s`` the time since the
    training began.
    """

    epoch: int
    step: int
    losses: Mapping[str, float]
    metrics: Mapping[str, float | None]
    learning_rate: float
    elapsed_s: float

    @property
    def train_loss(self) -> float:
        """Sum of the mean losses."""
        return sum(self.losses.values())


class Task(Protocol[Item]):
    """Something to train; an ``Item`` is one example of a batch."""

    # Name of the metric whose highest value chooses the best weights; None: nothing is evaluated.
    selection_metric: str | None = None
    # What messages call an item, and what they advise.
    item_noun: str = "item"
    advice_out_of_memory: str = "take a smaller model or smaller inputs"
    advice_not_finite: str = "lower the learning rate"

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides the weights, as plain values by name; another identity starts a new training."""

    @abstractmethod
    def build(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Builds the model on its device, in training mode, and its optimizer.

        The random generators are seeded before. A parameter group may hold ``lr_scale``, its share of the learning
        rate.
        """

    @property
    @abstractmethod
    def batches_per_epoch(self) -> int:
        """Batches of an epoch; the same in every epoch and process."""

    @abstractmethod
    def batches(self, epoch: int, skip: int) -> Iterator[Sequence[Item]]:
        """This process's batches of an epoch (from 0), without the first ``skip``.

        They depend on the arguments alone.
        """

    @abstractmethod
    def losses(self, model: nn.Module, items: Sequence[Item], *, step: int) -> Mapping[str, Tensor]:
        """Losses of some items of a batch by name, each the mean over the items; ``step`` counts from 0."""

    def check(self) -> None:
        """Raise ValueError for a training that must not begin; called before anything is written."""
        return

    def initialise(self, model: nn.Module, log: Callable[[str], None]) -> None:
        """Loads the first weights of a new training into the model, in place.

        A continued training has its own and does not call this.
        """
        return

    def in_epoch(self, model: nn.Module, epoch: int) -> AbstractContextManager[None]:
        """Context around the steps of an epoch (from 0).

        For freezing parts, or explaining errors of loading processes.
        """
        return nullcontext()

    def item_name(self, item: Item) -> str:
        """How messages name an item."""
        return str(item)

    def evaluate(self, model: nn.Module) -> Mapping[str, float | None]:
        """Metrics by name of averaged weights in evaluation mode, among them ``selection_metric``.

        Every process of a group calls this, and has to return the same.
        """
        return {}

    def epoch_row(self, result: EpochResult) -> dict[str, Any]:
        """The epoch's line of metrics.jsonl: plain values; holds ``epoch``, ``step`` and the selection metric."""
        return {
            "epoch": result.epoch,
            "train_loss": result.train_loss,
            "elapsed_sec": round(result.elapsed_s, 3),
            "lr": result.learning_rate,
            "step": result.step,
            **result.metrics,
            **result.losses,
        }


class RunTask(Task[Item], Protocol[Item]):
    """A task that trains in a run folder, with its configuration, lineage and report.

    See ``train_in_run_folder``.
    """

    @abstractmethod
    def configuration(self) -> dict[str, Any]:
        """All settings as plain values, for config.yaml and states; ``model`` is what rebuilds the model."""

    def lineage(self, row: Mapping[str, Any], *, created_at: str) -> dict[str, Any]:
        """What saved weights are and where they come from; ``row`` is that of their epoch."""
        return {"configuration": self.configuration(), "metrics": dict(row), "created_at": created_at}

    def report(
        self, model: nn.Module, folder: RunFolder, best: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Evaluate the best weights once more and write reports below the folder (rank 0 alone writes).

        Args:
            model: the best weights in evaluation mode.
            folder: the run's.
            best: the row of the epoch with the best weights.
            rows: of all epochs.

        Returns:
            Plain values for the outcome in run.json.
        """
        return {} if self.selection_metric is None else {self.selection_metric: best[self.selection_metric]}
