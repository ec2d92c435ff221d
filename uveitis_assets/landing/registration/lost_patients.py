"""Refuses to register images whose patients stand in a table that cannot be read.

Each of them would count as a patient of its own, and the images of one person could be in training and test.
"""

from __future__ import annotations

from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.samples import LandingScan
from uveitis_assets.messages import count_of, listing

_LISTED = 5


class LostPatientsError(ValueError):
    """Patient ids stand in a table that cannot be read; nothing was registered."""


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
