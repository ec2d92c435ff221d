"""Trains a lesion detector in a run folder: from labelled tiles to the checkpoint with the best AP."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from uveitis_assets.detection.configuration import DetectorConfiguration
from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.training.detector_task import DetectorTask
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.logs import training_logs
from uveitis_assets.training.progress import NullListener, TrainingListener
from uveitis_assets.training.run import train_in_run_folder
from uveitis_assets.training.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """What a finished training is, also when it had been finished before.

    ``best_weights`` are the averaged weights of ``best_epoch`` (from 1); ``map_selection`` is its AP at the selection
    IoU. ``duration_s`` adds up the processes of a training that was killed and continued, up to each one's last state.
    """

    best_weights: Path
    best_epoch: int
    map_selection: float
    map_50: float
    map_30: float
    n_epochs: int
    n_steps: int
    stopped_early: bool
    duration_s: float
    was_finished: bool


def train_detector(
    store: ArtefactStore,
    configuration: DetectorConfiguration,
    run_folder: Path,
    train: LabelledSplit,
    val: LabelledSplit,
    *,
    device: str,
    progress: TrainingListener | None = None,
) -> TrainingOutcome:
    """Train a detector, continue one that was killed, or recognise one that is finished.

    Several processes of one torch process group train together when each calls this with the same arguments.

    Args:
        store: where initial weights are.
        configuration: model, data, optimization, evaluation.
        run_folder: where everything is written; see ``train_in_run_folder``.
        train: images to learn from.
        val: images that choose the best checkpoint; not read with ``overfit_images``.
        device: ``cpu``, ``cuda`` or ``cuda:<n>``.
        progress: listener; None for none.

    Raises:
        ValueError: no lesions to learn from or to evaluate on; the first weights learned images of ``val``; the
            configuration does not fit the network; the state is damaged.
        NonFiniteLossError: the loss became NaN or infinite; names step and tiles.
        RuntimeError: one tile alone does not fit into the GPU's memory.
    """
    task = DetectorTask(store, configuration, train, val, torch.device(device))
    options = configuration.training

    def open_logs(folder: RunFolder, step: int) -> AbstractContextManager[list[TrainingListener]]:
        run_id = task.identity()["configuration"]
        return training_logs(folder, options, run_id=run_id, step=step, configuration=task.configuration())

    outcome = train_in_run_folder(
        task,
        options.loop_options(),
        RunFolder(run_folder),
        store=store,
        device=torch.device(device),
        listener=progress or NullListener(),
        open_logs=open_logs,
    )
    return TrainingOutcome(best_weights=outcome.best_weights, was_finished=outcome.was_finished, **outcome.values)
