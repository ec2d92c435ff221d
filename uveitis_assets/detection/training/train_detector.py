"""Trains a lesion detector: one readable loop from labelled tiles to the checkpoint with the best AP.

A killed training goes on where its last state was written and ends with the same weights. The parts are in rooms of
their own: which images (``training_data``), one optimizer step (``training_step``), what makes two trainings the same
(``training_identity``), files (``run_folder``), judgement (``validation``), several processes (``distributed``). It
draws no figures and knows no Dagster.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from uveitis_assets.detection.checkpoints.lineage import weights_lineage
from uveitis_assets.detection.configuration import DetectorConfiguration
from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.data.tile_seeds import TileSeeds
from uveitis_assets.detection.data.tile_store import tile_pixels
from uveitis_assets.detection.data.training_data import EpochBatches, check_never_learned, chosen_splits, images_shown
from uveitis_assets.detection.evaluation.evaluate import Evaluation
from uveitis_assets.detection.evaluation.report import validation_report
from uveitis_assets.detection.models.detector import build_detector
from uveitis_assets.detection.models.freezing import freeze_blocks, n_frozen_blocks, parameter_groups
from uveitis_assets.detection.training.identity import training_identity
from uveitis_assets.detection.training.initial_weights import (
    images_learned_before,
    load_initial_weights,
    parent_weights,
)
from uveitis_assets.detection.training.run import TrainingRun
from uveitis_assets.detection.training.step import take_step
from uveitis_assets.detection.training.validation import validate
from uveitis_assets.storage.files import write_bytes, write_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.configuration import TrainingConfiguration
from uveitis_assets.training.curves import training_curves
from uveitis_assets.training.distributed import copy_from_rank_0, from_rank_0, gathered, process_rank
from uveitis_assets.training.ema import ema_copy
from uveitis_assets.training.logs import training_logs
from uveitis_assets.training.progress import CompositeListener, NullListener, TrainingListener
from uveitis_assets.training.random_state import seed_generators
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
from uveitis_assets.training.run_replacement import complete_succession, open_run_folder
from uveitis_assets.training.state import TrainerPosition, TrainingState, restore_training_state, training_state
from uveitis_assets.training.weights_files import read_weights_file, save_weights


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """What a finished training is, also when it had been finished before.

    ``best_weights`` are the averaged weights of ``best_epoch`` (from 1); ``map_selection`` is its AP at the selection
    IoU. ``duration_s`` adds up the lives of a training that was killed and continued, up to each one's last state.
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
        store: where initial weights lie.
        configuration: model, data, optimization, evaluation.
        run_folder: where everything is written. A finished run of another identity in it stays usable until this one
            is finished and takes its place; it is then moved below ``replaced/``.
        train: images to learn from.
        val: images that choose the best checkpoint; not read with ``overfit_images``.
        device: ``cpu``, ``cuda`` or ``cuda:<n>``.
        progress: listener; None tells nobody.

    Raises:
        ValueError: no lesions to learn from or to be judged on; the first weights learned images that are to judge
            them; the configuration does not fit the network.
        NonFiniteLossError: the loss became NaN or infinite; names step and tiles.
        RuntimeError: one tile alone does not fit into the GPU's memory.
    """
    # A second training of the same folder waits, and then finds it finished.
    folder = RunFolder(run_folder)
    with store.lock(f"training_{folder.lock_name}") if process_rank() == 0 else nullcontext():
        return _train_or_recognise(
            store,
            configuration,
            folder,
            train,
            val,
            device=device,
            listener=progress or NullListener(),
        )


def _train_or_recognise(
    store: ArtefactStore,
    configuration: DetectorConfiguration,
    folder: RunFolder,
    train: LabelledSplit,
    val: LabelledSplit,
    *,
    device: str,
    listener: TrainingListener,
) -> TrainingOutcome:
    began = time.monotonic()
    train, val = chosen_splits(configuration, train, val)
    parent = parent_weights(store, configuration.initialise)
    identity = training_identity(configuration, train, val, parent)
    writes = process_rank() == 0
    if writes and (message := complete_succession(folder)):
        listener.on_message(message)
    outcome = from_rank_0(finished_outcome(folder, identity) if writes else None)
    if outcome is not None:
        listener.on_message(f"{folder.path}: this training is finished; nothing to do")
        return _outcome(folder, outcome, was_finished=True)
    learned_before = images_learned_before(store, configuration.initialise)
    if not configuration.overfit_images:
        check_never_learned(learned_before, val)
    place = folder
    if writes:
        place, message = open_run_folder(folder, identity)
        write_configuration(place, configuration.model_dump(mode="json"))
        if message:
            listener.on_message(message)
    place = from_rank_0(place)  # Nobody looks for a state before the place is this run's.
    pixels = tile_pixels(store, images_shown(configuration, train, val), limit_gb=configuration.training.tile_cache_gb)
    state = read_state(place)
    learner = _new_state(store, configuration, torch.device(device), listener, from_start=state is None)
    if state is not None:
        restore_training_state(learner, state)
        position = learner.position
        listener.on_message(f"continuing after {position.step} steps, in epoch {position.epoch + 1}")
    run = TrainingRun(
        folder=place,
        identity=identity,
        parent=parent,
        learned_before=learned_before,
        configuration=configuration,
        train=train,
        val=val,
        batches=EpochBatches(configuration, train, torch.device(device), pixels),
        pixels=pixels,
        learner=learner,
        tile_seeds=TileSeeds(learner.model),
        device=torch.device(device),
        listener=listener,
        began=began - learner.position.elapsed_s,
    )
    step = learner.position.step
    opened: AbstractContextManager[list[TrainingListener]] = nullcontext([])
    if writes:
        opened = training_logs(
            place,
            configuration.training,
            run_id=identity["configuration"],
            step=step,
            configuration=configuration.model_dump(mode="json"),
        )
    with opened as logs:
        run = replace(run, listener=CompositeListener([listener, *logs]))
        _train(run)
        outcome = _finish(run)
    # The logs' files are closed: the run can move.
    if writes and (message := complete_succession(folder)):
        listener.on_message(message)
    gathered(None)
    return _outcome(folder, outcome, was_finished=False)


def _new_state(
    store: ArtefactStore,
    configuration: DetectorConfiguration,
    device: torch.device,
    listener: TrainingListener,
    *,
    from_start: bool,
) -> TrainingState:
    options = configuration.training
    seed_generators(options.seed)
    model = build_detector(configuration.model)
    if from_start:
        report = load_initial_weights(model, store, configuration.initialise)
        listener.on_message("starting from random weights" if report is None else report.summary())
    model.to(device).train()
    copy_from_rank_0(model)
    optimizer = torch.optim.AdamW(parameter_groups(model, options))
    # Processes begin with equal weights and go on with random numbers of their own.
    seed_generators(options.seed + 1_000_003 * process_rank())
    return TrainingState(model, ema_copy(model), optimizer, TrainerPosition(micro_batch=options.batch_size))


def _train(run: TrainingRun) -> None:
    position = run.learner.position
    run.listener.on_train_start(n_epochs=run.options.epochs, n_steps=run.n_steps, step=position.step)
    saved = time.monotonic()
    while position.epoch < run.options.epochs and not _stops_early(position, run.options):
        freeze_blocks(run.learner.model, n_frozen_blocks(run.options, position.epoch))
        with run.batches.of_epoch(position.epoch, skip=position.batch) as batches:
            for images, targets in batches:
                take_step(run, images, targets)
                if _state_is_due(run, saved):
                    _save(run)
                    saved = time.monotonic()
        _end_epoch(run)
        saved = time.monotonic()


def _state_is_due(run: TrainingRun, saved: float) -> bool:
    """Whether it is time to write a state within an epoch; all processes agree."""
    options = run.options
    every = options.checkpoint_every_steps
    late = from_rank_0(time.monotonic() - saved >= 60 * options.checkpoint_every_minutes)
    return late or (every > 0 and run.learner.position.step % every == 0)


def _end_epoch(run: TrainingRun) -> None:
    """Judge the averaged weights, add the epoch's row, and write weights, state and metrics."""
    learner, options = run.learner, run.options
    position = learner.position
    epoch = position.epoch + 1
    losses = {name: total / position.batch for name, total in sorted(position.loss_sums.items())}
    judged: dict[str, float | None] = dict.fromkeys(("map_50", "map_30", "map_50_95", "map_selection"))
    if epoch % options.evaluate_every == 0 or epoch == options.epochs:
        evaluation = _judge(run, intervals=False)
        judged = {name: getattr(evaluation, name) for name in judged}
    best = position.best_row
    row = {
        "epoch": epoch,
        "train_loss": sum(losses.values()),
        # The earlier key; it holds the AP by which the best checkpoint is chosen, no proxy.
        "val_mAP_proxy": judged["map_selection"],
        "elapsed_sec": round(run.elapsed_s, 3),
        "lr": learner.optimizer.param_groups[0]["lr"] / learner.optimizer.param_groups[0]["lr_scale"],
        "step": position.step,
        "n_frozen_blocks": n_frozen_blocks(options, position.epoch),
        **judged,
        **losses,
    }
    position.rows.append(row)
    position.epoch, position.batch, position.loss_sums = epoch, 0, {}
    kept = options.save_every_epochs and epoch % options.save_every_epochs == 0
    if process_rank() == 0:
        if judged["map_selection"] is not None and (best is None or judged["map_selection"] > best["map_selection"]):
            _save_weights(run, run.folder.best_weights, row)
        if kept:
            _save_weights(run, run.folder.epoch_weights(epoch), row)
    _save(run)
    run.listener.on_epoch_end(row)


