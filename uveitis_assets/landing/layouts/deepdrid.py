"""DeepDRiD: regular and ultra-widefield photographs with grades in CSV files and an official split.

Folders as published at github.com/deepdrdoc/DeepDRiD: ``regular_fundus_images/`` and ``ultra-widefield_images/`` with
one subset folder each for training, validation and challenge evaluation (the test set, without grades), images in
``<subset>/Images/<patient>/``. Its CSV files write paths with backslashes, without ``Images`` and sometimes with
another name than the file's. The subset folders may also lie at the top.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from uveitis_assets.landing.image_probe import is_image_name, probe_image
from uveitis_assets.landing.layouts.csv_tables import CsvRow, read_landing_csv, similar_table
from uveitis_assets.landing.layouts.eye import eye_from_name
from uveitis_assets.landing.layouts.file_names import FileNames, without_image_extension
from uveitis_assets.landing.layouts.grade_table import parse_grade
from uveitis_assets.landing.layouts.registry import Layout
from uveitis_assets.landing.layouts.row_matching import (
    ambiguous_rows_problem,
    missing_images_problem,
    row_of_known_image,
)
from uveitis_assets.landing.layouts.unmatched_tables import unmatched_table_problem
from uveitis_assets.landing.samples import Eye, LandedSample, LandingProblem, LandingScan, Split

if TYPE_CHECKING:
    from uveitis_assets.landing.configuration import DatasetConfiguration
    from uveitis_assets.landing.folder_tree import LandingTree

_OPTIONAL_COLUMNS = (
    "patient_id",
    "image_path",
    "position",
    "DR_level",
    "left_eye_DR_Level",
    "right_eye_DR_Level",
    "patient_DR_Level",
)


@dataclass(frozen=True, slots=True)
class _Subset:
    """A folder of the dataset: start of its name, its CSV, its kind of photograph, its official split."""

    folder_start: str
    csv_name: str
    kind: str
    split: Split
    is_graded: bool


_SUBSETS = (
    _Subset("regular-fundus-training", "regular-fundus-training.csv", "regular", "train", True),
    _Subset("regular-fundus-validation", "regular-fundus-validation.csv", "regular", "val", True),
    _Subset("online-challenge1", "challenge1_upload.csv", "regular", "test", False),
    _Subset("challenge1_upload", "challenge1_upload.csv", "regular", "test", False),
    _Subset("ultra-widefield-training", "ultra-widefield-training.csv", "uwf", "train", True),
    _Subset("ultra-widefield-validation", "ultra-widefield-validation.csv", "uwf", "val", True),
    _Subset("online-challenge3", "challenge3_upload.csv", "uwf", "test", False),
    _Subset("challenge3_upload", "challenge3_upload.csv", "uwf", "test", False),
)


def scan(dataset: DatasetConfiguration, tree: LandingTree) -> LandingScan:
    """Read all subsets with grades (notes ``grade=k``) and official splits.

    Dataset tags are ``<lane>_regular`` and ``<lane>_uwf``; the lane is normally called ``deepdrid``. An image
    without a row lands unlabelled, with its patient and eye from the file name.
    """
    files_by_folder: dict[str, list[str]] = {}
    for file in tree.files:
        folder = _subset_folder(file)
        if folder is not None:
            files_by_folder.setdefault(folder, []).append(file)
    images: list[LandedSample] = []
    problems = list(tree.problems)
    lost: list[LandingProblem] = []
    for folder, files in sorted(files_by_folder.items()):
        subset = _subset_of(PurePosixPath(folder).name)
        if subset is not None:
            found, found_problems, found_lost = _scan_subset(tree, dataset.name, subset, folder, files)
            images.extend(found)
            problems.extend(found_problems)
            lost.extend(found_lost)
    if not images:
        names = ", ".join(dict.fromkeys(subset.folder_start for subset in _SUBSETS))
        problems.append(LandingProblem(".", "no_images", f"expected images in folders named {names}; found none"))
    return LandingScan(tuple(sorted(images, key=lambda image: image.relative_path)), tuple(problems), tuple(lost))


def _subset_of(folder_name: str) -> _Subset | None:
    name = folder_name.lower()
    return next((subset for subset in _SUBSETS if name.startswith(subset.folder_start)), None)


def _subset_folder(file: str) -> str | None:
    parents = file.split("/")[:-1]
    for depth, name in enumerate(parents):
        if _subset_of(name) is not None:
            return "/".join(parents[: depth + 1])
    return None


def _scan_subset(
    tree: LandingTree, lane: str, subset: _Subset, folder: str, files: list[str]
) -> tuple[list[LandedSample], list[LandingProblem], tuple[LandingProblem, ...]]:
    """Samples of a subset, its problems, and those of them that cost patients (see `LandingScan`)."""
    image_files = [file for file in files if is_image_name(file)]
    csv = next((file for file in files if PurePosixPath(file).name.lower() == subset.csv_name), None)
    row_by_file: dict[str, CsvRow] = {}
    if csv is None:
        expected = f"{folder}/{subset.csv_name}"
        detail = f"expected {expected}, found none; its images land without grades{similar_table(files, expected)}"
        problems = [LandingProblem(folder, "missing", detail)]
        table_problems = tuple(problems)
    else:
        rows, problems = read_landing_csv(tree, csv, ("image_id",), _OPTIONAL_COLUMNS)
        table_problems = tuple(problems)
        row_by_file, row_problems = _match_rows(rows, folder, image_files, csv)
        problems.extend(row_problems)
    images = []
    # Published file names begin with the patient: only where they do not, an unread table costs patients.
    unnamed = any("_" not in _identifier(PurePosixPath(file)) for file in image_files if file not in row_by_file)
    for file in image_files:
        path = PurePosixPath(file)
        row = row_by_file.get(file)
        identifier = without_image_extension(row.cells["image_id"]) if row else _identifier(path)
        eye = _eye(row, identifier)
        grade = None
        if row is not None and subset.is_graded:
            grade, problem = parse_grade(_grade_cell(row, eye), f"{csv}:{row.line}")
            problems.extend([problem] if problem else [])
        images.append(
            LandedSample(
                relative_path=file,
                dataset=f"{lane}_{subset.kind}",
                patient=(row.cells.get("patient_id", "") if row else "") or identifier.split("_", 1)[0],
                eye=eye,
                label_format="none" if grade is None else "grade",
                label_paths=() if grade is None or csv is None else (csv,),
                notes="" if grade is None else f"grade={grade}",
                official_split=subset.split,
                identifier=identifier,
            )
        )
    return images, problems, table_problems if unnamed else ()


def _identifier(path: PurePosixPath) -> str:
    """The image id a file name stands for: ``121/l3.jpg`` is ``121_l3``, ``1/1_l1.jpg`` is ``1_l1``."""
    patient = path.parent.name
    if patient.isdigit() and not path.stem.startswith(patient + "_"):
        return f"{patient}_{path.stem}"
    return path.stem


def _match_rows(
    rows: list[CsvRow], folder: str, files: list[str], csv: str
) -> tuple[dict[str, CsvRow], list[LandingProblem]]:
    """Find each row's file by its path, else by the id that the file name stands for.

    Spelling counts first: only a row that finds no file so may write extensions otherwise.
    """
    names = FileNames(files)
    files_by_id: dict[str, list[str]] = {}
    for file in files:
        files_by_id.setdefault(_identifier(PurePosixPath(file)), []).append(file)
    row_by_file: dict[str, CsvRow] = {}
    problems: list[LandingProblem] = []
    missing: list[tuple[int, str]] = []
    ambiguous: list[int] = []
    for row in rows:
        written = PurePosixPath(row.cells.get("image_path", "").replace("\\", "/").lstrip("/"))
        if ".." in written.parts or ":" in str(written)[1:2]:
            detail = f"{csv}:{row.line}: expected a path below {folder} in image_path; correct the cell"
            problems.append(LandingProblem(csv, "escapes_root", detail))
            continue
        inner = PurePosixPath(*written.parts[1:]) if len(written.parts) > 1 else written
        places = [f"{folder}/Images/{inner}", f"{folder}/{inner}", f"{folder}/{written}"]
        identifier = row.cells["image_id"]
        candidates = (
            *([place] for place in places if names.is_path(place)),
            files_by_id.get(identifier, []),
            *(names.find(place) for place in places),
            files_by_id.get(without_image_extension(identifier), []),
        )
        found = next((some for some in candidates if some), [])
        if not found:
            missing.append((row.line, identifier if written == PurePosixPath() else f"{folder}/{inner}"))
        elif len(found) > 1:
            ambiguous.append(row.line)
        elif found[0] in row_by_file:
            problems.append(row_of_known_image(csv, row, row_by_file[found[0]]))
        else:
            row_by_file[found[0]] = row
    problems.extend(missing_images_problem(csv, missing, names, row_by_file))
    problems.extend(ambiguous_rows_problem(csv, "image_path", ambiguous))
    if rows and files and not row_by_file:
        column = "image_path" if any(row.cells.get("image_path") for row in rows) else "image_id"
        cells = [(row.line, row.cells.get(column, "")) for row in rows]
        problems.append(unmatched_table_problem(csv, column, cells, files))
    return row_by_file, problems


def _eye(row: CsvRow | None, identifier: str) -> Eye | None:
    position = row.cells.get("position", "") if row else ""
    return eye_from_name(position) or eye_from_name(identifier)


def _grade_cell(row: CsvRow, eye: Eye | None) -> str:
    """The image's own grade: that of its eye, of the eye that has one, else the patient's."""
    left, right = row.cells.get("left_eye_DR_Level", ""), row.cells.get("right_eye_DR_Level", "")
    own = {"L": left, "R": right}.get(eye or "", "")
    return row.cells.get("DR_level", "") or own or left or right or row.cells.get("patient_DR_Level", "")


def _dataset_tags(lane: str) -> tuple[str, ...]:
    return f"{lane}_regular", f"{lane}_uwf"


LAYOUT = Layout("deepdrid", scan, probe_image, dataset_tags=_dataset_tags)
