"""Trains one fold of a detector lane, and inspects the checkpoint.

The inputs are labels and first weights, the output is a checkpoint. With several processes the training runs in
processes of its own, one per GPU; this one waits and passes their events on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uveitis_assets.detection.checkpoints.fold_weights import fold_weights, learned_tiles, weights_problem
from uveitis_assets.detection.data.coco_reader import read_labelled_split
from uveitis_assets.detection.data.label_policy import with_classes
from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.data.sampling import overfit_split
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration
from uveitis_assets.detection.training.initial_weights import parent_weights
from uveitis_assets.detection.training.train_detector import train_detector
from uveitis_assets.detection.training.train_process import train_in_processes
from uveitis_assets.imaging.figures import png_as_jpeg
from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.storage.files import read_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.device import Device, chosen_device
from uveitis_assets.training.run_folder import RunFolder, is_unfinished
from uveitis_assets.training.run_replacement import current_run
from uveitis_assets.training.weights_files import read_lineage, read_weights_file


@dataclass(frozen=True, slots=True)
class TrainedFold:
    """A finished training; ``numbers`` are its counts and figures with units in their names.

    ``tiles`` says in words how the learned tiles are cut and scaled; None for one that an earlier version finished.
    """

    best_weights: Path
    numbers: dict[str, float]
    initialised_from: str
    device: str
    curves_jpeg: bytes
    tiles: str | None


@dataclass(frozen=True, slots=True)
class CheckpointFindings:
    """What is wrong with a fold's checkpoint."""

    errors: list[str]
    warnings: list[str]


def labelled_split(store: ArtefactStore, lane: DetectorLaneConfiguration, fold: int, split: str) -> LabelledSplit:
    """The labels of one fold and split as the detector sees them: only the lesions of its classes."""
    categories = load_class_map().select(lane.classes)
    pseudo = lane.learn_pseudo_labels_of if split == "train" else None
    labels = read_labelled_split(
        store, lane.train_on, fold=fold, split=split, pseudo_labels_of=pseudo, global_tile=lane.global_tile
    )
    return with_classes(labels, categories)


def train_fold(
    store: ArtefactStore,
    lane: DetectorLaneConfiguration,
    fold: int,
    *,
    device: Device,
    processes: int,
    log: Callable[[str], None],
) -> TrainedFold:
    """Train a fold, continue a killed training, or recognise a finished one.

    Args:
        store: labels and tiles in, ``runs/`` out.
        lane: the detector's configuration.
        fold: fold of the learned lane.
        device: where to train.
        processes: processes that train together; more than one on CUDA takes as many GPUs.
        log: takes lines about the progress.

    Raises:
        FileNotFoundError: labels, or the checkpoint to start from, are not there; names what to materialize.
        ValueError: nothing to learn from; the initial weights do not fit.
    """
    configured = _with_named_files(store, lane, fold)
    parent = parent_weights(store, configured.initialise)
    folder = store.run_folder(lane.name, fold)
    device_name = chosen_device(device)
    splits = [labelled_split(store, lane, fold, split) for split in ("train", "val")]
    progress = _LogProgress(log)
    if processes == 1:
        outcome = train_detector(store, configured, folder, *splits, device=device_name, progress=progress)
    else:
        outcome = train_in_processes(
            store, configured, folder, *splits, device=device_name, n_processes=processes, progress=progress
        )
    numbers = {
        "map_50": outcome.map_50,
        "map_30": outcome.map_30,
        "map_selection": outcome.map_selection,
        "best_epoch": outcome.best_epoch,
        "n_epochs": outcome.n_epochs,
        "n_steps": outcome.n_steps,
        "training_duration_s": outcome.duration_s,
    }
    curves = png_as_jpeg(RunFolder(folder).curves_file.read_bytes())
    tiles = learned_tiles(read_lineage(outcome.best_weights))
    return TrainedFold(
        best_weights=outcome.best_weights,
        numbers=numbers,
        initialised_from=_origin(parent),
        device=device_name,
        curves_jpeg=curves,
        tiles=None if tiles is None else str(tiles),
    )


