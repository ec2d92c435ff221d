"""Lists a landing folder: its files, and the links, names and folders that cannot be followed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from uveitis_assets.landing.samples import LandingProblem


@dataclass(frozen=True, slots=True)
class LandingTree:
    """Files below a dataset's raw folder as sorted POSIX paths relative to it.

    Broken links and links to files outside the raw root are listed like files, so that they get an entry and a
    reason when they are read. Hidden files and folders (leading dot) are left out.
    """

    folder: Path
    raw_root: Path
    files: tuple[str, ...]
    problems: tuple[LandingProblem, ...]

    def below(self, prefix: str) -> tuple[str, ...]:
        """Files in the folder ``prefix`` and its subfolders."""
        start = prefix.rstrip("/") + "/"
        return tuple(file for file in self.files if file.startswith(start))


def list_landing_tree(folder: Path, raw_root: Path) -> LandingTree:
    """List a dataset's raw folder; ``raw_root`` is the boundary that symlinks must not leave."""
    problems: list[LandingProblem] = []
    if not folder.is_dir():
        problems.append(
            LandingProblem(
                ".", "missing_folder", f"expected the folder {folder}, found none; create it or correct the link"
            )
        )
    files: list[str] = []
    for prefix, names, _ in walk_landing_folders(folder, raw_root, problems):
        try:
            "\0".join(names).encode()
        except UnicodeEncodeError:
            files.extend(prefix + name for name in names if _is_decodable(prefix, name, problems))
        else:
            files.extend(prefix + name for name in names)
    return LandingTree(folder, raw_root, tuple(sorted(files)), tuple(problems))


def walk_landing_folders(
    folder: Path, raw_root: Path, problems: list[LandingProblem]
) -> Iterator[tuple[str, list[str], str]]:
    """Yield (prefix ending in ``/`` or empty, unsorted file names, folder path) for every folder.

    Costs one directory listing per folder and a few system calls per symlink; files are not touched. What cannot be
    followed is appended to ``problems``.
    """
    boundary = os.path.realpath(raw_root)
    pending: list[tuple[str, str, tuple[str, ...]]] = [("", str(folder), (os.path.realpath(folder),))]
    while pending:
        prefix, path, ancestors = pending.pop()
        names: list[str] = []
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name[0] == ".":
                        continue
                    # First what nearly all entries are: a sensor lists them twice a minute.
                    if entry.is_file(follow_symlinks=False):
                        names.append(entry.name)
                    elif entry.is_dir(follow_symlinks=False):
                        pending.append((f"{prefix}{entry.name}/", entry.path, ancestors))
                    elif not entry.is_symlink() or not _leads_to_folder(entry):
                        names.append(entry.name)
                    else:
                        target = os.path.realpath(entry.path)
                        place = prefix + entry.name
                        if not _lies_in(target, boundary):
                            problems.append(
                                LandingProblem(
                                    place,
                                    "escapes_root",
                                    "the folder link leads out of the raw folder; copy the folder below it instead",
                                )
                            )
                        elif any(_lies_in(ancestor, target) for ancestor in ancestors):
                            problems.append(
                                LandingProblem(place, "symlink_loop", "the folder link leads back to itself; remove it")
                            )
                        else:
                            pending.append((place + "/", entry.path, (*ancestors, target)))
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(
                LandingProblem(prefix or ".", "unreadable", f"the folder cannot be listed: {error.strerror}")
            )
            continue
        yield prefix, names, path


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _is_decodable(prefix: str, name: str, problems: list[LandingProblem]) -> bool:
    try:
        (prefix + name).encode()
    except UnicodeEncodeError:
        problems.append(
            LandingProblem(ascii(prefix + name), "undecodable_name", "expected a UTF-8 file name; rename the file")
        )
        return False
    return True
