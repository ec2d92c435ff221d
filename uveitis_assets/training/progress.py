"""What a training tells while it runs, and to whom: the terminal, several listeners at once, or nobody.

Listeners only listen: none can change a training. TensorBoard and W&B stand in ``training_logs``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


class TrainingListener(Protocol):
    """Receives a training's events; steps count optimizer steps over all epochs, from 1."""

    def on_train_start(self, *, n_epochs: int, n_steps: int, step: int) -> None:
        """The training begins, or goes on after ``step`` of ``n_steps`` steps."""

    def on_step_end(self, *, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """An optimizer step is done; mean losses of its batch by name."""

    def on_epoch_end(self, row: Mapping[str, Any]) -> None:
        """An epoch is done; ``row`` is its line of metrics.jsonl."""

    def on_message(self, message: str) -> None:
        """Something a person should know."""


class NullListener:
    """Tells nobody."""

    def on_train_start(self, *, n_epochs: int, n_steps: int, step: int) -> None:
        """See ``TrainingListener``."""

    def on_step_end(self, *, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """See ``TrainingListener``."""

    def on_epoch_end(self, row: Mapping[str, Any]) -> None:
        """See ``TrainingListener``."""

    def on_message(self, message: str) -> None:
        """See ``TrainingListener``."""


class CompositeListener:
    """Hands every event on to several listeners, in order."""

    def __init__(self, listeners: Sequence[TrainingListener]) -> None:
        self._listeners = tuple(listeners)

    def on_train_start(self, *, n_epochs: int, n_steps: int, step: int) -> None:
        """See ``TrainingListener``."""
        for listener in self._listeners:
            listener.on_train_start(n_epochs=n_epochs, n_steps=n_steps, step=step)

    def on_step_end(self, *, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """See ``TrainingListener``."""
        for listener in self._listeners:
            listener.on_step_end(step=step, losses=losses, learning_rate=learning_rate)

    def on_epoch_end(self, row: Mapping[str, Any]) -> None:
        """See ``TrainingListener``."""
        for listener in self._listeners:
            listener.on_epoch_end(row)

    def on_message(self, message: str) -> None:
        """See ``TrainingListener``."""
        for listener in self._listeners:
            listener.on_message(message)


class TerminalProgress:
    """A bar over the optimizer steps, one line per evaluated epoch."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress = progress
        self._console = console
        self._task: TaskID | None = None

    def on_train_start(self, *, n_epochs: int, n_steps: int, step: int) -> None:
        """See ``TrainingListener``."""
        self._task = self._progress.add_task(f"{n_epochs} epochs", total=n_steps, completed=step, numbers="")

    def on_step_end(self, *, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """See ``TrainingListener``."""
        if self._task is not None:
            numbers = f"loss {sum(losses.values()):.3f}  rate {learning_rate:.1e}"
            self._progress.update(self._task, completed=step, numbers=numbers)

    def on_epoch_end(self, row: Mapping[str, Any]) -> None:
        """See ``TrainingListener``."""
        judged = "" if row["map_50"] is None else f"  AP@0.5 {row['map_50']:.3f}  AP@0.3 {row['map_30']:.3f}"
        self._console.print(f"epoch {row['epoch']}: loss {row['train_loss']:.4f}{judged}", highlight=False)

    def on_message(self, message: str) -> None:
        """See ``TrainingListener``."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def terminal_progress(console: Console | None = None) -> Iterator[TerminalProgress]:
    """Show a training in the terminal while the context is open."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield TerminalProgress(progress, console)
