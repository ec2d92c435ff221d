r"""Detector training in separate processes: writes the job, starts torchrun, and is the module it runs.

    python -m torch.distributed.run --standalone --nproc-per-node 4 -m -- \
        uveitis_assets.detection.training.train_process --run RUN

``RUN`` is a run folder with the file job.json, which ``train_in_processes`` writes: everything that ``train_detector``
wants. Started without torchrun it is one process.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uveitis_assets.detection.configuration import DetectorConfiguration
from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.data.split_file import split_from_plain, split_to_plain
from uveitis_assets.storage.files import read_json, write_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.processes import run_in_processes, training_process
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
        write_job(store, configuration, run_folder, train, val, device=device)
        values = run_in_processes(
            "uveitis_assets.detection.training.train_process",
            ["--run", str(run_folder)],
            run_folder,
            n_processes=n_processes,
            listener=progress or NullListener(),
        )
        return TrainingOutcome(**{**values, "best_weights": Path(values["best_weights"])})


def write_job(
    store: ArtefactStore,
    configuration: DetectorConfiguration,
    run_folder: Path,
    train: LabelledSplit,
    val: LabelledSplit,
    *,
    device: str,
) -> None:
    """Write the run folder's job.json, from which this module trains when it is run."""
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


def main(arguments: list[str] | None = None) -> None:
    """Train what a run folder's job.json says, as one of the processes that torchrun started, or alone."""
    parser = argparse.ArgumentParser(description="Train a lesion detector from the job.json of its run folder.")
    parser.add_argument("--run", type=Path, required=True, help="run folder that holds job.json")
    run_folder: Path = parser.parse_args(arguments).run
    job = read_json(run_folder / "job.json")
    with training_process(run_folder, job["device"]) as process:
        outcome = _train(run_folder, job, process.device, process.listener)
        process.tell_outcome({**asdict(outcome), "best_weights": str(outcome.best_weights)})


def _train(run_folder: Path, job: Mapping[str, Any], device: str, listener: TrainingListener) -> TrainingOutcome:
    from uveitis_assets.detection.training.train_detector import train_detector

    return train_detector(
        ArtefactStore(root=Path(job["root"]), raw=Path(job["raw"])),
        DetectorConfiguration.model_validate(job["configuration"]),
        run_folder,
        split_from_plain(job["train"]),
        split_from_plain(job["val"]),
        device=device,
        progress=listener,
    )


if __name__ == "__main__":
    main()
