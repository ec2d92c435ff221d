"""Events and errors of a training that runs in processes of its own, as lines between them and the caller."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from uveitis_assets.storage.files import read_json
from uveitis_assets.training.progress import TrainingListener

if TYPE_CHECKING:
    pass


_EVENT = "uveitis-training-event "


_KEPT_LINES = 30


def _pass_on(lines: IO[str], progress: TrainingListener) -> dict[str, Any] | None:
    """Hand rank 0's events to the listener; returns the outcome, None when none came."""
    outcome = None
    for line in lines:
        if not line.startswith(_EVENT):
            continue
        event = json.loads(line.removeprefix(_EVENT))
        kind, values = event["kind"], event["values"]
        if kind == "started":
            progress.on_train_start(**values)
        elif kind == "stepped":
            progress.on_step_end(**values)
        elif kind == "epoch_ended":
            progress.on_epoch_end(values)
        elif kind == "said":
            progress.on_message(values["message"])
        else:
            outcome = values
    return outcome


def _what_failed(errors: Path, n_processes: int, code: int, last_lines: deque[str]) -> str:
    found = [read_json(path) for path in sorted(errors.glob("*.json"))]
    if not found:
        return f"training ended with code {code} and without an error of its own; last lines:\n{''.join(last_lines)}"
    # When one process fails the others lose their connections and fail too: the first error is the cause.
    first = min(found, key=lambda error: float(error["time"]))
    return f"process {first['rank']} of {n_processes} failed: {first['type']}: {first['message']}"


class _EventWriter:
    """Writes events as lines for ``_pass_on``."""

    def on_train_start(self, *, n_epochs: int, n_steps: int, step: int) -> None:
        """See ``TrainingListener``."""
        _write_event("started", {"n_epochs": n_epochs, "n_steps": n_steps, "step": step})

    def on_step_end(self, *, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """See ``TrainingListener``."""
        _write_event("stepped", {"step": step, "losses": dict(losses), "learning_rate": learning_rate})

    def on_epoch_end(self, row: Mapping[str, Any]) -> None:
        """See ``TrainingListener``."""
        _write_event("epoch_ended", dict(row))

    def on_message(self, message: str) -> None:
        """See ``TrainingListener``."""
        _write_event("said", {"message": message})


def _write_event(kind: str, values: Mapping[str, Any]) -> None:
    print(_EVENT + json.dumps({"kind": kind, "values": dict(values)}), flush=True)
