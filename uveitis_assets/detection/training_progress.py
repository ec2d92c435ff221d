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


class TrainingProgress(Protocol):
    """Receives a training's events; steps count optimizer steps over all epochs, from 1."""

    def started(self, *, n_epochs: int, n_steps: int, step: int) -> None:
        """The training begins, or goes on after ``step`` of ``n_steps`` steps."""

    def stepped(self, *, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """An optimizer step is done; mean losses of its batch by name."""

    def epoch_ended(self, row: Mapping[str, Any]) -> None:
        """An epoch is done; ``row`` is its line of metrics.jsonl."""

    def said(self, message: str) -> None:
        """Something a person should know."""


class SilentProgress:
    """Tells nobody."""

    def started(self, *, n_epochs: int, n_steps: int, step: int) -> None:
        """See ``TrainingProgress``."""

    def stepped(self, *, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """See ``TrainingProgress``."""

    def epoch_ended(self, row: Mapping[str, Any]) -> None:
        """See ``TrainingProgress``."""

    def said(self, message: str) -> None:
        """See ``TrainingProgress``."""


class SeveralListeners:
    """Hands every event on to several listeners, in order."""

    def __init__(self, listeners: Sequence[TrainingProgress]) -> None:
        self._listeners = tuple(listeners)

    def started(self, *, n_epochs: int, n_steps: int, step: int) -> None:
        """See ``TrainingProgress``."""
        for listener in self._listeners:
            listener.started(n_epochs=n_epochs, n_steps=n_steps, step=step)

    def stepped(self, *, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """See ``TrainingProgress``."""
        for listener in self._listeners:
            listener.stepped(step=step, losses=losses, learning_rate=learning_rate)

    def epoch_ended(self, row: Mapping[str, Any]) -> None:
        """See ``TrainingProgress``."""
        for listener in self._listeners:
            listener.epoch_ended(row)

    def said(self, message: str) -> None:
        """See ``TrainingProgress``."""
        for listener in self._listeners:
            listener.said(message)


class TerminalProgress:
    """A bar over the optimizer steps, one line per evaluated epoch."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress = progress
        self._console = console
        self._task: TaskID | None = None

    def started(self, *, n_epochs: int, n_steps: int, step: int) -> None:
        """See ``TrainingProgress``."""
        self._task = self._progress.add_task(f"{n_epochs} epochs", total=n_steps, completed=step, numbers="")

    def stepped(self, *, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """See ``TrainingProgress``."""
        if self._task is not None:
            numbers = f"loss {sum(losses.values()):.3f}  rate {learning_rate:.1e}"
            self._progress.update(self._task, completed=step, numbers=numbers)

    def epoch_ended(self, row: Mapping[str, Any]) -> None:
        """See ``TrainingProgress``."""
        judged = "" if row["map_50"] is None else f"  AP@0.5 {row['map_50']:.3f}  AP@0.3 {row['map_30']:.3f}"
        self._console.print(f"epoch {row['epoch']}: loss {row['train_loss']:.4f}{judged}", highlight=False)

    def said(self, message: str) -> None:
        """See ``TrainingProgress``."""
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
