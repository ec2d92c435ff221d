"""Finds the file that a name in a table means, and files whose names are almost it.

A name may lack the folder or the extension, and write the extension in another case or as ``.jpeg`` for ``.jpg``. The
first kind of comparison that finds any file decides; where it finds several, none is chosen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from difflib import get_close_matches
from pathlib import PurePosixPath
from unicodedata import normalize

from uveitis_assets.landing.image_probe import is_image_name

_ONE_OF_ALIASES = {".jpeg": ".jpg", ".tiff": ".tif"}
_NUMBER = re.compile(r"\d+")
_OTHER_EXTENSION = re.compile(r"\.[A-Za-z]{2,5}$")
_MOST_COMPARED = 5_000
_CLOSE = 0.75


def without_image_extension(name: str) -> str:
    """The name without the extension of an image; names without one stay."""
    return name[: name.rfind(".")] if is_image_name(name) else name


class FileNames:
    """Files below the dataset's folder, found by what tables call them.

    Args:
        files: POSIX paths below the dataset's folder, all with the extension of an image.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self._exact = frozenset(files)
        self._files = tuple(files)
        self._groups: dict[tuple[bool, int], dict[str, list[str]]] = {}
        self._alike: dict[str, list[str]] = {}
        self._by_numbers: dict[str, list[str]] = {}

    @property
    def files(self) -> tuple[str, ...]:
        """All of them, as given."""
        return self._files

    def is_path(self, cell: str) -> bool:
        """Say whether a cell is the very path of a file."""
        return _path(cell) in self._exact

    def find(self, cell: str) -> list[str]:
        """The files that a cell means: none, one, or several where the name does not decide."""
        path = _path(cell)
        if path in self._exact:
            return [path]
        written = _composed(path)
        is_whole = "/" in written
        found = self._grouped_by(0, is_whole=True).get(written)
        for number, (_, of_cell) in enumerate(_COMPARISONS):
            found = found or self._grouped_by(number, is_whole=is_whole).get(of_cell(written))
        return found or []

    def almost(self, cell: str, taken: Collection[str], *, compares_letters: bool = True) -> str | None:
        """The one file that is not taken and whose name is almost the cell's, or None.

        Names that differ in case, separators, leading zeros, folder or extension only are almost the same; with
        ``compares_letters``, which takes longer, also those that differ in a few letters. Numbers have to be equal: a
        name with another number is that of another image.
        """
        if not self._alike:
            self._alike = _grouped(sorted(self._exact), lambda file: _folded(_file_stem(_name(file))))
            self._by_numbers = _grouped(self._alike, _numbers)
        stem = _file_stem(_name(_path(cell)))
        wanted = [folded for folded in (_folded(stem), _folded(_OTHER_EXTENSION.sub("", stem))) if folded]
        names = [name for name in wanted if name in self._alike] or self._close(wanted[:compares_letters])
        free = next((files for name in names if (files := [f for f in self._alike[name] if f not in taken])), [])
        return free[0] if len(free) == 1 else None

    def _grouped_by(self, number: int, *, is_whole: bool) -> dict[str, list[str]]:
        """Files by a comparison of their whole paths or of their names; made when it is first asked for."""
        if (is_whole, number) not in self._groups:
            of_file = _COMPARISONS[number][0]
            self._groups[is_whole, number] = _grouped(self._files, of_file, of=str if is_whole else _name)
        return self._groups[is_whole, number]

    def _close(self, wanted: Sequence[str]) -> list[str]:
        """Names that differ from a wanted one in a few letters."""
        close: list[str] = []
        for name in wanted:
            names = self._by_numbers.get(_numbers(name), [])[:_MOST_COMPARED]
            close += get_close_matches(name, names, n=3, cutoff=_CLOSE)
        return close


def _path(cell: str) -> str:
    return str(PurePosixPath(cell.replace("\\", "/")))


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _composed(name: str) -> str:
    return normalize("NFC", name)


def _file_stem(name: str) -> str:
    return without_image_extension(_composed(name))


def _small_extension(name: str) -> str:
    stem = _file_stem(name)
    return stem + _composed(name)[len(stem) :].lower()


def _usual_extension(name: str) -> str:
    stem = _file_stem(name)
    extension = _composed(name)[len(stem) :].lower()
    return stem + _ONE_OF_ALIASES.get(extension, extension)


# In what a file and a cell have to be equal, from the strictest on. A cell without an extension has the stem alone; one
# with an extension does not mean a file of another.
_COMPARISONS: tuple[tuple[Callable[[str], str], Callable[[str], str]], ...] = (
    (_composed, _composed),
    (_file_stem, _composed),
    (_small_extension, _small_extension),
    (_usual_extension, _usual_extension),
)


def _folded(stem: str) -> str:
    """Letters and digits of a name, in one case and without leading zeros."""
    kept = "".join(character for character in stem.casefold() if character.isalnum())
    return _NUMBER.sub(lambda number: str(int(number[0])), kept)


def _numbers(name: str) -> str:
    return " ".join(_NUMBER.findall(name))


def _grouped(files: Iterable[str], key: Callable[[str], str], of: Callable[[str], str] = str) -> dict[str, list[str]]:
    """Files by the key of a part of their path, of the whole path unless given."""
    groups: dict[str, list[str]] = {}
    for file in files:
        groups.setdefault(key(of(file)), []).append(file)
    return groups
