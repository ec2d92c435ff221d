"""Coordinate frames of one image: raw, crop, global and tile, and the invertible maps between them.

Convention: pixel edges. The top-left corner of the first pixel is (0, 0), its centre (0.5, 0.5); a box (x0, y0, x1,
y1) covers pixels x0 .. x1-1. "Raw" is the image as displayed, after its EXIF orientation. All maps are axis-aligned
(scale and shift) in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Points = NDArray[np.float64]

GLOBAL_TILE_ID = "global"


@dataclass(frozen=True, slots=True)
class AxisAlignedTransform:
    """``target = source * scale + offset`` for each axis; scales are positive."""

    scale_x: float = 1.0
    scale_y: float = 1.0
    offset_x: float = 0.0
    offset_y: float = 0.0

    def __post_init__(self) -> None:
        if not (self.scale_x > 0 and self.scale_y > 0):
            raise ValueError(f"expected positive scales, found ({self.scale_x}, {self.scale_y})")

    def apply(self, points: ArrayLike) -> Points:
        """Map points of shape (..., 2), x before y, in pixels."""
        return np.asarray(points, dtype=np.float64) * (self.scale_x, self.scale_y) + (self.offset_x, self.offset_y)

    def apply_boxes(self, boxes: ArrayLike) -> Points:
        """Map boxes of shape (..., 4), x0 y0 x1 y1, in pixels."""
        array = np.asarray(boxes, dtype=np.float64)
        return self.apply(array.reshape(*array.shape[:-1], 2, 2)).reshape(array.shape)

    def inverse(self) -> AxisAlignedTransform:
        """The map back."""
        return AxisAlignedTransform(
            1.0 / self.scale_x, 1.0 / self.scale_y, -self.offset_x / self.scale_x, -self.offset_y / self.scale_y
        )

    def then(self, following: AxisAlignedTransform) -> AxisAlignedTransform:
        """This map followed by another."""
        return AxisAlignedTransform(
            self.scale_x * following.scale_x,
            self.scale_y * following.scale_y,
            self.offset_x * following.scale_x + following.offset_x,
            self.offset_y * following.scale_y + following.offset_y,
        )


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile and its box (x0, y0, x1, y1; x1 and y1 exclusive) in the tiling frame's pixels.

    ``scale`` is tile px per tiling px; it is 1 but for a global image that stands beside tiles of the native crop.
    """

    tile_id: str
    x0: int
    y0: int
    x1: int
    y1: int
    # Left out of the text, which enters fingerprints of what was made before it existed; sizes of frames imply it.
    scale: float = field(default=1.0, repr=False)

    @property
    def width(self) -> int:
        """Width of the tile, tile px."""
        return round((self.x1 - self.x0) * self.scale)

    @property
    def height(self) -> int:
        """Height of the tile, tile px."""
        return round((self.y1 - self.y0) * self.scale)

    @property
    def is_global(self) -> bool:
        """Whether it is the whole image, scaled, instead of a part cut out of it."""
        return self.tile_id == GLOBAL_TILE_ID


@dataclass(frozen=True, slots=True)
class ImageFrames:
    """The frames of one preprocessed image.

    ``raw_to_crop`` is a shift; ``crop_to_global`` pads to a centred square and scales; the tiling frame is the
    global image (``frame == "global"``) or the normalized crop at native resolution (``frame == "native"``).
    """

    raw_size: tuple[int, int]
    crop_box: tuple[int, int, int, int]
    global_size: int
    pad_xy: tuple[int, int]
    padded_side: int
    frame: str
    tiles: tuple[Tile, ...]

    @property
    def crop_size(self) -> tuple[int, int]:
        x0, y0, x1, y1 = self.crop_box
        return x1 - x0, y1 - y0

    @property
    def raw_to_crop(self) -> AxisAlignedTransform:
        return AxisAlignedTransform(offset_x=-float(self.crop_box[0]), offset_y=-float(self.crop_box[1]))

    @property
    def crop_to_global(self) -> AxisAlignedTransform:
        scale = self.global_size / self.padded_side
        return AxisAlignedTransform(scale, scale, self.pad_xy[0] * scale, self.pad_xy[1] * scale)

    @property
    def raw_to_global(self) -> AxisAlignedTransform:
        return self.raw_to_crop.then(self.crop_to_global)

    @property
    def raw_to_tiling(self) -> AxisAlignedTransform:
        """Raw pixels to the frame that the tiles are cut from."""
        return self.raw_to_crop if self.frame == "native" else self.raw_to_global

    @property
    def tiling_size(self) -> tuple[int, int]:
        """Width and height of the frame that the tiles are cut from."""
        return self.crop_size if self.frame == "native" else (self.global_size, self.global_size)

    def with_global_tile(self) -> Self:
        """These frames with the global image as one more tile, where tiles are cut from the native crop.

        Its box in crop px is the padded square, so it reaches over the edges of a crop that is not square.
        """
        if self.frame != "native":
            return self
        (pad_x, pad_y), side = self.pad_xy, self.padded_side
        whole = Tile(GLOBAL_TILE_ID, -pad_x, -pad_y, side - pad_x, side - pad_y, self.global_size / side)
        return replace(self, tiles=(*self.tiles, whole))

    def crop_metadata(self) -> dict[str, Any]:
        """Content of crop_meta/<key>.json."""
        return {"bbox_xyxy": list(self.crop_box), "orig_size": list(self.raw_size), "crop_size": list(self.crop_size)}

    def tiles_metadata(self, image_id: str) -> dict[str, Any]:
        """Content of tiles_meta/<key>.json; ``frame`` is an addition to the earlier keys."""
        return {
            "image_id": image_id,
            "global_size": [self.global_size, self.global_size],
            "global_meta": {
                "pad_xy": list(self.pad_xy),
                "padded_side": self.padded_side,
                "scale": self.global_size / self.padded_side,
                "orig_size": list(self.crop_size),
            },
            "frame": self.frame,
            "tiles": [
                {"tile_id": tile.tile_id, "x0": tile.x0, "y0": tile.y0, "x1": tile.x1, "y1": tile.y1, "scale": 1.0}
                for tile in self.tiles
            ],
        }

    @classmethod
    def from_metadata(cls, crop_metadata: Mapping[str, Any], tiles_metadata: Mapping[str, Any]) -> Self:
        """Rebuild the frames from crop_meta and tiles_meta files, of the earlier scripts too.

        Files without ``frame`` mean tiles of the global image.
        """
        global_meta = tiles_metadata["global_meta"]
        width, height = crop_metadata["orig_size"]
        x0, y0, x1, y1 = crop_metadata["bbox_xyxy"]
        pad_x, pad_y = global_meta["pad_xy"]
        return cls(
            raw_size=(int(width), int(height)),
            crop_box=(int(x0), int(y0), int(x1), int(y1)),
            global_size=int(tiles_metadata["global_size"][0]),
            pad_xy=(int(pad_x), int(pad_y)),
            padded_side=int(global_meta["padded_side"]),
            frame=str(tiles_metadata.get("frame", "global")),
            tiles=tuple(
                Tile(str(tile["tile_id"]), int(tile["x0"]), int(tile["y0"]), int(tile["x1"]), int(tile["y1"]))
                for tile in tiles_metadata["tiles"]
            ),
        )


def box_areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Areas (N,) of boxes (N, 4) as x0, y0, x1, y1."""
    areas: NDArray[np.float64] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas
