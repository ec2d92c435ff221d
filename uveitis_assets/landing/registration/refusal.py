"""Refuses to register scans that would lose what stands in a table, patients above all."""

from __future__ import annotations

from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.samples import LandingScan
from uveitis_assets.messages import count_of, listing

_LISTED = 5
_UNMATCHED = "unmatched_table"


class RegistrationRefusedError(ValueError):
    """Nothing of a lane was registered; the message says why and what to do."""


class LostPatientsError(RegistrationRefusedError):
    """Patient ids stand in a table that cannot be read; nothing was registered.

    Each image would count as a patient of its own, and the images of one person could be in training and test.
    """


class UnmatchedTableError(RegistrationRefusedError):
    """No row of a table is of an image that was landed; nothing was registered."""


def refuse_lost_patients(dataset: DatasetConfiguration, scan: LandingScan) -> None:
    """Refuse a scan that lost patients.

    Raises:
        LostPatientsError: the message lists the problems of the tables.
    """
    if not scan.lost_patients:
        return
    problems = count_of(scan.lost_patients, "problem")
    details = "\n".join(f"  {line}" for line in listing([problem.detail for problem in scan.lost_patients], _LISTED))
    raise LostPatientsError(
        f"{dataset.name}: the patient ids of its images stand in a table that cannot be read completely; nothing was "
        f"registered, because each image would count as a patient of its own. Correct {problems}, then register "
        f"again:\n{details}"
    )


def refuse_unmatched_tables(dataset: DatasetConfiguration, scan: LandingScan) -> None:
    """Refuse a scan with a table in which no row is of an image.

    Raises:
        UnmatchedTableError: the message names the tables, what stands in them and what was expected.
    """
    tables = [problem.path for problem in scan.problems if problem.reason == _UNMATCHED]
    if not tables:
        return
    # Which names may be meant, and what else is wrong, stands in the other problems of a table.
    found = sorted(
        (problem for problem in scan.problems if problem.path in tables),
        key=lambda problem: (tables.index(problem.path), problem.reason != _UNMATCHED),
    )
    details = "\n".join(f"  {line}" for line in listing([problem.detail for problem in found], _LISTED))
    raise UnmatchedTableError(
        f"{dataset.name}: no row of {' and of '.join(tables)} is of an image; nothing was registered, because all that "
        f"stands there would be lost. Correct it, then register again:\n{details}"
    )
