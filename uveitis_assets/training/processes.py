"""Training in separate processes: starts torchrun, joins the process group, forwards rank 0's events.

``run_in_processes`` is for the process that waits, ``training_process`` for those that train: a module that torchrun
runs opens it around its training. A process that fails leaves its error in ``process_errors/`` of the run folder, so
that the one that waits can name the cause.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO, Any

from uveitis_assets.storage.files import read_json, write_json
from uveitis_assets.training.progress import NullListener, TrainingListener

EVENT_PREFIX = "uveitis-training-event "
_KEPT_LINES = 30
_ERRORS = "process_errors"


def run_in_processes(
    module: str, arguments: Sequence[str], run_folder: Path, *, n_processes: int, listener: TrainingListener
) -> dict[str, Any]:
    """Runs a module in ``n_processes`` processes that train together; returns rank 0's outcome.

    Args:
        module: the module's name; it uses ``training_process``.
        arguments: its command line.
        run_folder: where processes leave their errors.
        n_processes: how many.
        listener: hears rank 0's events.

    Raises:
        RuntimeError: a process failed; with its error, or the last lines it wrote when it was killed.
    """
    errors = run_folder / _ERRORS
    shutil.rmtree(errors, ignore_errors=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)]
    # Two dashes: torchrun would take the module's options for abbreviations of its own.
    command += ["-m", "--", module, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
    assert process.stdout is not None
    assert process.stderr is not None
    reader = Thread(target=last_lines.extend, args=(process.stderr,), daemon=True)
    reader.start()
    try:
        outcome = pass_events_on(process.stdout, listener)
        process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        reader.join()
    if process.returncode != 0 or outcome is None:
        raise RuntimeError(_cause(errors, n_processes, process.returncode, last_lines))
    return outcome


@dataclass(frozen=True, slots=True)
class TrainingProcess:
    """One process of a distributed training: its device, and the listener that forwards its events."""

    rank: int
    device: str
    listener: TrainingListener

    def tell_outcome(self, values: Mapping[str, Any]) -> None:
        """Hand plain values to the process that waits; rank 0's count."""
        if self.rank == 0:
            _write_event("outcome", values)


@contextmanager
def training_process(run_folder: Path, device: str) -> Iterator[TrainingProcess]:
    """Joins torchrun's process group, if any, and keeps an error for the process that waits.

    Args:
        run_folder: where the error is left.
        device: ``cpu``, or ``cuda``, which becomes the process's own GPU.

    Raises:
        RuntimeError: there are fewer GPUs than processes.
    """
    rank = int(os.environ.get("RANK", "0"))
    try:
        grouped = "WORLD_SIZE" in os.environ
        if grouped:
            device = _join_group(device)
        yield TrainingProcess(rank, device, EventWriter() if rank == 0 else NullListener())
        if grouped:
            from torch import distributed

            distributed.destroy_process_group()
    except Exception as error:
        failure = {"rank": rank, "type": type(error).__name__, "message": str(error), "time": time.time()}
        write_json(run_folder / _ERRORS / f"rank_{rank}.json", failure)
        raise


def _join_group(device: str) -> str:
    """Begin the process group; returns this process's device."""
    import torch
    from torch import distributed

    if device == "cuda":
        local_rank = int(os.environ["LOCAL_RANK"])
        if local_rank >= torch.cuda.device_count():
            raise RuntimeError(
                f"expected a GPU for each process, found {torch.cuda.device_count()}; start fewer processes"
            )
        torch.cuda.set_device(local_rank)
        device = f"cuda:{local_rank}"
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return device


class EventWriter:
    """Writes a training's events to stdout, as lines for ``pass_events_on``."""

    def on_train_start(self, *, n_epochs: int, n_steps: int, step: int) -> None:
        """See ``TrainingListener``."""
        _write_event("train_start", {"n_epochs": n_epochs, "n_steps": n_steps, "step": step})

    def on_step_end(self, *, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """See ``TrainingListener``."""
        _write_event("step_end", {"step": step, "losses": dict(losses), "learning_rate": learning_rate})

    def on_epoch_end(self, row: Mapping[str, Any]) -> None:
        """See ``TrainingListener``."""
        _write_event("epoch_end", row)

    def on_message(self, message: str) -> None:
        """See ``TrainingListener``."""
        _write_event("message", {"message": message})


def pass_events_on(lines: IO[str], listener: TrainingListener) -> dict[str, Any] | None:
    """Hand the events among some lines to a listener; returns the outcome, None when none came."""
    outcome = None
    for line in lines:
        if not line.startswith(EVENT_PREFIX):
            continue
        event = json.loads(line.removeprefix(EVENT_PREFIX))
        kind, values = event["kind"], event["values"]
        if kind == "train_start":
            listener.on_train_start(**values)
        elif kind == "step_end":
            listener.on_step_end(**values)
        elif kind == "epoch_end":
            listener.on_epoch_end(values)
        elif kind == "message":
            listener.on_message(values["message"])
        else:
            outcome = values
    return outcome


def _write_event(kind: str, values: Mapping[str, Any]) -> None:
    print(EVENT_PREFIX + json.dumps({"kind": kind, "values": dict(values)}), flush=True)


def _cause(errors: Path, n_processes: int, code: int, last_lines: deque[str]) -> str:
    found = [read_json(path) for path in sorted(errors.glob("*.json"))]
    if not found:
        return f"training ended with code {code} and without an error of its own; last lines:\n{''.join(last_lines)}"
    # When one process fails the others lose their connections and fail too: the first error is the cause.
    first = min(found, key=lambda error: float(error["time"]))
    return f"process {first['rank']} of {n_processes} failed: {first['type']}: {first['message']}"
