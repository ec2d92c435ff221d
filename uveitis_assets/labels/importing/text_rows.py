"""Reads YOLO and DOTA files: a text file per image, a row per lesion."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Literal

import numpy as np

from uveitis_assets.labels.importing.foreign import (
    ForeignFileError,
    ForeignLabels,
    ForeignShape,
    ReaderOptions,
    ShapeKind,
    Units,
    corners_of_box,
)

YoloRows = Literal["yolo", "yolo-obb", "yolo-seg"]
# Lists of classes or images that tools write beside the labels; images can have these names too.
_LISTS = frozenset({"classes.txt", "labels.txt", "train.txt", "val.txt", "test.txt"})
# YOLO tools write class numbers as floats too.
_CLASS_NUMBER = re.compile(r"(\d+)(\.0*)?", re.ASCII)
_EXPECTED = {
    "yolo": "5 values: class x-centre y-centre width height (6 with a confidence)",
    "yolo-obb": "9 values: class x1 y1 x2 y2 x3 y3 x4 y4 (10 with a confidence)",
    "yolo-seg": "a class and at least three points x y (and a confidence)",
}
_Row = tuple[str, ShapeKind, list[float], float | None]


def read_yolo(files: Iterable[tuple[str, bytes]], options: ReaderOptions, *, rows: YoloRows) -> ForeignLabels:
    """Labels of YOLO files of boxes, oriented boxes or polygons.

    An empty file is an image without lesions. Lines that begin with # are comments. A class number may be written as
    4.0.
    """

    def parse(fields: Sequence[str]) -> _Row:
        number = _CLASS_NUMBER.fullmatch(fields[0])
        if number is None:
            raise ValueError(f"found class {fields[0]!r}, expected a class number")
        label_class = _named(int(number[1]), options)
        n_values = len(fields)
        has_confidence = n_values % 2 == 0
        n_points = (n_values - 1 - has_confidence) // 2
        if not (
            n_points == {"yolo": 2, "yolo-obb": 4}.get(rows, n_points) and n_points >= (2 if rows == "yolo" else 3)
        ):
            raise ValueError(f"found {n_values} values, expected {_EXPECTED[rows]}")
        values = [_number(value) for value in fields[1:]]
        confidence = values.pop() if has_confidence else None
        if rows == "yolo":
            x, y, width, height = values
            box = corners_of_box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            values = box.ravel().tolist()
        return label_class, "outline" if rows == "yolo-seg" else "box", values, confidence

    return _read(files, options, parse, skipped=("#",))


def read_dota(files: Iterable[tuple[str, bytes]], options: ReaderOptions) -> ForeignLabels:
    """Labels of DOTA files: ``x1 y1 x2 y2 x3 y3 x4 y4 category difficult``; the difficulty is not used."""

    def parse(fields: Sequence[str]) -> _Row:
        if len(fields) not in {9, 10}:
            raise ValueError(f"found {len(fields)} values, expected x1 y1 x2 y2 x3 y3 x4 y4 category difficult")
        return fields[8], "box", [_number(value) for value in fields[:8]], None

    return _read(files, options, parse, skipped=("imagesource:", "gsd:", "#"))


def _read(
    files: Iterable[tuple[str, bytes]],
    options: ReaderOptions,
    parse: Callable[[Sequence[str]], _Row],
    *,
    skipped: tuple[str, ...],
) -> ForeignLabels:
    labels = ForeignLabels()
    for name, data in files:
        lines = list(_lines(data, name))
        if PurePosixPath(name).name.lower() in _LISTS and _is_list([text for _, text in lines]):
            continue
        image = str(PurePosixPath(name).with_suffix(""))
        labels.add_image(image, name)
        for line, text in lines:
            if not text.lower().startswith(skipped):
                place = f"{name}:{line}"
                labels.add_shape(image, place, partial(_shape, parse, text, image, options.units, place))
    return labels


def _shape(parse: Callable[[Sequence[str]], _Row], text: str, image: str, units: Units, place: str) -> ForeignShape:
    label_class, kind, values, confidence = parse(text.split())
    points = np.reshape(np.array(values, np.float64), (-1, 2))
    return ForeignShape(image, label_class, kind, (points,), units, place, confidence=confidence)


def _is_list(lines: Sequence[str]) -> bool:
    """Whether lines name classes or images: none of them has the four numbers that a lesion has at least."""
    return bool(lines) and not any(sum(map(_is_number, line.split())) >= 4 for line in lines)


def _is_number(text: str) -> bool:
    try:
        _number(text)
    except ValueError:
        return False
    return True


def _lines(data: bytes, name: str) -> Iterator[tuple[int, str]]:
    """Numbers and text of the lines that are not blank."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ForeignFileError(f"{name}: found byte 0x{data[error.start]:02x}, expected UTF-8 text") from error
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        if line.strip():
            yield number, line.strip()


def _named(number: int, options: ReaderOptions) -> str:
    if options.class_names is None:
        return str(number)
    if number not in options.class_names:
        known = ", ".join(map(str, sorted(options.class_names)))
        raise ValueError(f"found class {number}, expected one of {known}, those of --names")
    return options.class_names[number]


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(f"found {text!r}, expected a number") from error
    if not math.isfinite(value) or "_" in text:
        raise ValueError(f"found {text}, expected a finite number")
    return value