def _judge(run: TrainingRun, *, intervals: bool) -> Evaluation:
    return validate(
        run.learner.average,
        run.val,
        run.configuration,
        pixels=run.pixels,
        device=run.device,
        amp=run.amp,
        intervals=intervals,
    )


def _stops_early(position: TrainerPosition, options: TrainingConfiguration) -> bool:
    best = position.best_row
    return options.patience > 0 and best is not None and position.epoch - int(best["epoch"]) >= options.patience


def _save(run: TrainingRun) -> None:
    """Write the state to continue from, then the metrics it knows of."""
    run.learner.position.elapsed_s = run.elapsed_s
    state = training_state(run.learner, run.configuration.model_dump(mode="json"))
    if process_rank() == 0:
        write_state(run.folder, state)
        write_metrics(run.folder, run.learner.position.rows)


def _save_weights(run: TrainingRun, path: Path, row: Mapping[str, Any]) -> None:
    lineage = weights_lineage(
        run.configuration,
        categories=run.train.categories,
        data_fingerprint=run.train.fingerprint,
        metrics=row,
        parent=run.parent,
        learned_images={*run.learned_before, *(image.image_id for image in run.train.images)},
        created_at=run_created_at(run.folder),
    )
    save_weights(path, run.learner.average.state_dict(), lineage)


