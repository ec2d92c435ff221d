"""What readers of other tools' label files return: shapes, the images they list, and rows they refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeGuard

import numpy as np
from numpy.typing import NDArray

Units = Literal["pixel", "share"]
ShapeKind = Literal["box", "outline"]


@dataclass(frozen=True, slots=True)
class ForeignShape:
    """One lesion of a foreign file.

    Attributes:
        image: the image's name as the file has it.
        label_class: the class as the file has it.
        kind: ``box`` for four corners, upright or rotated; ``outline`` for polygons or pixels.
        parts: polygons (n, 2) each, px or shares of the image; of a box its four corners.
        units: of ``parts``.
        place: file and line, or file and annotation, for messages.
        pixels: instead of ``parts``: decodes the lesion's pixels, bool (height, width), for an image of a given width
            and height. They are decoded when the image is converted, because those of all images fill the memory.
        confidence: of a prediction, None for labels.
    """

    image: str
    label_class: str
    kind: ShapeKind
    parts: tuple[NDArray[np.float64], ...]
    units: Units
    place: str
    pixels: Callable[[tuple[int, int]], NDArray[np.bool_]] | None = None
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that is not imported: where, and why; ``image`` is empty where the row names none."""

    image: str
    place: str
    reason: str


@dataclass(frozen=True, slots=True)
class ForeignImage:
    """An image that the files list: its name there, where, and its width and height where they say them."""

    name: str
    place: str
    size: tuple[int, int] | None = None


@dataclass(slots=True)
class ForeignLabels:
    """All that some files hold; ``images`` has an entry for every time that they list an image."""

    shapes: list[ForeignShape] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    images: list[ForeignImage] = field(default_factory=list)

    def refuse(self, image: str, place: str, reason: str) -> None:
        """List a row as refused."""
        self.refusals.append(Refusal(image, place, reason))

    def add_image(self, name: str, place: str, width: object = None, height: object = None) -> None:
        """List an image, with its size where the file says it; sizes that are no whole numbers are refused."""
        size = None
        try:
            size = _stated_size(width, height)
        except UNREADABLE as error:
            self.refuse(name, place, reason_of(error))
        self.images.append(ForeignImage(name, place, size))

    def add_shape(self, image: str, place: str, read: Callable[[], ForeignShape]) -> None:
        """Add the shape that ``read`` returns, or refuse its row."""
        try:
            self.shapes.append(read())
        except UNREADABLE as error:
            self.refuse(image, place, reason_of(error))


# What reading a row raises where it lacks a value or holds one of another kind.
UNREADABLE = (KeyError, TypeError, ValueError, OverflowError)


def reason_of(error: Exception) -> str:
    """What a report says about a row that cannot be read."""
    if isinstance(error, KeyError):
        return f"found no {error}"
    return f"found a value of another kind: {error}" if isinstance(error, TypeError) else str(error)


def _stated_size(width: object, height: object) -> tuple[int, int] | None:
    if width is None and height is None:
        return None
    if not (_is_whole(width) and _is_whole(height)):
        raise ValueError(f"found the size {str(width)[:20]} x {str(height)[:20]}, expected two whole numbers")
    return int(width), int(height)


def _is_whole(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()


class ForeignFileError(ValueError):
    """A file that is not of the stated format at all; the message names it."""


@dataclass(frozen=True, slots=True)
class ReaderOptions:
    """What files of some formats leave open, as the user states it.

    ``class_names`` are the names of class numbers, by the number as the file has it; None where numbers stand alone.
    """

    units: Units = "pixel"
    class_names: Mapping[int, str] | None = None


def corners_of_box(x0: float, y0: float, x1: float, y1: float) -> NDArray[np.float64]:
    """Corners (4, 2) of an upright box, clockwise from the upper left.

    Raises:
        ValueError: a side is negative.
    """
    if x1 < x0 or y1 < y0:
        raise ValueError(f"found a box of {x1 - x0:g} x {y1 - y0:g}, expected a width and a height above 0")
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float64)


def rotated(points: NDArray[np.float64], centre: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    """Points (n, 2) turned clockwise (y points down) around a centre."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned: NDArray[np.float64] = (points - centre) @ np.array([[cosine, sine], [-sine, cosine]]) + centre
    return turned
