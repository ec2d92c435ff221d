"""The training loop of every task: epochs, resumable states, best weights by a metric, early stop.

A training that is continued from a state ends with the bits of one that was never interrupted (on the CPU, with the
same number of processes). What is trained is a ``Task``'s, one optimizer step ``step``'s, and where states and weights
are written is decided by ``States`` and ``Weights``: a run folder (``run``), or files of a task's own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol

import torch
from torch import nn

from uveitis_assets.training.distributed import copy_from_rank_0, from_rank_0, process_rank
from uveitis_assets.training.ema import ema_copy
from uveitis_assets.training.progress import CompositeListener, TrainingListener
from uveitis_assets.training.random_state import seed_generators
from uveitis_assets.training.state import TrainerPosition, TrainingState
from uveitis_assets.training.step import StepOptions, take_step
from uveitis_assets.training.task import EpochResult, Item, Task

_SEED_DISTANCE = 1_000_003


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """How long a task is trained, and when it is evaluated and saved.

    ``seed`` is that of the random generators. ``patience`` counts epochs without a better selection metric,
    ``evaluate_every`` and ``save_every_epochs`` epochs; 0 turns patience, ``save_every_epochs`` and
    ``checkpoint_every_steps`` off.
    """

    epochs: int
    seed: int
    step: StepOptions
    patience: int = 0
    evaluate_every: int = 1
    save_every_epochs: int = 0
    checkpoint_every_steps: int = 0
    checkpoint_every_minutes: float = math.inf


class States(Protocol):
    """Reads and writes the states that a training continues from.

    Every process calls each method, rank 0 writes.
    """

    def read(self) -> dict[str, Any] | None:
        """The state that a killed training of this identity left, None where there is none.

        Raises:
            ValueError: it is damaged.
        """
        ...

    def restore(self, state: TrainingState, saved: Mapping[str, Any]) -> None:
        """Set model, average, optimizer, position and random generators to what ``read`` gave."""
        ...

    def save(self, state: TrainingState) -> None:
        """Write the state, then the rows of its epochs where they have a file of their own."""
        ...


class Weights(Protocol):
    """Where weights of single epochs are written; every process calls each method, rank 0 writes."""

    def save_best(self, model: nn.Module, row: Mapping[str, Any]) -> None:
        """Write the weights of the best epoch so far."""
        ...

    def save_epoch(self, model: nn.Module, row: Mapping[str, Any]) -> None:
        """Write weights that ``save_every_epochs`` keeps."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingLoop(Generic[Item]):
    """One call of a training.

    ``began`` is its start on the monotonic clock, s, minus the time before a kill.
    """

    task: Task[Item]
    options: LoopOptions
    states: States
    weights: Weights | None
    state: TrainingState
    device: torch.device
    listener: TrainingListener
    began: float

    @classmethod
    def open(
        cls,
        task: Task[Item],
        options: LoopOptions,
        *,
        states: States,
        weights: Weights | None,
        device: torch.device,
        listener: TrainingListener,
        began: float,
    ) -> TrainingLoop[Item]:
        """Build the task's model, with its first weights or those of the state to continue from.

        ``weights`` None keeps no weights of single epochs.
        """
        seed_generators(options.seed)
        model, optimizer = task.build()
        saved = states.read()
        if saved is None:
            task.initialise(model, listener.on_message)
        copy_from_rank_0(model)
        # Processes begin with equal weights and go on with random numbers of their own.
        seed_generators(options.seed + _SEED_DISTANCE * process_rank())
        average = None if options.step.ema_decay is None else ema_copy(model)
        state = TrainingState(model, average, optimizer, TrainerPosition(micro_batch=options.step.batch_size))
        if saved is not None:
            states.restore(state, saved)
            position = state.position
            listener.on_message(f"continuing after {position.step} steps, in epoch {position.epoch + 1}")
        return cls(task, options, states, weights, state, device, listener, began - state.position.elapsed_s)

    @property
    def n_steps(self) -> int:
        """Optimizer steps of all epochs."""
        return self.options.epochs * self.task.batches_per_epoch

    @property
    def elapsed_s(self) -> float:
        """Time since the training began, that before a kill included."""
        return time.monotonic() - self.began

    @property
    def best_row(self) -> dict[str, Any] | None:
        """The row of the best epoch so far; None before the first evaluation."""
        return self.state.position.best_row(self.task.selection_metric)

    @property
    def stopped_early(self) -> bool:
        """Whether ``patience`` ended the training; False while it goes on."""
        options, best, epoch = self.options, self.best_row, self.state.position.epoch
        return options.patience > 0 and best is not None and epoch - int(best["epoch"]) >= options.patience

    def run(self, logs: Sequence[TrainingListener] = ()) -> None:
        """Take the steps that are left.

        Args:
            logs: listeners that hear of steps and epochs after the loop's own.

        Raises:
            NonFiniteLossError: loss or gradients became NaN or infinite; names epoch, step and items.
            RuntimeError: one item alone does not fit into the GPU's memory.
        """
        listener = CompositeListener([self.listener, *logs])
        position, options = self.state.position, self.options
        listener.on_train_start(n_epochs=options.epochs, n_steps=self.n_steps, step=position.step)
        while position.epoch < options.epochs and not self.stopped_early:
            # The epoch before ended with a state.
            saved = time.monotonic()
            with self.task.in_epoch(self.state.model, position.epoch):
                for items in self.task.batches(position.epoch, position.batch):
                    take_step(
                        self.task,
                        self.state,
                        items,
                        self.options.step,
                        n_steps=self.n_steps,
                        device=self.device,
                        listener=listener,
                    )
                    if self._state_is_due(saved):
                        self._save()
                        saved = time.monotonic()
            listener.on_epoch_end(self._end_epoch())

    def _state_is_due(self, saved: float) -> bool:
        """Whether it is time to write a state within an epoch; all processes agree."""
        every = self.options.checkpoint_every_steps
        late = from_rank_0(time.monotonic() - saved >= 60 * self.options.checkpoint_every_minutes)
        return late or (every > 0 and self.state.position.step % every == 0)

    def _end_epoch(self) -> dict[str, Any]:
        """Evaluate the averaged weights, and write weights and state; returns the epoch's row."""
        state, options, metric = self.state, self.options, self.task.selection_metric
        position = state.position
        epoch = position.epoch + 1
        metrics: Mapping[str, float | None] = {}
        if metric is not None and (epoch % options.evaluate_every == 0 or epoch == options.epochs):
            with state.in_evaluation_mode() as model:
                metrics = self.task.evaluate(model)
        group = state.optimizer.param_groups[0]
        row = self.task.epoch_row(
            EpochResult(
                epoch=epoch,
                step=position.step,
                losses={name: total / position.batch for name, total in sorted(position.loss_sums.items())},
                metrics=metrics,
                learning_rate=group["lr"] / group.get("lr_scale", 1.0),
                elapsed_s=self.elapsed_s,
            )
        )
        best = self.best_row
        position.rows.append(row)
        position.epoch, position.batch, position.loss_sums = epoch, 0, {}
        # The state comes last: a training that is killed before goes on to write the same weights again.
        if self.weights is not None:
            if metric is not None and row.get(metric) is not None and (best is None or row[metric] > best[metric]):
                self.weights.save_best(state.evaluated, row)
            if options.save_every_epochs and epoch % options.save_every_epochs == 0:
                self.weights.save_epoch(state.evaluated, row)
        self._save()
        return row

    def _save(self) -> None:
        self.state.position.elapsed_s = self.elapsed_s
        self.states.save(self.state)
