"""Matches the rows of a table to images by the names that the table gives them.

A row goes to one image and an image to one row. What is not decided is a problem, never a guess: a name that several
images have, a second row of an image, a name that no image has; above all a table of which no row is of an image. Names
of files that are almost a row's are said, unless file names may name patients.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

from uveitis_assets.landing.layouts.csv_tables import CsvRow
from uveitis_assets.landing.layouts.file_names import FileNames
from uveitis_assets.landing.layouts.unmatched_tables import unmatched_table_problem
from uveitis_assets.landing.samples import LandingProblem
from uveitis_assets.messages import enumeration

_MOST_SUGGESTIONS = 5
_MOST_COMPARED_BY_LETTER = 20


def match_rows(
    rows: Sequence[CsvRow], names: FileNames, csv: str, path_column: str, *, shows_names: bool = True
) -> tuple[dict[str, CsvRow], list[LandingProblem]]:
    """Find each row's file; rows that give a file's very path come first: no other row takes their image.

    Args:
        rows: of the table.
        names: of the images.
        csv: path of the table, for messages.
        path_column: column with the image's path below the dataset's folder, its file name or its stem.
        shows_names: messages may say the names of files.

    Returns:
        Row per file, and what was not decided.
    """
    row_by_file: dict[str, CsvRow] = {}
    problems: list[LandingProblem] = []
    missing: list[CsvRow] = []
    ambiguous: list[int] = []
    for row in sorted(rows, key=lambda row: not names.is_path(row.cells[path_column])):
        cell = row.cells[path_column]
        if leaves_folder(cell):
            detail = f"{csv}:{row.line}: expected a path below the dataset's folder in {path_column}; correct the cell"
            problems.append(LandingProblem(csv, "escapes_root", detail))
            continue
        found = names.find(cell)
        if len(found) != 1:
            if found:
                ambiguous.append(row.line)
            else:
                missing.append(row)
            continue
        other = row_by_file.setdefault(found[0], row)
        if other is not row:
            problems.append(row_of_known_image(csv, row, other))
    cells = [(row.line, row.cells[path_column]) for row in missing]
    problems.extend(missing_images_problem(csv, cells, names, row_by_file, shows_names=shows_names))
    problems.extend(ambiguous_rows_problem(csv, path_column, ambiguous))
    if rows and names.files and not row_by_file:
        cells = [(row.line, row.cells[path_column]) for row in rows]
        problems.append(unmatched_table_problem(csv, path_column, cells, names.files, shows_names=shows_names))
    return row_by_file, problems


def leaves_folder(cell: str) -> bool:
    """Say whether a path in a cell is absolute or has ``..`` in it."""
    path = PurePosixPath(cell.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts


def row_of_known_image(csv: str, row: CsvRow, first: CsvRow) -> LandingProblem:
    """The problem of a second row of an image."""
    detail = f"{csv}:{row.line}: the image stands in line {first.line} already, which holds; remove one of the rows"
    return LandingProblem(csv, "bad_row", detail)


def missing_images_problem(
    csv: str,
    cells: Sequence[tuple[int, str]],
    names: FileNames,
    taken: Collection[str],
    *,
    shows_names: bool = True,
) -> list[LandingProblem]:
    """One problem for all rows whose image is not there, with the files that some of them may mean.

    Args:
        csv: path of the table.
        cells: line and name of each image that is not there.
        names: of the images that are.
        taken: images that have a row.
        shows_names: the message may say the names of files.
    """
    if not cells:
        return []
    cells = sorted(cells)
    detail = f"{csv}: {len(cells)} rows name images that are not there, the first in line {cells[0][0]}; land them"
    almost: list[str] = []
    for position, (line, cell) in enumerate(cells):
        file = names.almost(cell, taken, compares_letters=position < _MOST_COMPARED_BY_LETTER)
        if file is not None:
            almost.append(f"line {line} may mean {file}" if shows_names else f"line {line} almost has a file's name")
        if len(almost) == _MOST_SUGGESTIONS:
            break
    if almost:
        detail += f", or correct the names: {enumeration(almost, _MOST_SUGGESTIONS)}"
    return [LandingProblem(csv, "missing", detail)]


def ambiguous_rows_problem(csv: str, path_column: str, lines: Sequence[int]) -> list[LandingProblem]:
    """One problem for all rows whose name several images have."""
    if not lines:
        return []
    detail = (
        f"{csv}: {len(lines)} rows name several images each, the first in line {min(lines)}; write the path below the "
        f"dataset's folder in {path_column}"
    )
    return [LandingProblem(csv, "bad_row", detail)]
