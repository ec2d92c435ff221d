"""Listeners of a training's events: the protocol, one that does nothing, and several as one.

No listener changes a training. TensorBoard and W&B are in ``logs``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


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
    """Does nothing."""

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
