"""A regression of twelve points as a task of the training loop: what a third task has to write."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.distributed import n_processes, process_rank
from uveitis_assets.training.loop import LoopOptions
from uveitis_assets.training.progress import TrainingListener
from uveitis_assets.training.run import RunOutcome, train_in_run_folder
from uveitis_assets.training.run_folder import RunFolder
from uveitis_assets.training.step import StepOptions
from uveitis_assets.training.task import RunTask


class ToyRegression(RunTask[int]):
    """Learns sin(x) of points by their number; dropout draws from the process's random numbers."""

    selection_metric = "fit"

    def __init__(self, *, seed: int = 1, dropout: float = 0.2, batch_size: int = 4) -> None:
        self._seed, self._dropout, self._batch_size = seed, dropout, batch_size

    @property
    def batches_per_epoch(self) -> int:
        return 12 // self._batch_size // n_processes()

    def identity(self) -> dict[str, Any]:
        return {"seed": self._seed, "dropout": self._dropout}

    def configuration(self) -> dict[str, Any]:
        return {"model": {"width": 8}, **self.identity()}

    def build(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Dropout(self._dropout), nn.Linear(8, 1)).train()
        return model, torch.optim.AdamW(model.parameters())

    def batches(self, epoch: int, skip: int) -> Iterator[Sequence[int]]:
        order = np.random.default_rng((self._seed, epoch)).permutation(12)[process_rank() :: n_processes()]
        return iter(order.reshape(-1, self._batch_size).tolist()[skip:])

    def losses(self, model: nn.Module, items: Sequence[int], *, step: int) -> Mapping[str, Tensor]:
        x = torch.tensor(items).float()[:, None] / 4
        return {"square": (model(x) - x.sin()).square().mean()}

    def evaluate(self, model: nn.Module) -> dict[str, float | None]:
        return {"fit": 1 / (1 + self.losses(model, range(12), step=0)["square"].item())}


def train_toy(task: ToyRegression, folder: Path, listener: TrainingListener, **options: Any) -> RunOutcome:
    step = StepOptions(4, 0.05, 1e-3, warmup_steps=2, gradient_clip_norm=1.0, ema_decay=0.5)
    loop = LoopOptions(**{"epochs": 3, "seed": 1, "step": step, "checkpoint_every_steps": 2, **options})
    store, cpu = ArtefactStore(folder.parent, folder), torch.device("cpu")
    return train_in_run_folder(task, loop, RunFolder(folder), store=store, device=cpu, listener=listener)
