"""Reads CVAT's XML for images 1.1: boxes, polygons and masks in pixels.

XML is read by expat without document types: entities, which could read files or fill the memory, are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.labels.importing.foreign import (
    ForeignFileError,
    ForeignLabels,
    ForeignShape,
    ReaderOptions,
    corners_of_box,
    rotated,
)
from uveitis_assets.labels.importing.json_files import finite, points_of


@dataclass(slots=True)
class _Element:
    tag: str
    attributes: Mapping[str, str]
    line: int
    children: list[_Element] = field(default_factory=list)


def read_cvat(files: Iterable[tuple[str, bytes]], options: ReaderOptions) -> ForeignLabels:
    """Labels of CVAT files; tags of images are left aside, polylines and points refused."""
    labels = ForeignLabels()
    for name, data in files:
        root = _tree(name, data)
        if root.tag != "annotations":
            raise ForeignFileError(f"{name}:{root.line}: expected the element annotations, found {root.tag}")
        for element in root.children:
            if element.tag == "track":
                # Its lesions are of images that it does not name: those would count as free of lesions.
                raise ForeignFileError(
                    f"{name}:{element.line}: found a track of a video, expected labels of images; export the job as "
                    "CVAT for images"
                )
            if element.tag != "image":
                continue
            image = element.attributes.get("name", "")
            sides = (element.attributes.get(side) for side in ("width", "height"))
            labels.add_image(image, f"{name}:{element.line}", *map(_number_or_text, sides))
            for child in element.children:
                if child.tag == "tag":
                    continue
                place = f"{name}:{child.line}"
                labels.add_shape(image, place, partial(_shape, child, image, place))
    return labels


def _shape(element: _Element, image: str, place: str) -> ForeignShape:
    values = element.attributes
    label_class = values["label"]
    if element.tag == "box":
        x0, y0, x1, y1 = finite([values[key] for key in ("xtl", "ytl", "xbr", "ybr")]).tolist()
        corners = corners_of_box(x0, y0, x1, y1)
        corners = rotated(corners, corners.mean(axis=0), finite(values.get("rotation", 0.0)).item())
        return ForeignShape(image, label_class, "box", (corners,), "pixel", place)
    if element.tag == "polygon":
        points = points_of([point.split(",") for point in values["points"].split(";")])
        return ForeignShape(image, label_class, "outline", (points,), "pixel", place)
    if element.tag == "mask":
        box = [int(values[key]) for key in ("left", "top", "width", "height")]
        pixels = partial(_decoded, values["rle"], box)
        return ForeignShape(image, label_class, "outline", (), "pixel", place, pixels)
    raise ValueError(f"found the shape {element.tag}, expected box, polygon or mask")


def _number_or_text(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _decoded(rle: str, box: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels of an image of ``size`` whose run lengths fill a box, row by row, background first."""
    left, top, width, height = box
    if min(left, top, width, height) < 0 or left + width > size[0] or top + height > size[1]:
        raise ValueError("found a mask that leaves its image")
    counts = [int(count) for count in rle.split(",")]
    if sum(counts) != width * height or min(counts) < 0:
        raise ValueError(f"found run lengths of {sum(counts)} px, expected {width}x{height}")
    pixels = np.zeros(size[::-1], np.bool_)
    of_box = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    pixels[top : top + height, left : left + width] = of_box.reshape(height, width)
    return pixels


def _tree(name: str, data: bytes) -> _Element:
    """The document's element with its descendants and their lines.

    Raises:
        ForeignFileError: not well-formed, or with a document type.
    """
    parser = expat.ParserCreate()
    top = _Element("", {}, 0)
    stack = [top]

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = _Element(tag, attributes, parser.CurrentLineNumber)
        stack[-1].children.append(element)
        stack.append(element)

    def refuse(*_: object) -> None:
        raise ForeignFileError(
            f"{name}:{parser.CurrentLineNumber}: found a document type or an entity, expected plain XML as CVAT writes"
        )

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _tag: stack.pop()
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ForeignFileError(f"{name}:{error.lineno}: expected XML, found {expat.ErrorString(error.code)}") from error
    return top.children[0]
