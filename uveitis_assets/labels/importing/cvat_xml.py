"""Reads CVAT's XML for images 1.1: boxes, polygons and masks in pixels.

XML is read by expat without document types: entities, which could read files or fill the memory, are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.parsers import expat

import numpy as np

from uveitis_assets.labels.importing.foreign import (
    ForeignFileError,
    ForeignLabels,
    ForeignShape,
    ReaderOptions,
    corners_of_box,
    rotated,
)
from uveitis_assets.labels.importing.json_files import finite


@dataclass(slots=True)
class _Element:
    tag: str
    attributes: Mapping[str, str]
    line: int
    children: list[_Element] = field(default_factory=list)


def read_cvat(files: Sequence[tuple[str, bytes]], options: ReaderOptions) -> ForeignLabels:
    """Labels of CVAT files; tags of images are left aside, polylines, points and tracks refused."""
    labels = ForeignLabels()
    for name, data in files:
        if not name.lower().endswith(".xml"):
            continue
        root = _tree(name, data)
        if root.tag != "annotations":
            raise ForeignFileError(f"{name}:{root.line}: expected the element annotations, found {root.tag}")
        for element in root.children:
            if element.tag == "track":
                labels.refuse("", f"{name}:{element.line}", "found a track of a video, expected labels of images")
            if element.tag != "image":
                continue
            image = element.attributes.get("name", "")
            labels.add_image(image, element.attributes.get("width"), element.attributes.get("height"))
            for child in element.children:
                if child.tag == "tag":
                    continue
                place = f"{name}:{child.line}"
                try:
                    labels.shapes.append(_shape(child, element, place))
                except (KeyError, ValueError) as error:
                    labels.refuse(image, place, f"found no {error}" if isinstance(error, KeyError) else str(error))
    return labels


def _shape(element: _Element, image: _Element, place: str) -> ForeignShape:
    values, name = element.attributes, image.attributes.get("name", "")
    label_class = values["label"]
    if element.tag == "box":
        x0, y0, x1, y1 = finite([values[key] for key in ("xtl", "ytl", "xbr", "ybr")]).tolist()
        corners = corners_of_box(x0, y0, x1, y1)
        corners = rotated(corners, corners.mean(axis=0), float(values.get("rotation", 0.0)))
        return ForeignShape(name, label_class, "box", (corners,), "pixel", place)
    if element.tag == "polygon":
        points = finite([point.split(",") for point in values["points"].split(";")]).reshape(-1, 2)
        return ForeignShape(name, label_class, "outline", (points,), "pixel", place)
    if element.tag == "mask":
        left, top, width, height = (int(values[key]) for key in ("left", "top", "width", "height"))
        counts = [int(count) for count in values["rle"].split(",")]
        if sum(counts) != width * height or min(counts) < 0:
            raise ValueError(f"found run lengths of {sum(counts)} px, expected {width}x{height}")
        full_width, full_height = int(image.attributes["width"]), int(image.attributes["height"])
        if left < 0 or top < 0 or left + width > full_width or top + height > full_height:
            raise ValueError("found a mask that leaves its image")
        pixels = np.zeros((full_height, full_width), np.bool_)
        values_of_pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        pixels[top : top + height, left : left + width] = values_of_pixels.reshape(height, width)
        return ForeignShape(name, label_class, "outline", (), "pixel", place, pixels)
    raise ValueError(f"found the shape {element.tag}, expected box, polygon or mask")


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
