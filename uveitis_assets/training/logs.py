"""A training's numbers in TensorBoard and W&B, as listeners (``progress``).

Both are imported when they are wanted: they take seconds. The W&B key is read from the file that
``UVEITIS_WANDB_KEY_FILE`` names and handed over in memory; it is in no configuration, environment, file or message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from uveitis_assets.storage.key_files import key_file
from uveitis_assets.training.configuration import TrainingConfiguration
from uveitis_assets.training.progress import NullListener, TrainingListener
from uveitis_assets.training.run_folder import RunFolder

WANDB_KEY_VARIABLE = "UVEITIS_WANDB_KEY_FILE"
_EVERY_STEPS = 10


@contextmanager
def training_logs(
    folder: RunFolder,
    options: TrainingConfiguration,
    *,
    run_id: str,
    step: int,
    configuration: Mapping[str, Any],
) -> Iterator[list[TrainingListener]]:
    """The logs that the configuration asks for, open while the context is.

    Args:
        folder: where TensorBoard's events (tb/) and W&B's files (wandb/) go.
        options: ``tensorboard`` and ``wandb_project``.
        run_id: same for a training that is continued, so that it goes on in the same W&B run.
        step: optimizer steps done; later ones of a killed process are dropped from TensorBoard.
        configuration: the whole configuration as plain values, which W&B shows.

    Raises:
        ValueError: W&B is asked for, and ``UVEITIS_WANDB_KEY_FILE`` names no file with a key, or
            another secret.
        ModuleNotFoundError: wandb is not installed.
    """
    with ExitStack() as stack:
        logs: list[TrainingListener] = []
        if options.tensorboard:
            logs.append(stack.enter_context(_tensorboard(folder.tensorboard_folder, step)))
        if options.wandb_project is not None:
            logs.append(stack.enter_context(_wandb(folder, configuration, options.wandb_project, run_id)))
        yield logs


class _ScalarLog(NullListener):
    """Hands numbers by name, with their step, to ``write``."""

    def __init__(self, write: Callable[[dict[str, float], int], None]) -> None:
        self._write = write

    def on_step_end(self, *, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """Every tenth step: a number per step makes logs of gigabytes."""
        if step % _EVERY_STEPS == 0:
            scalars = {f"step/{name}": loss for name, loss in losses.items()}
            self._write({**scalars, "step/loss": sum(losses.values()), "step/learning_rate": learning_rate}, step)

    def on_epoch_end(self, row: Mapping[str, Any]) -> None:
        """All numbers of the epoch's row."""
        numbers = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
        step = int(numbers.pop("step"))
        self._write({f"epoch/{name}": value for name, value in numbers.items()}, step)


@contextmanager
def _tensorboard(folder: Path, step: int) -> Iterator[_ScalarLog]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)

    try:
        yield _ScalarLog(write)
    finally:
        writer.close()


@contextmanager
def _wandb(folder: RunFolder, configuration: Mapping[str, Any], project: str, run_id: str) -> Iterator[_ScalarLog]:
    key = _wandb_key()
    import wandb

    run = wandb.init(
        project=project,
        id=run_id,
        resume="allow",
        dir=str(folder.path),
        config=dict(configuration),
        # Console output may hold paths; host name and code are not to leave the machine.
        settings=wandb.Settings(api_key=key, console="off", disable_git=True, save_code=False, x_disable_meta=True),
    )
    try:
        yield _ScalarLog(lambda scalars, step: run.log(scalars, step=step))
    finally:
        run.finish()


def _wandb_key() -> str:
    file = key_file(WANDB_KEY_VARIABLE)
    if file is None or not file.is_file():
        raise ValueError(
            f"training.wandb_project: expected {WANDB_KEY_VARIABLE} to name the file with the W&B key, found "
            f"{file or 'nothing'}; set it, or remove wandb_project"
        )
    key = file.read_text().strip()
    if not key or len(key.split()) != 1:
        raise ValueError(f"{WANDB_KEY_VARIABLE}={file}: expected a file with one line, the W&B key; write it anew")
    return key
