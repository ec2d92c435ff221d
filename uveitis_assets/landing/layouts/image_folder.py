"""Any nested folder of images, with an optional CSV of patient, eye and grade.

For datasets without a layout of their own. Without a patient column every image is its own patient.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from uveitis_assets.landing.image_probe import is_image_name, probe_image
from uveitis_assets.landing.layouts.csv_tables import CsvRow, read_landing_csv
from uveitis_assets.landing.layouts.eye import eye_from_name
from uveitis_assets.landing.layouts.file_names import FileNames
from uveitis_assets.landing.layouts.grade_table import parse_grade
from uveitis_assets.landing.layouts.patient_rule import without_patient
from uveitis_assets.landing.layouts.registry import Layout
from uveitis_assets.landing.layouts.row_matching import match_rows
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
    csv_problems: list[LandingProblem] = []
    if options.csv is not None:
        columns = (options.patient_column, options.eye_column, options.grade_column)
        rows, csv_problems = read_landing_csv(
            tree, options.csv, (options.path_column, *(column for column in columns if column))
        )
        problems.extend(csv_problems)
        shows_names = not options.identify_by_content
        row_by_file, row_problems = match_rows(
            rows, FileNames(files), options.csv, options.path_column, shows_names=shows_names
        )
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
    if options.patient_column is None:
        return LandingScan(tuple(images), tuple(problems))
    if not csv_problems:
        without = [image.relative_path for image in images if image.patient_from_name]
        problems += without_patient(dataset, without, f"{options.csv} has no row with a patient; add the rows")
    return LandingScan(tuple(images), tuple(problems), tuple(csv_problems if images else ()))


LAYOUT = Layout("image_folder", scan, probe_image, patients_from_names=True)
