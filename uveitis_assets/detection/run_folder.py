"""The folder of one training: names, content and state of its files. The only module that knows them.

``config.yaml``, ``metrics.jsonl``, ``checkpoints/`` and ``val_report.json`` are those of the earlier scripts;
``run.json`` says what the folder is of and whether it is finished. A folder of another configuration or other labels is
never continued: its files are moved below ``replaced/``, so that no metrics of two trainings mix.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from uveitis_assets.detection.weights_files import read_lineage
from uveitis_assets.storage import TEMPORARY_SUFFIX, read_json, write_bytes, write_json

_REPLACED = "replaced"
_OWN_FILES = (
    "config.yaml",
    "metrics.jsonl",
    "checkpoints",
    "val_report.json",
    "test_report.json",
    "figures",
    "curves.png",
    "tb",
    "wandb",
    "run.json",
)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Places of a run's files below ``path``."""

    path: Path

    @property
    def run_file(self) -> Path:
        """What the run is of (identity) and whether it is finished (outcome)."""
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
        """Everything a killed training goes on from; root keys epoch, model, config, metrics, optimizer as earlier."""
        return self.path / "checkpoints" / "last.pth"

    @property
    def best_weights(self) -> Path:
        return self.path / "checkpoints" / "best.safetensors"

    def epoch_weights(self, epoch: int) -> Path:
        return self.path / "checkpoints" / f"epoch_{epoch:03d}.safetensors"


def open_run_folder(folder: RunFolder, identity: Mapping[str, Any]) -> str | None:
    """Make the folder the one of ``identity``; what it held of another run is moved below ``replaced/``.

    So is a finished run whose best weights are gone or damaged: nothing in the folder can bring them back.

    Half-files of killed processes are removed: nobody else may be writing here.

    Returns:
        A message when files were moved, else None.
    """
    for half_file in sorted(folder.path.glob(f".*{TEMPORARY_SUFFIX}")):
        half_file.unlink()
    for half_file in sorted(folder.last_state.parent.glob(f".*{TEMPORARY_SUFFIX}")):
        half_file.unlink()
    found = _identity_of(folder)
    lost = found is not None and not is_unfinished(folder) and not _has_best_weights(folder)
    if found == identity and not lost:
        return None
    message = None
    held = [name for name in _OWN_FILES if (folder.path / name).exists()]
    if held:
        target = _unused(folder.path / _REPLACED)
        target.mkdir(parents=True)
        for name in held:
            (folder.path / name).rename(target / name)
        different = sorted(key for key in identity if found is None or found.get(key) != identity[key])
        what = f"with another {', '.join(different)}" if different else "that has lost its best weights"
        message = (
            f"{folder.path}: held a run {what}; it was moved to "
            f"{target.relative_to(folder.path)} and the training begins anew"
        )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder.run_file, {"identity": dict(identity), "created_at": now, "outcome": None})
    return message


def finished_outcome(folder: RunFolder, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The outcome of a finished run of this identity whose best weights are there and whole, else None."""
    if _identity_of(folder) != identity or not _has_best_weights(folder):
        return None
    outcome: dict[str, Any] | None = read_json(folder.run_file)["outcome"]
    return outcome


def is_unfinished(folder: RunFolder) -> bool:
    """Whether the folder is of a training that goes on or was stopped on the way; one put there by hand is not."""
    try:
        return read_json(folder.run_file)["outcome"] is None
    except FileNotFoundError:
        return False


def finish_run(folder: RunFolder, identity: Mapping[str, Any], outcome: Mapping[str, Any]) -> None:
    """Mark the run as finished; the last thing a training writes."""
    created_at = run_created_at(folder)
    write_json(folder.run_file, {"identity": dict(identity), "created_at": created_at, "outcome": dict(outcome)})


def write_configuration(folder: RunFolder, configuration: Mapping[str, Any]) -> None:
    """Write config.yaml: plain values, in the order of the configuration's fields."""
    text = yaml.safe_dump(dict(configuration), sort_keys=False, allow_unicode=True)
    write_bytes(folder.configuration_file, text.encode())


def write_metrics(folder: RunFolder, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write metrics.jsonl as a whole: one line per epoch, none of an epoch that was not kept."""
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    write_bytes(folder.metrics_file, lines.encode())


def write_state(folder: RunFolder, state: Mapping[str, Any]) -> None:
    """Write checkpoints/last.pth: tensors and plain values only."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_bytes(folder.last_state, buffer.getbuffer())


def read_state(folder: RunFolder) -> dict[str, Any] | None:
    """The state of ``write_state`` with its tensors on the CPU, or None when there is none."""
    try:
        state: dict[str, Any] = torch.load(folder.last_state, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    return state


def run_created_at(folder: RunFolder) -> str:
    """When the run began, ISO 8601 in UTC; a continued run keeps it."""
    return str(read_json(folder.run_file)["created_at"])


def _has_best_weights(folder: RunFolder) -> bool:
    """Whether the best weights are there and not cut short; their values are not read."""
    try:
        read_lineage(folder.best_weights)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _identity_of(folder: RunFolder) -> dict[str, Any] | None:
    try:
        identity: dict[str, Any] = read_json(folder.run_file)["identity"]
    except FileNotFoundError:
        return None
    return identity


def _unused(parent: Path) -> Path:
    number = 1
    while (parent / f"run_{number:03d}").exists():
        number += 1
    return parent / f"run_{number:03d}"
