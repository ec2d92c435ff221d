"""What one registration found, without raw patient ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.pseudonyms import pseudonym
from uveitis_assets.landing.registration.identity import ImageNaming
from uveitis_assets.landing.registration.ledger_update import LedgerUpdate
from uveitis_assets.landing.samples import LandingProblem


@dataclass(frozen=True, slots=True)
class RegistrationReport:
    """What one registration found; tuples hold image ids, and no raw patient id.

    ``changed``: other content under the same path, or content where there was none before. ``touched_batches``:
    existing batches whose manifest part no longer describes what is registered. ``quarantined``: reason of every live
    image that is set aside. Of the lane as a whole, not only of what is new: ``n_images``, ``quarantined``,
    ``problems``.
    """

    n_images: int
    n_unchanged: int
    new: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    renamed: tuple[str, ...] = ()
    relabelled: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    returned: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()
    n_deferred: int = 0
    new_batches: tuple[str, ...] = ()
    touched_batches: tuple[str, ...] = ()
    quarantined: dict[str, str] = field(default_factory=dict)
    problems: tuple[LandingProblem, ...] = ()


def registration_report(
    update: LedgerUpdate,
    dataset: DatasetConfiguration,
    naming: ImageNaming,
    new_batches: Sequence[str],
    n_deferred: int,
) -> RegistrationReport:
    """Report an update; where file names name patients, problems name files by a pseudonym."""
    live = [entry for entry in update.entries if entry.state == "live"]
    seen = {image_id for finding, ids in update.found.items() if finding != "gone" for image_id in ids}
    problems = update.problems
    if naming.hides_names:
        shown = {".", *dataset.tables, *(entry.image_id for entry in live)}
        problems = [
            problem
            if problem.path in shown
            else dataclasses.replace(problem, path=pseudonym(naming.key, "path", problem.path, prefix="file_"))
            for problem in problems
        ]
    return RegistrationReport(
        n_images=len(live),
        n_unchanged=sum(entry.image_id not in seen for entry in live),
        n_deferred=n_deferred,
        new_batches=tuple(new_batches),
        touched_batches=tuple(sorted(update.touched.difference(new_batches))),
        quarantined={entry.image_id: entry.quarantine_reason for entry in live if entry.quarantine_reason},
        problems=tuple(problems),
        **{finding: tuple(sorted(ids)) for finding, ids in update.found.items()},
    )
