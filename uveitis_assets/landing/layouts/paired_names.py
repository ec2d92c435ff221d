"""Finds file names that look like several images of one person: both eyes, or numbered ones."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from unicodedata import normalize

from uveitis_assets.landing.layouts.file_names import without_image_extension

# An eye as a word of its own or behind a record number (0012L), perhaps with a running number (left2, L-2).
_EYE = re.compile(
    r"(?:(?<![^\W\d_])(?i:left|right|o[dsg]|[lr])|(?<=[a-z])(?:Left|Right|O[DSG]))(?:[-_ .]?\d{1,2})?(?![^\W_])"
)
_SEPARATORS = re.compile(r"[\W_]+")
_RUNNING_NUMBER = re.compile(r"(?P<base>.*[^\W_])(?:[-_ .]+| *\()(?P<number>\d{1,2})\)?")
_LARGEST_SERIES = 8
_FEWEST_SERIES_WITHOUT_NUMBERS = 3
_KIND_BY_WORD = {
    **dict.fromkeys(("left", "right"), "left/right"),
    **dict.fromkeys(("od", "os", "og"), "OD/OS"),
    **dict.fromkeys(("l", "r"), "L/R"),
}
_EYE_PATTERN = r"(?i)(?P<patient>.+?)([-_ .]|(?<=\d))(left|right|o[dsg]|[lr])([-_ .]?\d+)?"
_NUMBER_PATTERN = r"(?P<patient>.+?)[-_ .(]+\d+\)?"


@dataclass(frozen=True, slots=True)
class PairedNames:
    """Images whose names differ in ``kind`` (``left/right``, ``OD/OS``, ``L/R`` or ``1/2``) only."""

    kind: str
    n_persons: int
    n_images: int

    @property
    def pattern(self) -> str:
        """A value for ``patients.pattern`` to begin with."""
        return _NUMBER_PATTERN if self.kind == "1/2" else _EYE_PATTERN


def paired_names(paths: Iterable[str]) -> list[PairedNames]:
    """Groups of file names that seem to be of one person each, counted by what they differ in.

    Args:
        paths: of images below the dataset's folder. Folders count only where the name is nothing but an eye.
    """
    eyes: dict[str, list[str]] = {}
    series: dict[str, int] = {}
    for path in paths:
        stem = normalize("NFC", without_image_extension(PurePosixPath(path).name))
        found = [*_EYE.finditer(stem)]
        if found:
            word = re.sub(r"[\W\d_]", "", found[-1][0]).casefold()
            rest = _SEPARATORS.sub("_", _EYE.sub("", stem)).strip("_")
            eyes.setdefault(rest or f"{PurePosixPath(path).parent}/", []).append(_KIND_BY_WORD[word])
        elif number := _RUNNING_NUMBER.fullmatch(stem):
            series[number["base"]] = series.get(number["base"], 0) + 1
    groups = [(kinds[0], len(kinds)) for kinds in eyes.values() if len(kinds) > 1]
    groups += _series_groups(series)
    return [
        PairedNames(kind, sum(found == kind for found, _ in groups), sum(n for found, n in groups if found == kind))
        for kind in ("left/right", "OD/OS", "L/R", "1/2")
        if any(found == kind for found, _ in groups)
    ]


def _series_groups(series: dict[str, int]) -> list[tuple[str, int]]:
    """Short numbered series; a folder whose images are only counted through is not of one person."""
    short = {base: n for base, n in series.items() if 1 < n <= _LARGEST_SERIES}
    named = [base for base in short if not any(character.isdigit() for character in base)]
    if len(named) < _FEWEST_SERIES_WITHOUT_NUMBERS:
        short = {base: n for base, n in short.items() if base not in named}
    return [("1/2", n) for n in short.values()]