def _with_named_files(store: ArtefactStore, lane: DetectorLaneConfiguration, fold: int) -> DetectorLaneConfiguration:
    """The configuration with a parent lane's checkpoint, or an encoder's weights, named as files."""
    first = lane.initialise
    changes: dict[str, str | None] = {}
    if first.experiment is not None:
        parent = fold_weights(store, first.experiment, fold)
        changes = {"experiment": None, "checkpoint": store.name_of(parent.path)}
    elif first.encoder is not None:
        path = store.pretraining_folder(first.encoder) / "encoder.safetensors"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: {lane.name} starts from it, found none; materialize {first.encoder}/encoder first"
            )
        changes = {"encoder": None, "backbone_weights": store.name_of(path)}
    return lane.model_copy(update={"initialise": first.model_copy(update=changes)})


def inspect_checkpoint(store: ArtefactStore, lane: DetectorLaneConfiguration, fold: int) -> CheckpointFindings:
    """Compare a fold's best weights with their lineage and with the current labels."""
    folder = current_run(RunFolder(store.run_folder(lane.name, fold)))
    path = folder.best_weights
    try:
        file = read_weights_file(path)
    except (FileNotFoundError, ValueError) as error:
        return CheckpointFindings([str(error)], [])
    errors = []
    if is_unfinished(folder):
        errors.append(f"{folder.path}: the training is not finished; materialize the checkpoint again to go on with it")
    elif problem := weights_problem(folder, f"{lane.name}/checkpoint of fold{fold}"):
        errors.append(problem)
    errors += [
        f"{name}: found NaN or infinity; train again with a lower learning rate"
        for name, value in file.tensors.items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    errors += _lineage_errors(path, file.details)
    warnings = []
    try:
        current = _learned_split(store, lane, fold).fingerprint
    except (FileNotFoundError, ValueError) as error:
        warnings.append(f"the labels cannot be read: {error}")
    else:
        if file.details.get("data_fingerprint") != current:
            warnings.append("the labels are not those of the training; materialize the checkpoint again to learn them")
    return CheckpointFindings(errors, warnings)


def _lineage_errors(path: Path, lineage: Mapping[str, Any]) -> list[str]:
    beside = path.with_suffix(".json")
    try:
        if read_json(beside) == lineage:
            return []
    except FileNotFoundError:
        return [f"{beside}: the lineage beside the weights is gone"]
    except ValueError as error:
        return [str(error)]
    return [
        f"{beside}: expected the lineage inside the weights file, found another; one of the two files is of another run"
    ]


def _learned_split(store: ArtefactStore, lane: DetectorLaneConfiguration, fold: int) -> LabelledSplit:
    """The images that a training would learn with the current labels."""
    train = labelled_split(store, lane, fold, "train")
    return overfit_split(train, lane.overfit_images) if lane.overfit_images else train


def _origin(parent: Mapping[str, str] | None) -> str:
    return "random weights" if parent is None else f"{parent['file']} ({parent['digest']})"


class _LogProgress:
    """Passes a training's epochs and messages on as lines."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._n_epochs = 0

    def on_train_start(self, *, n_epochs: int, n_steps: int, step: int) -> None:
        """The training begins or goes on."""
        self._n_epochs = n_epochs
        self._log(f"{n_epochs} epochs, {n_steps} steps, beginning after step {step}")

    def on_step_end(self, *, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """Steps are too many for a run's log; TensorBoard has them."""

    def on_epoch_end(self, row: Mapping[str, Any]) -> None:
        """One line per epoch."""
        metric = "" if row.get("map_50") is None else f", AP at IoU 0.5 {row['map_50']:.3f}"
        self._log(f"epoch {row['epoch']} of {self._n_epochs}: loss {row['train_loss']:.4f}{metric}")

    def on_message(self, message: str) -> None:
        """Something a person should know."""
        self._log(message)
