"""Runs a training in a run folder: starts or continues it, or recognises it as finished.

The folder then has best weights, metrics and report. The loop itself is ``loop``'s, names and content of the files
``run_folder``'s, and how a new run takes the place of a finished one ``run_replacement``'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.distributed import from_rank_0, gathered, process_rank
from uveitis_assets.training.loop import LoopOptions, TrainingLoop
from uveitis_assets.training.progress import TrainingListener
from uveitis_assets.training.run_folder import (
    RunFolder,
    finish_run,
    finished_outcome,
    read_state,
    run_created_at,
    write_configuration,
    write_metrics,
    write_state,
)
from uveitis_assets.training.run_replacement import open_run_folder, promote_pending_run
from uveitis_assets.training.state import TrainingState, restore_training_state, training_state
from uveitis_assets.training.task import Item, RunTask
from uveitis_assets.training.weights_files import read_weights_file, save_weights

OpenLogs = Callable[[RunFolder, int], AbstractContextManager[Sequence[TrainingListener]]]


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """A finished training: best weights, content of run.json, and whether it was finished before."""

    best_weights: Path
    values: dict[str, Any]
    was_finished: bool


def train_in_run_folder(
    task: RunTask[Item],
    options: LoopOptions,
    folder: RunFolder,
    *,
    store: ArtefactStore,
    device: torch.device,
    listener: TrainingListener,
    open_logs: OpenLogs | None = None,
) -> RunOutcome:
    """Train a task, continue a training that was killed, or recognise one that is finished.

    Several processes of one torch process group train together when each calls this with the same arguments.

    Args:
        task: what is trained; needs a ``selection_metric``.
        options: how.
        folder: where everything is written. A finished run of another identity in it stays usable until this one is
            finished and takes its place; it is then moved below ``replaced/``.
        store: whose lock keeps a second training of the folder waiting; it then finds it finished.
        device: where the model is.
        listener: hears of messages, steps and epochs.
        open_logs: opens further listeners for the run's place and the number of steps done; rank 0 alone calls it.

    Raises:
        ValueError: the state is damaged; the task refuses to begin; no epoch was evaluated.
        NonFiniteLossError: loss or gradients became NaN or infinite; names epoch, step and items.
        RuntimeError: one item alone does not fit into the GPU's memory.
    """
    writes = process_rank() == 0
    with store.lock(f"training_{folder.lock_name}") if writes else nullcontext():
        began = time.monotonic()
        identity = task.identity()
        if writes and (message := promote_pending_run(folder)):
            listener.on_message(message)
        values = from_rank_0(finished_outcome(folder, identity) if writes else None)
        if values is not None:
            listener.on_message(f"{folder.path}: this training is finished; nothing to do")
            return RunOutcome(folder.best_weights, values, was_finished=True)
        task.check()
        place = _open_place(task, folder, identity, listener)
        files = _RunFiles(place, task)
        loop = TrainingLoop.open(
            task, options, states=files, weights=files, device=device, listener=listener, began=began
        )
        opened: AbstractContextManager[Sequence[TrainingListener]] = nullcontext(())
        if writes and open_logs is not None:
            opened = open_logs(place, loop.state.position.step)
        with opened as logs:
            loop.run(logs)
            values = _finish(loop, task, place, identity)
        # The logs' files are closed: the run can move.
        if writes and (message := promote_pending_run(folder)):
            listener.on_message(message)
        gathered(None)
    return RunOutcome(folder.best_weights, values, was_finished=False)


def _open_place(
    task: RunTask[Item], folder: RunFolder, identity: Mapping[str, Any], listener: TrainingListener
) -> RunFolder:
    """The place where the run is trained, with its configuration; the same in every process."""
    place = folder
    if process_rank() == 0:
        place, message = open_run_folder(folder, identity)
        write_configuration(place, task.configuration())
        if message:
            listener.on_message(message)
    # No process looks for a state before the place is this run's.
    return from_rank_0(place)


def _finish(
    loop: TrainingLoop[Item], task: RunTask[Item], folder: RunFolder, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Report on the best weights and mark the run as finished, last of all; returns ``finished_outcome``."""
    best, position = loop.best_row, loop.state.position
    if best is None:
        raise ValueError(
            f"{folder.path}: no epoch was evaluated; expected evaluate_every {loop.options.evaluate_every} to be at "
            "most the number of epochs"
        )
    loop.state.evaluated.load_state_dict(read_weights_file(folder.best_weights).tensors)
    with loop.state.in_evaluation_mode() as model:
        reported = task.report(model, folder, best, position.rows)
    values = {
        "best_epoch": best["epoch"],
        **reported,
        "n_epochs": position.epoch,
        "n_steps": position.step,
        "stopped_early": position.epoch < loop.options.epochs,
        "duration_s": round(loop.elapsed_s, 3),
    }
    if process_rank() == 0:
        finish_run(folder, identity, values)
    return values


@dataclass(frozen=True, slots=True)
class _RunFiles:
    """A run folder's state, metrics and weights."""

    folder: RunFolder
    task: RunTask[Any]

    def read(self) -> dict[str, Any] | None:
        return read_state(self.folder)

    def restore(self, state: TrainingState, saved: Mapping[str, Any]) -> None:
        restore_training_state(state, saved)

    def save(self, state: TrainingState) -> None:
        values = training_state(state, self.task.configuration())
        if process_rank() == 0:
            write_state(self.folder, values)
            write_metrics(self.folder, state.position.rows)

    def save_best(self, model: nn.Module, row: Mapping[str, Any]) -> None:
        self._save_weights(self.folder.best_weights, model, row)

    def save_epoch(self, model: nn.Module, row: Mapping[str, Any]) -> None:
        self._save_weights(self.folder.epoch_weights(int(row["epoch"])), model, row)

    def _save_weights(self, path: Path, model: nn.Module, row: Mapping[str, Any]) -> None:
        if process_rank() == 0:
            lineage = self.task.lineage(row, created_at=run_created_at(self.folder))
            save_weights(path, model.state_dict(), lineage)
