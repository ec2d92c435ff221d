"""Finds patients by the rule of a lane: in a table, or in file names by a pattern.

For layouts that know no more of a patient than the name of each file. Images of which the rule tells nothing keep the
patient that their layout gives them, and are listed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from unicodedata import normalize

from uveitis_assets.landing.layouts.csv_tables import read_landing_csv
from uveitis_assets.landing.layouts.file_names import FileNames, without_image_extension
from uveitis_assets.landing.layouts.row_matching import match_rows
from uveitis_assets.landing.samples import LandingProblem, LandingScan
from uveitis_assets.messages import enumeration

if TYPE_CHECKING:
    from uveitis_assets.landing.configuration import DatasetConfiguration
    from uveitis_assets.landing.folder_tree import LandingTree

_MOST_NAMES = 10


def apply_patient_rule(dataset: DatasetConfiguration, tree: LandingTree, scan: LandingScan) -> LandingScan:
    """Give every sample the patient that the lane's ``patients`` finds; without them the scan as it is."""
    rule = dataset.patients
    if rule is None:
        return scan
    paths = [sample.relative_path for sample in scan.samples]
    patients: Mapping[str, str]
    problems: list[LandingProblem] = []
    lost: list[LandingProblem] = []
    if rule.csv is not None:
        rows, lost = read_landing_csv(tree, rule.csv, (rule.path_column, rule.patient_column))
        shows_names = not dataset.image_folder.identify_by_content
        row_by_path, problems = match_rows(rows, FileNames(paths), rule.csv, rule.path_column, shows_names=shows_names)
        patients = {path: row.cells[rule.patient_column] for path, row in row_by_path.items()}
        place = f"{rule.csv} has no row with a patient; add the rows"
    else:
        patients = patients_in_names(paths, rule.pattern or "")
        place = "`patients.pattern` does not match the whole name without extension; correct the pattern or the names"
    samples = tuple(
        replace(sample, patient=patient, patient_from_name=False)
        if (patient := patients.get(sample.relative_path))
        else sample
        for sample in scan.samples
    )
    without = [path for path in paths if not patients.get(path)]
    problems += without_patient(dataset, without, place) if not lost else []
    return replace(
        scan,
        samples=samples,
        problems=(*scan.problems, *lost, *problems),
        lost_patients=(*scan.lost_patients, *(lost if samples else ())),
    )


def patients_in_names(paths: Sequence[str], pattern: str) -> Mapping[str, str]:
    """Patient ids by path, of the paths that the pattern matches.

    Args:
        paths: below the dataset's folder.
        pattern: regular expression with the group ``patient``, of the file name without extension or, where it holds a
            slash, of the path without extension; it has to match the whole text, in composed Unicode.
    """
    expression = re.compile(normalize("NFC", pattern))
    patients: dict[str, str] = {}
    for path in paths:
        text = normalize("NFC", without_image_extension(path))
        found = expression.fullmatch(text if "/" in pattern else text.rpartition("/")[2])
        patient = ((found["patient"] if found else None) or "").strip()
        if patient:
            patients[path] = patient
    return patients


def without_patient(dataset: DatasetConfiguration, paths: Sequence[str], place: str) -> list[LandingProblem]:
    """One problem for all images whose patient is not known.

    Args:
        dataset: the lane.
        paths: of the images.
        place: where no patient was found, and what to do.
    """
    if not paths:
        return []
    names = "" if dataset.image_folder.identify_by_content else f" ({enumeration(paths, _MOST_NAMES)})"
    detail = (
        f"{len(paths)} images{names} count as patients of their own, or keep the patient that they had: of them {place}"
    )
    return [LandingProblem(paths[0], "no_patient", detail)]
