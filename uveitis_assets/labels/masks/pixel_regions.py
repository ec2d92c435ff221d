"""Lesions with holes as pixels, and COCO's run-length code of what a window shows of them.

COCO polygons have no holes: all rings of an annotation are filled. A lesion with holes is therefore written as pixels
(`"segmentation": {"size": [height, width], "counts": [...]}`), uncompressed, which every COCO reader takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.imaging.geometry import AxisAlignedTransform

RunLengths = dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class PixelRegion:
    """One lesion with holes.

    Attributes:
        left: column of the first pixel, raw px.
        top: row of the first pixel, raw px.
        pixels: the lesion's own pixels, bool (height, width).
        holes: pixels it encloses, same shape.
    """

    left: int
    top: int
    pixels: NDArray[np.bool_]
    holes: NDArray[np.bool_]

    def shows(self, window: NDArray[np.float64]) -> bool:
        """Whether any pixel of the lesion reaches into a window x0, y0, x1, y1, raw px."""
        height, width = self.pixels.shape
        x0, y0 = np.clip(np.floor(window[:2] - (self.left, self.top)).astype(int), 0, None)
        x1, y1 = np.clip(np.ceil(window[2:] - (self.left, self.top)).astype(int), 0, (width, height))
        return bool(self.pixels[y0:y1, x0:x1].any())

    def run_lengths(self, window_to_raw: AxisAlignedTransform, size: tuple[int, int]) -> RunLengths | None:
        """Run lengths of a window of ``size`` (width, height); None where no hole, or no lesion, shows there.

        A pixel of the window is lesion when its centre lies in a pixel of the lesion.
        """
        width, height = size
        columns, in_columns = self._sampled(window_to_raw, width, axis=0)
        rows, in_rows = self._sampled(window_to_raw, height, axis=1)
        place = np.ix_(rows, columns)
        if not self.holes[place].any() or not self.pixels[place].any():
            return None
        mask = np.zeros((height, width), np.bool_)
        mask[np.ix_(in_rows, in_columns)] = self.pixels[place]
        return encode_run_lengths(mask)

    def _sampled(
        self, window_to_raw: AxisAlignedTransform, length: int, *, axis: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions in the region that the window's pixel centres meet on an axis, and the window's pixels."""
        centres = np.arange(length)[:, None] + np.full(2, 0.5)
        first = (self.left, self.top)[axis]
        at = np.floor(window_to_raw.apply(centres)[:, axis]).astype(np.int64) - first
        inside = np.flatnonzero((at >= 0) & (at < self.pixels.shape[1 - axis]))
        return at[inside], inside


def region_with_holes(component: NDArray[np.bool_], left: int, top: int) -> PixelRegion | None:
    """The region of an 8-connected component if it encloses background, else None.

    Background that touches the lesion's outside at a corner only is enclosed, because the lesion is connected there.
    """
    background = np.pad(~component, 1, constant_values=True).view(np.uint8)
    n_areas, areas = cv2.connectedComponents(background, connectivity=4)
    if n_areas == 2:  # the lesion and its outside
        return None
    holes = ((areas != 0) & (areas != areas[0, 0]))[1:-1, 1:-1]
    return PixelRegion(left, top, component.copy(), holes)


def encode_run_lengths(mask: NDArray[np.bool_]) -> RunLengths:
    """COCO's uncompressed run lengths of a mask (height, width): column by column, background first."""
    values = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(values, prepend=False))
    counts = np.diff(changes, prepend=0, append=len(values))
    return {"size": [int(mask.shape[0]), int(mask.shape[1])], "counts": counts.tolist()}


def decode_run_lengths(code: Mapping[str, Any]) -> NDArray[np.bool_]:
    """The mask (height, width) of uncompressed run lengths.

    Raises:
        ValueError: the counts are compressed, or do not add up to the size.
    """
    height, width = code["size"]
    counts = code["counts"]
    if not isinstance(counts, list) or sum(counts) != height * width or min(counts, default=0) < 0:
        raise ValueError(
            f"expected uncompressed run lengths that add up to {width}x{height} px, found {str(counts)[:60]!r}"
        )
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return values.reshape((height, width), order="F")
