"""The ledger's entries while a registration brings them up to date, and what was found about them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from uveitis_assets.landing.ledger import LedgerEntry
from uveitis_assets.landing.samples import LandingProblem

Finding = Literal["new", "changed", "renamed", "relabelled", "gone", "returned", "duplicates"]


def _no_findings() -> dict[Finding, list[str]]:
    return {"new": [], "changed": [], "renamed": [], "relabelled": [], "gone": [], "returned": [], "duplicates": []}


@dataclass(slots=True)
class LedgerUpdate:
    """All entries in the order of their registration; the first ``n_loaded`` were in the ledger before.

    ``touched``: batches whose manifest part no longer describes what is registered. ``found``: image ids per kind of
    finding. ``problems`` in the order in which they were met.
    """

    entries: list[LedgerEntry]
    n_loaded: int
    problems: list[LandingProblem]
    touched: set[str] = field(default_factory=set)
    found: dict[Finding, list[str]] = field(default_factory=_no_findings)

    def replace(self, index: int, **columns: Any) -> LedgerEntry:
        """Give an entry other values in some columns; returns the entry as it is then."""
        self.entries[index] = dataclasses.replace(self.entries[index], **columns)
        return self.entries[index]

    def live_by_path(self) -> dict[str, int]:
        """Positions of the live entries by path, in the order of the entries."""
        return {entry.relative_path: index for index, entry in enumerate(self.entries) if entry.state == "live"}
