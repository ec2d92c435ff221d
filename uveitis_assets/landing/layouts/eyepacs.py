"""EyePACS: ``train/<patient>_<left|right>.jpeg`` with grades in ``trainLabels.csv`` (image, level)."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from uveitis_assets.landing.image_probe import is_image_name, probe_image
from uveitis_assets.landing.layouts.csv_tables import read_landing_csv
from uveitis_assets.landing.layouts.eye import eye_from_name
from uveitis_assets.landing.layouts.file_names import FileNames
from uveitis_assets.landing.layouts.grade_table import parse_grade
from uveitis_assets.landing.layouts.registry import Layout
from uveitis_assets.landing.layouts.row_matching import match_rows
from uveitis_assets.landing.samples import LandedSample, LandingProblem, LandingScan

if TYPE_CHECKING:
    from uveitis_assets.landing.configuration import DatasetConfiguration
    from uveitis_assets.landing.folder_tree import LandingTree

_CSV = "trainLabels.csv"


def scan(dataset: DatasetConfiguration, tree: LandingTree) -> LandingScan:
    """Read the layout; dataset tag the lane's name, patient the stem before ``_``, notes ``grade=k``."""
    problems = list(tree.problems)
    files = [file for file in tree.below("train") if is_image_name(file)]
    names = FileNames(files)
    rows, csv_problems = read_landing_csv(tree, _CSV, ("image", "level"))
    problems.extend(csv_problems)
    grade_by_line: dict[int, int] = {}
    for row in rows:
        grade, problem = parse_grade(row.cells["level"], f"{_CSV}:{row.line}")
        problems.extend([problem] if problem else [])
        if grade is not None:
            grade_by_line[row.line] = grade
    row_by_file, row_problems = match_rows(rows, names, _CSV, "image")
    images = []
    for file in files:
        stem = PurePosixPath(file).stem
        matched = row_by_file.get(file)
        grade = grade_by_line.get(matched.line) if matched else None
        images.append(
            LandedSample(
                relative_path=file,
                dataset=dataset.name,
                patient=stem.split("_", 1)[0],
                eye=eye_from_name(stem),
                label_format="none" if grade is None else "grade",
                label_paths=() if grade is None else (_CSV,),
                notes="" if grade is None else f"grade={grade}",
            )
        )
    if not images:
        problems.append(LandingProblem("train", "no_images", "expected images in train/, found none"))
    problems.extend(row_problems)
    return LandingScan(tuple(images), tuple(problems))


LAYOUT = Layout("eyepacs", scan, probe_image)
