"""The lesions of one image in raw pixels: what label readers return and the COCO writer takes.

Columns instead of objects, because a fundus image can hold hundreds of components that are projected and clipped
together. Frame: raw image as displayed (after EXIF orientation), pixel edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from uveitis_assets.labels.findings import LabelFinding


@dataclass(frozen=True, slots=True)
class Lesions:
    """Lesions of one image, in the order of its label files.

    Attributes:
        category_ids: int64, shape (n,).
        boxes: float64, shape (n, 4): x0, y0, x1, y1 in raw px, upper edges exclusive.
        outlines: object array of valid shapely polygons or multipolygons, shape (n,), raw px.
        corners: float64, shape (n, 4, 2): the points of oriented boxes as the file has them, raw px; None for masks.
        regions: object array, shape (n,): a ``PixelRegion`` for a lesion with holes, else None; None where no lesion
            can have holes. Outlines are without holes.
        findings: what was doubtful in the label files.
    """

    category_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    outlines: NDArray[np.object_]
    corners: NDArray[np.float64] | None = None
    regions: NDArray[np.object_] | None = None
    findings: tuple[LabelFinding, ...] = ()

    def __len__(self) -> int:
        return len(self.category_ids)

    def take(self, positions: NDArray[np.int64]) -> Lesions:
        """The lesions at ``positions``."""
        corners = None if self.corners is None else self.corners[positions]
        regions = None if self.regions is None else self.regions[positions]
        return Lesions(
            self.category_ids[positions],
            self.boxes[positions],
            self.outlines[positions],
            corners,
            regions,
            self.findings,
        )


def no_lesions(findings: tuple[LabelFinding, ...] = ()) -> Lesions:
    """Lesions of an image that has none."""
    return Lesions(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, object), findings=findings)


def join_lesions(parts: Sequence[Lesions]) -> Lesions:
    """Lesions of several mask files one after the other; corners are kept only when every part has them."""
    findings = tuple(finding for part in parts for finding in part.findings)
    parts = [part for part in parts if len(part)]
    if not parts:
        return no_lesions(findings)
    corners = [part.corners for part in parts if part.corners is not None]
    return Lesions(
        np.concatenate([part.category_ids for part in parts]),
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.outlines for part in parts]),
        np.concatenate(corners) if len(corners) == len(parts) else None,
        np.concatenate([np.full(len(part), None) if part.regions is None else part.regions for part in parts]),
        findings,
    )


def only_areas(outline: shapely.Geometry) -> list[shapely.Polygon]:
    """Polygons of an outline; points and lines that touching shapes leave behind are left out."""
    if isinstance(outline, shapely.Polygon):
        return [outline] if outline.area > 0 else []
    return [
        part
        for part in shapely.get_parts(shapely.get_parts(outline))
        if isinstance(part, shapely.Polygon) and part.area > 0
    ]
