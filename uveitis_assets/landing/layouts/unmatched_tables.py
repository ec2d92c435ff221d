"""The problem of a table in which no row is of an image: it is of other images, or written otherwise.

What stands in its rows would be lost for all images, patients among it, so such a scan is not registered.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from uveitis_assets.landing.image_probe import is_image_name
from uveitis_assets.landing.layouts.file_names import without_image_extension
from uveitis_assets.landing.samples import LandingProblem

_SHOWN = 3
_MOST_COMPARED = 1_000


def unmatched_table_problem(
    csv: str, path_column: str, cells: Sequence[tuple[int, str]], files: Sequence[str], *, shows_names: bool = True
) -> LandingProblem:
    """The problem of a table with rows, none of which is of one of the images.

    Cells are shown where they are written like the names of images, files where they may be; of all others only how
    they are written: in a column that is not the images' names they may be patient ids.

    Args:
        csv: path of the table.
        path_column: column with the images' names.
        cells: line and name of each row.
        files: paths of the images, at least one.
        shows_names: the message may say the names of files.
    """
    cells, files = sorted(cells), sorted(files)
    alike = {_shape(name) for file in files[:_MOST_COMPARED] for name in _names(file)} if shows_names else set()
    # Numbers are alike whatever they count.
    is_shown = {
        cell: (shows_names and is_image_name(cell)) or (_shape(cell) in alike and _shape(cell).strip("0") != "")
        for _, cell in cells[:_SHOWN]
    }
    found = [f"{(cell if is_shown[cell] else _shape(cell))!r} (line {line})" for line, cell in cells[:_SHOWN]]
    expected = [repr(file if shows_names else _shape(file)) for file in files[:_SHOWN]]
    legend = "" if all(is_shown.values()) else " (a and 0 stand for letters and digits that are not shown)"
    detail = (
        f"{csv}: none of its {len(cells)} rows is of one of the {len(files)} images; found in {path_column} "
        f"{', '.join(found)}; expected such as {', '.join(expected)}{legend}; correct the names, or put the table of "
        "these images in its place"
    )
    return LandingProblem(csv, "unmatched_table", detail)


def _names(file: str) -> tuple[str, ...]:
    """What a cell may call a file."""
    name = PurePosixPath(file).name
    return file, name, without_image_extension(file), without_image_extension(name)


def _shape(text: str) -> str:
    """The text with ``a`` for every letter and ``0`` for every digit."""
    return re.sub(r"[^\W\d_]", "a", re.sub(r"\d", "0", text))
