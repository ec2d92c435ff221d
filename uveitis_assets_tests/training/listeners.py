"""A listener that keeps what it hears."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uveitis_assets.training.progress import NullListener


class Recorder(NullListener):
    """Keeps what it hears; stops the training by an exception after ``stop_after`` steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.events: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.messages: list[str] = []
        self.steps: list[int] = []
        self.losses: list[Mapping[str, float]] = []
        self._stop_after = stop_after

    def on_train_start(self, *, n_epochs: int, n_steps: int, step: int) -> None:
        self.events.append(f"{n_epochs} epochs, {n_steps} steps, after {step}")

    def on_step_end(self, *, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        self.events.append(f"step {step}")
        self.steps.append(step)
        self.losses.append(losses)
        if step == self._stop_after:
            raise KeyboardInterrupt

    def on_epoch_end(self, row: Mapping[str, Any]) -> None:
        self.events.append(f"epoch {row['epoch']}")
        self.rows.append(dict(row))

    def on_message(self, message: str) -> None:
        self.events.append("message")
        self.messages.append(message)
