"""The folder of one training: names, content and state of its files.

The names are defined in this module only.

``config.yaml``, ``metrics.jsonl``, ``checkpoints/`` and ``val_report.json`` are those of the earlier scripts;
``run.json`` holds the run's identity and its outcome once it is finished. ``run_replacement`` puts a new run in the
place of a finished one.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from uveitis_assets.storage.digests import short_digest
from uveitis_assets.storage.files import read_json, write_bytes, write_json
from uveitis_assets.training.weights_files import file_digest, load_without_code, read_lineage

# run.json comes last: without it a folder is of no training, and its weights count as put there by hand.
OWN_FILES = (
    "config.yaml",
    "metrics.jsonl",
    "val_report.json",
    "test_report.json",
    "figures",
    "curves.png",
    "tb",
    "wandb",
    "checkpoints",
    "run.json",
)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Places of a run's files below ``path``."""

    path: Path

    @property
    def lock_name(self) -> str:
        """Name of the folder's locks, the same whatever path leads to it."""
        return short_digest(str(self.path.resolve()))

    @property
    def pending(self) -> RunFolder:
        """Where a training goes on that will replace the finished run of this folder."""
        return RunFolder(self.path / "retraining")

    @property
    def replaced_folder(self) -> Path:
        """Replaced runs, each in a folder of its own."""
        return self.path / "replaced"

    @property
    def run_file(self) -> Path:
        """The run's identity, and its outcome once it is finished."""
        return self.path / "run.json"

    @property
    def configuration_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def report_file(self) -> Path:
        return self.path / "val_report.json"

    @property
    def test_report_file(self) -> Path:
        return self.path / "test_report.json"

    @property
    def figures_folder(self) -> Path:
        return self.path / "figures"

    @property
    def curves_file(self) -> Path:
        return self.path / "curves.png"

    @property
    def tensorboard_folder(self) -> Path:
        return self.path / "tb"

    @property
    def last_state(self) -> Path:
        """Everything that a killed training continues from.

        The root keys are those of earlier files: epoch, model, config, metrics, optimizer.
        """
        return self.path / "checkpoints" / "last.pth"

    @property
    def best_weights(self) -> Path:
        return self.path / "checkpoints" / "best.safetensors"

    def epoch_weights(self, epoch: int) -> Path:
        return self.path / "checkpoints" / f"epoch_{epoch:03d}.safetensors"


def folder_of_best_weights(path: Path) -> RunFolder:
    """The run folder whose ``best_weights`` is a path."""
    return RunFolder(path.parent.parent)


def finished_outcome(folder: RunFolder, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The outcome of a finished run of this identity, or None.

    None also where its best weights are missing, damaged or not those that the run ended with.
    """
    if run_identity(folder) != identity or not has_best_weights(folder):
        return None
    outcome: dict[str, Any] | None = read_json(folder.run_file)["outcome"]
    return outcome


def is_unfinished(folder: RunFolder) -> bool:
    """Whether the folder's training goes on or was stopped; False where no training wrote the folder."""
    return folder.run_file.exists() and not is_finished(folder)


def is_finished(folder: RunFolder) -> bool:
    """Whether the folder's training came to its end; False where no training wrote the folder."""
    try:
        return read_json(folder.run_file)["outcome"] is not None
    except FileNotFoundError:
        return False


def begin_run(folder: RunFolder, identity: Mapping[str, Any]) -> None:
    """Make the folder that of an unfinished run; the first thing a training writes."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder.run_file, {"identity": dict(identity), "created_at": now, "outcome": None})


def finish_run(folder: RunFolder, identity: Mapping[str, Any], outcome: Mapping[str, Any]) -> None:
    """Mark the run as finished, with these best weights; the last thing a training writes."""
    content = {
        "identity": dict(identity),
        "created_at": run_created_at(folder),
        "outcome": dict(outcome),
        "best_weights": file_digest(folder.best_weights),
    }
    write_json(folder.run_file, content)


def write_configuration(folder: RunFolder, configuration: Mapping[str, Any]) -> None:
    """Write config.yaml: plain values, in the order of the configuration's fields."""
    text = yaml.safe_dump(dict(configuration), sort_keys=False, allow_unicode=True)
    write_bytes(folder.configuration_file, text.encode())


def write_metrics(folder: RunFolder, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write metrics.jsonl as a whole: one line per epoch of the state."""
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    write_bytes(folder.metrics_file, lines.encode())


def write_state(folder: RunFolder, state: Mapping[str, Any]) -> None:
    """Write checkpoints/last.pth: tensors and plain values only."""
    write_state_file(folder.last_state, state)


def read_state(folder: RunFolder) -> dict[str, Any] | None:
    """The state of ``write_state`` with its tensors on the CPU, or None when there is none.

    See ``read_state_file``.
    """
    return read_state_file(folder.last_state, device="cpu")


def write_state_file(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values that a killed training goes on from."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_bytes(path, buffer.getbuffer())


def read_state_file(path: Path, *, device: str) -> dict[str, Any] | None:
    """Tensors and plain values that a killed training goes on from, or None when there is no file.

    Raises:
        ValueError: the file is damaged, or holds code.
    """
    try:
        state: dict[str, Any] = load_without_code(path, device=device)
    except FileNotFoundError:
        return None
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: expected the state of a training to go on from, found a damaged file ({reason}); "
            "copy it again, or delete it: the training then begins anew"
        ) from error
    return state


def run_created_at(folder: RunFolder) -> str:
    """When the run began, ISO 8601 in UTC; the same in a continued run."""
    return str(read_json(folder.run_file)["created_at"])


def has_best_weights(folder: RunFolder) -> bool:
    """Whether the best weights are there, not cut short, and those that the run ended with."""
    try:
        read_lineage(folder.best_weights)
    except (FileNotFoundError, ValueError):
        return False
    return ended_with(folder, folder.best_weights)


def ended_with(run: RunFolder, weights: Path) -> bool:
    """Whether a file is the best weights that a run ended with.

    True where run.json has no digest: weights put there by hand, unfinished runs, and those from before it had one.
    """
    try:
        expected = read_json(run.run_file).get("best_weights")
    except FileNotFoundError:
        return True
    return expected is None or (weights.is_file() and file_digest(weights) == expected)


def run_identity(folder: RunFolder) -> dict[str, Any] | None:
    """The identity of the folder's run; None where no training wrote the folder."""
    try:
        identity: dict[str, Any] = read_json(folder.run_file)["identity"]
    except FileNotFoundError:
        return None
    return identity
