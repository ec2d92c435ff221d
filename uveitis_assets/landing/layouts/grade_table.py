"""Reads grades from cells of CSV files, and reports rows whose image has not landed."""

from __future__ import annotations

from collections.abc import Sequence

from uveitis_assets.landing.samples import LandingProblem


def parse_grade(cell: str, place: str) -> tuple[int | None, LandingProblem | None]:
    """Read a whole number from 0 to 99 (``2`` or ``2.0``); an empty cell is no grade and no problem.

    The problem does not quote the cell: in a table whose columns are mixed up it may hold a patient's name.
    """
    if not cell:
        return None, None
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if value < 0 or not value.is_integer() or value > 99:
        detail = f"{place}: expected a whole number from 0 to 99 as grade; the image stays unlabelled, correct the cell"
        return None, LandingProblem(place.rsplit(":", 1)[0], "bad_row", detail)
    return int(value), None


def missing_images_problem(csv: str, lines: Sequence[int]) -> list[LandingProblem]:
    """One problem for all rows of a CSV whose image is not there."""
    if not lines:
        return []
    detail = f"{csv}: {len(lines)} rows name images that are not there, the first in line {min(lines)}; land them"
    return [LandingProblem(csv, "missing", detail)]
