"""The tasks that the loop's contract tests train, all of three steps an epoch, with a state after every second step.

Run as a module it lets processes train each of them and kill themselves: ``python -m ... ROOT CASE,STEP,MOMENT ...``.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from uveitis_assets.training.progress import TrainingListener
from uveitis_assets_tests.training.listeners import Recorder
from uveitis_assets_tests.training.toy_regression import ToyRegression, train_toy


@dataclass(frozen=True)
class LoopCase:
    """A task; ``train(root, listener)`` trains it below a folder, in ``run``, where the state is ``state``."""

    train: Callable[..., object]
    run: str
    state: str
    weights: str
    item: str


def _train_toy(root: Path, listener: TrainingListener, *, seed: int = 1, **options: Any) -> object:
    return train_toy(ToyRegression(seed=seed), root / "runs" / "toy", listener, seed=seed, **options)


# Imported where they train: a process that trains the toy starts twice as fast without them.
def _train_detector(root: Path, listener: TrainingListener, **options: Any) -> object:
    from uveitis_assets.detection.training.train_detector import train_detector
    from uveitis_assets_tests.detection.squares import squares_split, store_at, tiny

    store = store_at(root)
    train, val = squares_split(store, 6), squares_split(store, 2, split="val", seed=1)
    changed = tiny(training={"epochs": 3, "checkpoint_every_steps": 2, **options})
    return train_detector(store, changed, store.run_folder("squares", 0), train, val, device="cpu", progress=listener)


def _train_encoder(root: Path, listener: TrainingListener, **options: Any) -> object:
    from uveitis_assets.detection.pretraining.pretrain import pretrain_encoder
    from uveitis_assets_tests.detection.pretraining.preprocessed_images import configuration, lane_of_images
    from uveitis_assets_tests.detection.squares import store_at

    store = store_at(root)
    if not (root / "index").exists():
        lane_of_images(store, 7)
    changed = configuration(**{"epochs": 3, "checkpoint_every_steps": 2, **options})
    return pretrain_encoder(store, changed, device="cpu", log=lambda line: None, listener=listener)


CASES = {
    "toy": LoopCase(_train_toy, "runs/toy", "checkpoints/last.pth", "checkpoints/best.safetensors", "item"),
    "detector": LoopCase(
        _train_detector, "runs/squares", "checkpoints/last.pth", "checkpoints/best.safetensors", "tile squares::train"
    ),
    "encoder": LoopCase(_train_encoder, "pretrain_runs/mae", "last.pth", "encoder.safetensors", "image uwf700::"),
}


class _Killer(Recorder):
    """Kills its process at a step, or before the state that follows it has its name, when half of it is written."""

    def __init__(self, step: int, moment: str) -> None:
        super().__init__()
        self._step, self._moment = step, moment

    def on_step_end(self, *, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        if step == self._step and self._moment == "step":
            os.kill(os.getpid(), signal.SIGKILL)
        if step == self._step:
            Path.replace = self._cut_and_die  # type: ignore[method-assign]

    @staticmethod
    def _cut_and_die(source: Path, target: Path) -> None:
        assert target.name == "last.pth"
        source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
        os.kill(os.getpid(), signal.SIGKILL)


def _train_and_die(root: Path, name: str, step: str, moment: str) -> None:
    CASES[name].train(root / name, _Killer(int(step), moment))


def main(root: Path, deaths: Sequence[str]) -> None:
    """Fork one process per death, so that all of them import torch once; each must have killed itself."""
    torch.set_num_threads(1)
    for death in deaths:
        process = multiprocessing.get_context("fork").Process(target=_train_and_die, args=(root, *death.split(",")))
        process.start()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            sys.exit(f"{death}: expected a process that kills itself, found exit code {process.exitcode}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
