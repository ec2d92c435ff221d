"""When a condition is told: once, again while it lasts, and at its end; few messages an hour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uveitis_assets.deployment.monitoring.alert_settings import AlertSettings
from uveitis_assets.deployment.monitoring.conditions import Condition
from uveitis_assets.storage.files import read_json, write_json

_HOUR_S = 3600.0
# A failed run is looked for again over some minutes; for as long it has to be known.
_FORGET_EVENTS_AFTER_S = 7 * 86400.0
_MOST_LINES = 30


@dataclass(slots=True)
class Alerting:
    """What was told so far, kept in a file so that a restart tells nothing twice.

    Args:
        settings: how often things are told.
        file: of the state.
        send: delivers subject and text; what it raises leaves the state as it was, so that it is tried again.
    """

    settings: AlertSettings
    file: Path
    send: Callable[[str, str], Any]
    told: dict[str, float] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    sent_at: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        try:
            state = read_json(self.file)
        except (FileNotFoundError, ValueError):
            # Without it everything that is wrong now is told once more.
            return
        self.told, self.texts, self.sent_at = state["told"], state["texts"], state["sent_at"]

    def tell(self, conditions: Sequence[Condition], now: float) -> bool:
        """Send one message with all that is new, due again or over; returns whether one was sent.

        When the hour's messages are spent, what is new waits for the next one.
        """
        present = {condition.key: condition for condition in conditions}
        repeat = self.settings.repeat_hours * _HOUR_S
        fresh = [
            condition
            for condition in present.values()
            if condition.key not in self.told or (not condition.is_event and now - self.told[condition.key] >= repeat)
        ]
        over = [key for key in self.texts if key not in present]
        recent = [moment for moment in self.sent_at if now - moment < _HOUR_S]
        if not (fresh or over) or len(recent) >= self.settings.messages_per_hour:
            return False
        lines = [condition.text for condition in fresh] + [f"over: {self.texts[key]}" for key in over]
        shown = lines[:_MOST_LINES] + ([f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else [])
        what = lines[0] if len(lines) == 1 else f"{len(fresh)} problems, {len(over)} over"
        self.send(f"[{self.settings.name}] {what}", "\n".join(shown))
        for condition in fresh:
            self.told[condition.key] = now
            if not condition.is_event:
                self.texts[condition.key] = condition.text
        for key in over:
            del self.texts[key], self.told[key]
        self.told = {
            key: moment
            for key, moment in self.told.items()
            if key in self.texts or key in present or now - moment < _FORGET_EVENTS_AFTER_S
        }
        self.sent_at = [*recent, now]
        write_json(self.file, {"told": self.told, "texts": self.texts, "sent_at": self.sent_at})
        return True