def _finish(run: TrainingRun) -> dict[str, Any]:
    """Judge the best weights once more, with intervals, and write the report; the last file says finished.

    Returns:
        What ``finished_outcome`` reads later.
    """
    position = run.learner.position
    best = position.best_row
    if best is None:
        raise ValueError(
            f"{run.folder.path}: no epoch was evaluated; expected training.evaluate_every "
            f"{run.options.evaluate_every} to be at most the number of epochs"
        )
    run.learner.average.load_state_dict(read_weights_file(run.folder.best_weights).tensors)
    evaluation = _judge(run, intervals=True)
    outcome = {
        "best_epoch": best["epoch"],
        "map_selection": evaluation.map_selection,
        "map_50": evaluation.map_50,
        "map_30": evaluation.map_30,
        "n_epochs": position.epoch,
        "n_steps": position.step,
        "stopped_early": position.epoch < run.options.epochs,
        "duration_s": round(run.elapsed_s, 3),
    }
    if process_rank() == 0:
        write_json(
            run.folder.report_file,
            validation_report(evaluation, best_epoch=best["epoch"], fingerprint=run.val.fingerprint),
        )
        write_bytes(run.folder.curves_file, training_curves(position.rows))
        finish_run(run.folder, run.identity, outcome)
    return outcome


def _outcome(folder: RunFolder, values: Mapping[str, Any], *, was_finished: bool) -> TrainingOutcome:
    return TrainingOutcome(best_weights=folder.best_weights, was_finished=was_finished, **values)
