"""Counts of a run over a batch, stage by stage, and the error that lists the items that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from uveitis_assets.messages import listing

FAILURES_SHOWN = 20

Name = TypeVar("Name", bound=str)


@dataclass(slots=True)
class StageOutcome:
    """Counts and numbers of one stage of a batch's run.

    ``n_images`` = ``n_done`` (made now) + ``n_skipped`` (were done) + all of ``n_quarantined`` + ``n_failed``.
    ``repaired`` are those of ``n_done`` that had been finished and whose files were damaged or lost since, with what
    was found. ``index_finding`` says what was wrong with the stage's index, which is whole again.
    ``n_fallback`` counts, of all usable items, those that came from another than the first method, by method.
    ``duration_s`` is the time spent in the stage, summed over workers. ``statistics`` are over all usable items.
    """

    n_images: int = 0
    n_done: int = 0
    n_skipped: int = 0
    n_failed: int = 0
    n_quarantined: dict[str, int] = field(default_factory=dict)
    repaired: dict[str, str] = field(default_factory=dict)
    index_finding: str | None = None
    n_fallback: dict[str, int] = field(default_factory=dict)
    duration_s: float = 0.0
    bytes_written: int = 0
    statistics: dict[str, float] = field(default_factory=dict)

    @property
    def n_repaired(self) -> int:
        """Items whose damaged or lost files were made again."""
        return len(self.repaired)


@dataclass(slots=True)
class BatchOutcome(Generic[Name]):
    """Outcome of each requested stage and the batch's wall time."""

    stages: dict[Name, StageOutcome]
    duration_s: float = 0.0


class BatchFailedError(RuntimeError):
    """Some items failed unexpectedly; all others are done and recorded.

    ``failures`` holds item id and error, sorted by id; ``outcome`` the run's counts.
    """

    def __init__(
        self,
        title: str,
        failures: Sequence[tuple[str, Exception]],
        outcome: BatchOutcome[Any],
        *,
        n_items: int,
        items_name: str,
    ) -> None:
        lines = shown([f"{item_id}: {type(error).__name__}: {error}" for item_id, error in failures])
        super().__init__(
            f"{title}: {len(failures)} of {n_items} {items_name} failed, the others are done; remove the cause and "
            f"materialize the batch again:\n{lines}"
        )
        self.failures = tuple(failures)
        self.outcome = outcome


def shown(lines: Sequence[str]) -> str:
    """The first lines of a list, and how many more there are."""
    return "\n".join(listing(lines, FAILURES_SHOWN))
