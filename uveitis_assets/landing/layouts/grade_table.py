"""Reads grades from cells of CSV files."""

from __future__ import annotations

from uveitis_assets.landing.samples import LandingProblem


def parse_grade(cell: str, place: str) -> tuple[int | None, LandingProblem | None]:
    """Read a whole number from 0 to 99; an empty cell is no grade and no problem.

    ``2``, ``2.0`` and, with a decimal comma, ``2,0`` are the same.

    The problem does not quote the cell: in a table whose columns are mixed up it may hold a patient's name.
    """
    if not cell:
        return None, None
    try:
        value = float(cell.replace(",", "."))
    except ValueError:
        value = -1.0
    if value < 0 or not value.is_integer() or value > 99:
        detail = f"{place}: expected a whole number from 0 to 99 as grade; the image stays unlabelled, correct the cell"
        return None, LandingProblem(place.rsplit(":", 1)[0], "bad_row", detail)
    return int(value), None
