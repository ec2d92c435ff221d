"""Reads CSV files of datasets tolerantly: encodings, delimiters, column names, ragged rows.

What cannot be used becomes a `LandingProblem` that names file and line. Cell values stay out of the messages: they
may be patient ids.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from uveitis_assets.landing.folder_tree import LandingTree
from uveitis_assets.landing.landed_files import read_landed_file
from uveitis_assets.landing.quarantine import QuarantineError
from uveitis_assets.landing.samples import LandingProblem

_DELIMITERS = ",;\t"


@dataclass(frozen=True, slots=True)
class CsvRow:
    """One line: its number in the file (1 is the header) and the stripped cells by column name."""

    line: int
    cells: dict[str, str]


def read_landing_csv(
    tree: LandingTree, relative_path: str, required: Sequence[str], optional: Sequence[str] = ()
) -> tuple[list[CsvRow], list[LandingProblem]]:
    """Read the required and optional columns of a CSV file below the dataset's raw folder.

    Accepts UTF-8 with or without a byte-order mark, UTF-16 with one, and cp1252; the delimiters ``,`` ``;`` and tab;
    column names in any case. Without all required columns no row is returned.
    """
    try:
        data = read_landed_file(tree.raw_root, str(tree.folder / relative_path), relative_path)
    except QuarantineError as error:
        return [], [LandingProblem(relative_path, error.reason, error.detail)]
    text = _decode(data)
    header = text.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        found = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        return [], [LandingProblem(relative_path, "bad_row", f"{relative_path}:1: {error}; save it as CSV again")]
    position_by_name = {name.casefold(): index for index, name in reversed(list(enumerate(found)))}
    missing = [name for name in required if name.casefold() not in position_by_name]
    if missing:
        # Without any known name the first line may be no header at all, but a patient's row.
        none = f"none of them in the {len(found)} cells of line 1"
        detail = (
            f"{relative_path}: expected the columns {', '.join(required)}, "
            f"found {', '.join(found) if len(missing) < len(required) else none}; add {', '.join(missing)}"
        )
        return [], [LandingProblem(relative_path, "missing_columns", detail)]
    positions = {
        name: position_by_name[name.casefold()]
        for name in (*required, *optional)
        if name.casefold() in position_by_name
    }
    rows: list[CsvRow] = []
    problems: list[LandingProblem] = []
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            problems.append(LandingProblem(relative_path, "bad_row", f"{relative_path}:{reader.line_num}: {error}"))
            continue
        if cells is None:
            return rows, problems
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(found):
            detail = (
                f"{relative_path}:{reader.line_num}: expected {len(found)} cells, found {len(cells)}; "
                "quote cells that hold the delimiter"
            )
            problems.append(LandingProblem(relative_path, "bad_row", detail))
            continue
        rows.append(CsvRow(reader.line_num, {name: cells[index].strip() for name, index in positions.items()}))


def _decode(data: bytes) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")
