r"""Training in processes of its own: starts them (torchrun), passes on what rank 0 tells, and is what they run.

    python -m torch.distributed.run --standalone --nproc-per-node 4 -m -- \
        uveitis_assets.detection.training.train_process --run RUN

``RUN`` is a run folder with the file job.json, which ``train_in_processes`` writes: everything that ``train_detector``
wants. Started without torchrun it is one process. How they train together is the business of ``training``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from uveitis_assets.detection.configuration import DetectorConfiguration
from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.data.split_file import split_from_plain, split_to_plain
from uveitis_assets.storage.files import read_json, write_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.processes import _KEPT_LINES, _EventWriter, _pass_on, _what_failed, _write_event
from uveitis_assets.training.progress import NullListener, TrainingListener

if TYPE_CHECKING:
    from uveitis_assets.detection.training.train_detector import TrainingOutcome


def train_in_processes(
    store: ArtefactStore,
    configuration: DetectorConfiguration,
    run_folder: Path,
    train: LabelledSplit,
    val: LabelledSplit,
    *,
    device: str,
    n_processes: int,
    progress: TrainingListener | None = None,
) -> TrainingOutcome:
    """``train_detector`` in ``n_processes`` processes that train together; returns its outcome.

    On ``cuda`` every process takes a GPU of its own, on ``cpu`` they share the cores. When one fails all end.

    Raises:
        RuntimeError: a process failed; with its error, or the last lines it wrote when it was killed.
    """
    from uveitis_assets.detection.training.train_detector import TrainingOutcome
    from uveitis_assets.training.run_folder import RunFolder

    # The folder has one job.json: a second call waits until the processes of the first have read theirs and ended.
    with store.lock(f"processes_{RunFolder(run_folder).lock_name}"):
        errors = run_folder / "process_errors"
        shutil.rmtree(errors, ignore_errors=True)
        job = {
            "root": str(store.root),
            "raw": str(store.raw),
            "device": device,
            # Lanes hold more than a detector's configuration; processes get what training looks at.
            "configuration": configuration.model_dump(mode="json", include=set(DetectorConfiguration.model_fields)),
            "train": split_to_plain(train),
            "val": split_to_plain(val),
        }
        write_json(run_folder / "job.json", job, indent=None)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)]
        # Two dashes: torchrun would take --run for an abbreviation of an option of its own.
        command += ["-m", "--", "uveitis_assets.detection.training.train_process", "--run", str(run_folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        assert process.stdout is not None
        assert process.stderr is not None
        reader = Thread(target=last_lines.extend, args=(process.stderr,), daemon=True)
        reader.start()
        try:
            values = _pass_on(process.stdout, progress or NullListener())
            process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
            reader.join()
        if process.returncode != 0 or values is None:
            raise RuntimeError(_what_failed(errors, n_processes, process.returncode, last_lines))
        return TrainingOutcome(**{**values, "best_weights": Path(values["best_weights"])})


def main(arguments: list[str] | None = None) -> None:
    """Train what a run folder's job.json says, as one of the processes that torchrun started, or alone."""
    parser = argparse.ArgumentParser(description="Train a lesion detector from the job.json of its run folder.")
    parser.add_argument("--run", type=Path, required=True, help="run folder that holds job.json")
    run_folder: Path = parser.parse_args(arguments).run
    rank = int(os.environ.get("RANK", "0"))
    try:
        _train(run_folder, rank)
    except Exception as error:
        failure = {"rank": rank, "type": type(error).__name__, "message": str(error), "time": time.time()}
        write_json(run_folder / "process_errors" / f"rank_{rank}.json", failure)
        raise


def _train(run_folder: Path, rank: int) -> None:
    import torch
    from torch import distributed

    from uveitis_assets.detection.training.train_detector import train_detector

    job = read_json(run_folder / "job.json")
    device = job["device"]
    grouped = "WORLD_SIZE" in os.environ
    if grouped and device == "cuda":
        local_rank = int(os.environ["LOCAL_RANK"])
        if local_rank >= torch.cuda.device_count():
            raise RuntimeError(
                f"expected a GPU for each process, found {torch.cuda.device_count()}; start fewer processes"
            )
        torch.cuda.set_device(local_rank)
        device = f"cuda:{local_rank}"
    if grouped:
        distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    outcome = train_detector(
        ArtefactStore(root=Path(job["root"]), raw=Path(job["raw"])),
        DetectorConfiguration.model_validate(job["configuration"]),
        run_folder,
        split_from_plain(job["train"]),
        split_from_plain(job["val"]),
        device=device,
        progress=_EventWriter() if rank == 0 else NullListener(),
    )
    if rank == 0:
        _write_event("outcome", {**asdict(outcome), "best_weights": str(outcome.best_weights)})
    if grouped:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
