"""What readers of other tools' label files return: shapes, the images they list, and rows they refuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

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
        pixels: instead of ``parts``, the lesion's pixels, bool, in an image of that size.
        confidence: of a prediction, None for labels.
    """

    image: str
    label_class: str
    kind: ShapeKind
    parts: tuple[NDArray[np.float64], ...]
    units: Units
    place: str
    pixels: NDArray[np.bool_] | None = None
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that is not imported: where, and why; ``image`` is empty where the row names none."""

    image: str
    place: str
    reason: str


@dataclass(slots=True)
class ForeignLabels:
    """All that some files hold.

    ``sizes`` has every image they list, with width and height where they say them.
    """

    shapes: list[ForeignShape] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    sizes: dict[str, tuple[int, int] | None] = field(default_factory=dict)

    def refuse(self, image: str, place: str, reason: str) -> None:
        """List a row as refused."""
        self.refusals.append(Refusal(image, place, reason))

    def add_image(self, name: str, width: object = None, height: object = None) -> None:
        """List an image, with its size where the file says it."""
        sides = [side for side in (width, height) if isinstance(side, int | float | str) and str(side).strip()]
        self.sizes[name] = (round(float(sides[0])), round(float(sides[1]))) if len(sides) == 2 else None


class ForeignFileError(ValueError):
    """A file that is not of the stated format at all; the message names it."""


@dataclass(frozen=True, slots=True)
class ReaderOptions:
    """What files of some formats leave open, as the user states it.

    ``class_names`` are the names of class numbers, by the number as the file has it; None where numbers stand alone.
    """

    units: Units | None = None
    class_names: Mapping[int, str] | None = None


def corners_of_box(x0: float, y0: float, x1: float, y1: float) -> NDArray[np.float64]:
    """Corners (4, 2) of an upright box, clockwise from the upper left."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float64)


def rotated(points: NDArray[np.float64], centre: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    """Points (n, 2) turned clockwise (y points down) around a centre."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned: NDArray[np.float64] = (points - centre) @ np.array([[cosine, sine], [-sine, cosine]]) + centre
    return turned
