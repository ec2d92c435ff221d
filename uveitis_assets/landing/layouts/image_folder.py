"""Any nested folder of images, with an optional CSV of patient, eye and grade.

For datasets without a layout of their own. Without a patient column every image is its own patient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from unicodedata import normalize

from uveitis_assets.landing.image_probe import is_image_name, probe_image
from uveitis_assets.landing.layouts.csv_tables import CsvRow, read_landing_csv
from uveitis_assets.landing.layouts.eye import eye_from_name
from uveitis_assets.landing.layouts.grade_table import missing_images_problem, parse_grade
from uveitis_assets.landing.layouts.registry import Layout
from uveitis_assets.landing.samples import LandedSample, LandingProblem, LandingScan

if TYPE_CHECKING:
    from uveitis_assets.landing.configuration import DatasetConfiguration
    from uveitis_assets.landing.folder_tree import LandingTree


def scan(dataset: DatasetConfiguration, tree: LandingTree) -> LandingScan:
    """Read the folder; dataset tag the lane's name, notes ``grade=k`` where the CSV has one."""
    options = dataset.image_folder
    files = [file for file in tree.files if is_image_name(file)]
    problems = list(tree.problems)
    if not files:
        problems.append(LandingProblem(".", "no_images", "expected images in the folder, found none"))
    row_by_file: dict[str, CsvRow] = {}
    if options.csv is not None:
        columns = (options.patient_column, options.eye_column, options.grade_column)
        rows, csv_problems = read_landing_csv(
            tree, options.csv, (options.path_column, *(column for column in columns if column))
        )
        problems.extend(csv_problems)
        row_by_file, row_problems = _match_rows(rows, files, options.csv, options.path_column)
        problems.extend(row_problems)
    images = []
    for file in files:
        stem = PurePosixPath(file).stem
        row = row_by_file.get(file)
        cells = row.cells if row else {}
        eye = eye_from_name(stem)
        if row and options.eye_column and cells[options.eye_column]:
            eye = eye_from_name(cells[options.eye_column])
            if eye is None:
                problems.append(
                    LandingProblem(
                        options.csv or "",
                        "bad_row",
                        f"{options.csv}:{row.line}: expected left or right in {options.eye_column}; correct the cell",
                    )
                )
        grade = None
        if row and options.grade_column:
            grade, problem = parse_grade(cells[options.grade_column], f"{options.csv}:{row.line}")
            problems.extend([problem] if problem else [])
        patient = cells.get(options.patient_column, "") if options.patient_column else ""
        images.append(
            LandedSample(
                relative_path=file,
                dataset=dataset.name,
                patient=patient or str(PurePosixPath(file).with_suffix("")),
                eye=eye,
                label_format="none" if grade is None else "grade",
                label_paths=() if grade is None or options.csv is None else (options.csv,),
                notes="" if grade is None else f"grade={grade}",
                patient_from_name=not patient,
            )
        )
    return LandingScan(tuple(images), tuple(problems))


def _match_rows(
    rows: list[CsvRow], files: list[str], csv: str, path_column: str
) -> tuple[dict[str, CsvRow], list[LandingProblem]]:
    """Find each row's file: by its path, else by its name where that is unique, else by its stem.

    A path that differs in Unicode form serves where it is unique. Rows that give a file's very path come first: another
    row does not take their image from them.
    """
    exact = set(files)
    by_path = _grouped(files, str)
    by_name = _grouped(files, lambda path: path.name)
    by_stem = _grouped(files, lambda path: path.stem)
    row_by_file: dict[str, CsvRow] = {}
    problems: list[LandingProblem] = []
    missing: list[int] = []
    ambiguous: list[int] = []
    for row in sorted(rows, key=lambda row: _cell_path(row, path_column) not in exact):
        path = PurePosixPath(_cell_path(row, path_column))
        cell = normalize("NFC", row.cells[path_column].replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            problems.append(
                LandingProblem(
                    csv,
                    "escapes_root",
                    f"{csv}:{row.line}: expected a path below the dataset's folder in {path_column}; correct the cell",
                )
            )
            continue
        named = by_path.get(normalize("NFC", str(path))) or by_name.get(cell) or by_stem.get(cell) or []
        if str(path) in exact:
            named = [str(path)]
        if len(named) != 1:
            (ambiguous if named else missing).append(row.line)
            continue
        file = named[0]
        if file in row_by_file:
            problems.append(
                LandingProblem(
                    csv,
                    "bad_row",
                    f"{csv}:{row.line}: the image stands in line {row_by_file[file].line} already, which holds",
                )
            )
        else:
            row_by_file[file] = row
    problems.extend(missing_images_problem(csv, missing))
    problems.extend(_ambiguous_rows_problem(csv, path_column, ambiguous))
    return row_by_file, problems


def _cell_path(row: CsvRow, path_column: str) -> str:
    return str(PurePosixPath(row.cells[path_column].replace("\\", "/")))


def _grouped(files: Sequence[str], key: Callable[[PurePosixPath], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for file in files:
        groups.setdefault(normalize("NFC", key(PurePosixPath(file))), []).append(file)
    return groups


def _ambiguous_rows_problem(csv: str, path_column: str, lines: Sequence[int]) -> list[LandingProblem]:
    if not lines:
        return []
    detail = (
        f"{csv}: {len(lines)} rows name several images each, the first in line {lines[0]}; write the path below the "
        f"dataset's folder in {path_column}"
    )
    return [LandingProblem(csv, "bad_row", detail)]


LAYOUT = Layout("image_folder", scan, probe_image)
