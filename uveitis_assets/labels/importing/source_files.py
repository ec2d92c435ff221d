"""Reads the files that an import names: label files of the format, and the names of class numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from uveitis_assets.labels.importing.foreign import ForeignFileError, ReaderOptions
from uveitis_assets.labels.importing.request import ForeignFormat, ImportRequest

_EXTENSIONS: Mapping[ForeignFormat, str] = {
    "yolo": ".txt",
    "yolo-obb": ".txt",
    "yolo-seg": ".txt",
    "dota": ".txt",
    "coco": ".json",
    "labelme": ".json",
    "label-studio": ".json",
    "cvat": ".xml",
}
_UNITS_OPEN = frozenset({"yolo", "yolo-obb", "yolo-seg", "dota"})


def read_source_files(request: ImportRequest) -> Iterator[tuple[str, bytes]]:
    """Names, relative to the source, and bytes of the files to read, sorted, one file after the other.

    A file given directly is read whatever its extension is; the file with the names of classes holds no labels.

    Raises:
        ForeignFileError: there is none, or a file or folder cannot be read.
    """
    source, extension = request.source, _EXTENSIONS[request.format]
    try:
        paths = [source] if source.is_file() else sorted(_files_below(source, extension))
        if request.names is not None:
            paths = [path for path in paths if not path.samefile(request.names)]
        if not paths:
            raise ForeignFileError(f"{source}: expected {request.format} files (*{extension}), found none")
        root = source.parent if source.is_file() else source
        for path in paths:
            yield path.relative_to(root).as_posix(), _read(path)
    except OSError as error:
        raise ForeignFileError(f"{error.filename}: {error.strerror}; make it readable") from error


def reader_options(request: ImportRequest) -> ReaderOptions:
    """What the readers need.

    Raises:
        ForeignFileError: an option that the format does not leave open is stated, or one that it needs is not.
    """
    if request.format in _UNITS_OPEN:
        if request.units is None:
            raise ForeignFileError(f"--units: expected pixel or share for {request.format}, found none")
    elif request.units is not None:
        raise ForeignFileError(f"--units: {request.format} files define their units; leave the option out")
    units = request.units or "pixel"
    if not request.format.startswith("yolo"):
        if request.first_class is not None or request.names is not None:
            raise ForeignFileError(
                f"--first-class and --names: {request.format} files hold class names; leave them out"
            )
        return ReaderOptions(units)
    if request.names is None:
        if request.first_class is None and not request.classes:
            raise ForeignFileError(
                "--first-class: expected 0 or 1, found none: is the first class number of the files 0 or 1?"
            )
        return ReaderOptions(units)
    return ReaderOptions(units, _class_names(request.names, request.first_class))


def _class_names(path: Path, first_class: int | None) -> dict[int, str]:
    """Names of class numbers from a list of names or YOLO's data.yaml."""
    is_yaml = path.suffix.lower() in {".yaml", ".yml"}
    try:
        text = path.read_text("utf-8-sig")
        content = yaml.safe_load(text) if is_yaml else text.split("\n")
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ForeignFileError(f"{path}: expected the names of classes, found {error}") from error
    names = content.get("names") if isinstance(content, dict) else content
    if isinstance(names, dict) and names and all(isinstance(number, int) for number in names):
        if first_class not in {None, min(names)}:
            raise ForeignFileError(
                f"--first-class {first_class}: {path} says that the first class is {min(names)}; leave the option out, "
                "or correct the file"
            )
        return {number: _class_name(name, f"{path}: names: {number}") for number, name in names.items()}
    if not isinstance(names, list):
        raise ForeignFileError(f"{path}: expected a list of names, or `names` in a YAML file")
    while names and _is_blank(names[-1]):
        names = names[:-1]
    if not names:
        raise ForeignFileError(f"{path}: expected the names of classes, found none")
    if first_class is None:
        raise ForeignFileError(f"--first-class: expected 0 or 1 for the names of {path}, found none")
    entry = f"{path}: names: entry " if is_yaml else f"{path}:"
    # A blank line counts as a class in some tools and as none in others: the classes after it would be uncertain.
    listed = [_class_name(name, f"{entry}{number}") for number, name in enumerate(names, start=1)]
    return dict(enumerate(listed, start=first_class))


def _class_name(name: Any, place: str) -> str:
    if _is_blank(name):
        raise ForeignFileError(f"{place}: expected the name of a class, found none; remove the line or name the class")
    return str(name).strip()


def _is_blank(name: Any) -> bool:
    return name is None or not str(name).strip()


def _files_below(folder: Path, extension: str) -> Iterator[Path]:
    for place, _, names in os.walk(folder, onerror=_raise):
        for path in (Path(place, name) for name in names):
            if path.suffix.lower() == extension and path.is_file():
                yield path


def _raise(error: OSError) -> NoReturn:
    raise error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        error.filename = str(path)  # a failing disk tells no name
        raise
