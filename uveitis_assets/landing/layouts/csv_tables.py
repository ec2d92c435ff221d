"""Reads CSV files of datasets tolerantly: encodings, delimiters, column names, blank cells.

What cannot be used becomes a `LandingProblem` that names file and line. Cell values stay out of the messages: they
may be patient ids.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from uveitis_assets.landing.folder_tree import LandingTree
from uveitis_assets.landing.landed_files import read_landed_file
from uveitis_assets.landing.layouts.table_text import decode_table, foreign_table_format
from uveitis_assets.landing.quarantine import QuarantineError
from uveitis_assets.landing.samples import LandingProblem

_DELIMITERS = ",;\t|"
# Spreadsheet programs write and read the delimiter so, in a line before the header.
_DELIMITER_LINE = re.compile(r'"?sep=(?P<delimiter>[^\r\n]|\\t)"?(?P=delimiter)*[ \t]*(?:\r\n|\r|\n|$)', re.IGNORECASE)
_WORKBOOK_EXTENSIONS = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods", ".numbers")


@dataclass(frozen=True, slots=True)
class CsvRow:
    """One line: its number in the file (from 1) and the stripped cells by column name."""

    line: int
    cells: dict[str, str]


def read_landing_csv(
    tree: LandingTree, relative_path: str, required: Sequence[str], optional: Sequence[str] = ()
) -> tuple[list[CsvRow], list[LandingProblem]]:
    """Read the required and optional columns of a CSV file below the dataset's raw folder.

    Accepts UTF-8 with or without a byte-order mark, UTF-16, and cp1252; the delimiters ``,`` ``;`` tab and ``|``, or
    the one that a first line ``sep=;`` names; column names in any case; blank lines, blank columns, and rows that end
    in delimiters beyond the header. Every problem means that rows were not read: all of them where a required column is
    missing.
    """
    try:
        data = read_landed_file(tree.raw_root, str(tree.folder / relative_path), relative_path)
    except QuarantineError as error:
        detail = error.detail + (similar_table(tree.files, relative_path) if error.reason == "missing" else "")
        return [], [LandingProblem(relative_path, error.reason, detail)]
    found_format = foreign_table_format(data)
    if found_format:
        detail = (
            f"{relative_path}: expected a CSV file, found {found_format}; open it in the spreadsheet program, save it "
            "as CSV (UTF-8) and name that file in the configuration"
        )
        return [], [LandingProblem(relative_path, "not_csv", detail)]
    text = decode_table(data)
    named = _DELIMITER_LINE.match(text)
    delimiters = named["delimiter"].replace("\\t", "\t") if named else _DELIMITERS
    body = text[named.end() :] if named else text
    table = _Table(relative_path, body, _best_delimiter(body, delimiters, (*required, *optional)), bool(named))
    return table.read(required, optional)


def _best_delimiter(text: str, delimiters: str, names: Sequence[str]) -> str:
    """The delimiter under which the header has most of the names; of several the most frequent one."""
    wanted = {name.casefold() for name in names}

    def merit(delimiter: str) -> tuple[int, int]:
        try:
            header = next(_filled_rows(text, delimiter), (0, []))[1]
        except csv.Error:
            return 0, 0
        return len(wanted.intersection(name.strip().casefold() for name in header)), len(header)

    return max(delimiters, key=merit)


def _filled_rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every row that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield reader.line_num, cells


class _Table:
    """The text of a table without the line that names its delimiter."""

    def __init__(self, path: str, text: str, delimiter: str, has_delimiter_line: bool) -> None:
        self._path = path
        self._text = text
        self._delimiter = delimiter
        self._n_before = int(has_delimiter_line)

    def read(self, required: Sequence[str], optional: Sequence[str]) -> tuple[list[CsvRow], list[LandingProblem]]:
        """Rows with the required columns and those optional ones that are there."""
        lines, problems = self._lines()
        if not lines and problems:
            return [], problems
        found = [name.strip() for name in lines[0][1]] if lines else []
        position_by_name = {name.casefold(): index for index, name in reversed(list(enumerate(found)))}
        missing = [name for name in required if name.casefold() not in position_by_name]
        if missing:
            return [], [self._missing_columns(required, missing, found, lines[0][0] if lines else 1)]
        positions = {
            name: position_by_name[name.casefold()]
            for name in (*required, *optional)
            if name.casefold() in position_by_name
        }
        rows: list[CsvRow] = []
        ends_blank = self._ends_blank([cells for _, cells in lines[1:]], len(found))
        n_named = 1 + max(index for index, name in enumerate(found) if name)
        for line, cells in lines[1:]:
            extra = cells[len(found) :]
            if len(cells) < n_named or any(cell.strip() for cell in extra) or (extra and not ends_blank):
                problems.append(self._bad_row(line, len(found), len(cells)))
                continue
            # Only columns without a name may lack cells.
            rows.append(CsvRow(line, {name: cells[index].strip() for name, index in positions.items()}))
        return rows, problems

    def _lines(self) -> tuple[list[tuple[int, list[str]]], list[LandingProblem]]:
        """Filled rows with their line numbers, and the lines that are no CSV."""
        lines: list[tuple[int, list[str]]] = []
        problems: list[LandingProblem] = []
        reader = csv.reader(io.StringIO(self._text, newline=""), delimiter=self._delimiter)
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                line = reader.line_num + self._n_before
                detail = f"{self._path}:{line}: {error}; save it as CSV again"
                problems.append(LandingProblem(self._path, "bad_row", detail))
                continue
            if cells is None:
                break
            if any(cell.strip() for cell in cells):
                lines.append((reader.line_num + self._n_before, cells))
        if lines and self._ends_in_quotes():
            lines.pop()
            line = 1 + (lines[-1][0] if lines else self._n_before)
            detail = f"{self._path}:{line}: from here on a quote is opened and never closed; close or remove it"
            problems.append(LandingProblem(self._path, "bad_row", detail))
        return lines, problems

    def _ends_in_quotes(self) -> bool:
        """Say whether the last row is all that follows an unclosed quote."""
        reader = csv.reader(io.StringIO(self._text, newline=""), delimiter=self._delimiter, strict=True)
        while True:
            try:
                if next(reader, None) is None:
                    return False
            except csv.Error as error:
                if "unexpected end of data" in str(error):
                    return True

    def _ends_blank(self, rows: Sequence[Sequence[str]], n_columns: int) -> bool:
        """Say whether blank cells beyond the header are delimiters at the end of rows.

        Where some rows of a table with commas have them and others do not, a cell with an unquoted comma and an empty
        last cell look the same.
        """
        return self._delimiter != "," or all(len(cells) > n_columns for cells in rows)

    def _missing_columns(
        self, required: Sequence[str], missing: Sequence[str], found: Sequence[str], line: int
    ) -> LandingProblem:
        # Without any known name the line may be no header at all, but a patient's row.
        none = f"none of them in the {len(found)} cells of line {line}"
        detail = (
            f"{self._path}: expected the columns {', '.join(required)}, "
            f"found {', '.join(filter(None, found)) if len(missing) < len(required) else none}; "
            f"add {', '.join(missing)}"
        )
        return LandingProblem(self._path, "missing_columns", detail)

    def _bad_row(self, line: int, expected: int, found: int) -> LandingProblem:
        detail = (
            f"{self._path}:{line}: expected {expected} cells, found {found}; quote cells that hold the delimiter, or "
            "give all rows as many delimiters as the header"
        )
        return LandingProblem(self._path, "bad_row", detail)


def similar_table(files: Sequence[str], relative_path: str) -> str:
    """The end of a sentence about a missing table: which file may be meant, or nothing.

    Args:
        files: that are there, below the dataset's folder.
        relative_path: of the table that is not.
    """
    wanted = PurePosixPath(relative_path.casefold())
    for file in files:
        other = PurePosixPath(file.casefold())
        if other == wanted:
            return f"; {file} may be meant: give it the expected name"
        if other.suffix in _WORKBOOK_EXTENSIONS and other.with_suffix("") == wanted.with_suffix(""):
            return f"; {file} may be meant: save it as CSV"
    return ""
