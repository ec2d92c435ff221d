"""Which lesions the global image and the tiles show, and how they are clipped there.

Rules. A box is the bounding box of the lesion's corners or pixels, projected and clipped to the frame under the
pixel-edge convention (0..width, not 0..width-1). A tile keeps a box when

1. ``ratio``: at least ``min_box_ratio`` of the box's area lies in the tile;
2. ``cover``: the clipped box covers at least ``large_cover`` of the tile, so that lesions larger than a tile stay;
3. ``best``: no tile keeps the box by 1 or 2 (long thin ones across many tiles): the tile with the largest part of it
   keeps it, the first of equals. So every lesion with area inside the tiling frame appears in some tile.

The rules look at boxes, as those of the earlier scripts did. Outlines are clipped as polygons; where a clipped box
holds nothing of the lesion (a corner beside a slanted one, the inside of a ring) or is thinner than
``SMALLEST_SIDE_PX`` the tile does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from uveitis_assets.imaging.geometry import AxisAlignedTransform, Tile, box_areas
from uveitis_assets.labels.lesions import Lesions, only_areas
from uveitis_assets.labels.masks.pixel_regions import PixelRegion, RunLengths

KeptBy = Literal["ratio", "cover", "best"]

# Corners this far outside count as inside: float64 noise of the projection.
CORNER_NOISE_PX = 1e-6
# Smaller clipped outlines, in px², are an edge that touches the window.
SMALLEST_OUTLINE = 1e-6
# Thinner boxes, in px of the window, show nothing, and are without area in float32 far from the origin.
SMALLEST_SIDE_PX = 1 / 64
SEGMENTATION_DECIMALS = 3


@dataclass(frozen=True, slots=True)
class PlacedLesion:
    """One lesion as one window shows it, in the window's pixels.

    Attributes:
        lesion: index in the image's ``Lesions``.
        box: x0, y0, x1, y1, clipped to the window.
        segmentation: the clipped outline as COCO polygons (x, y, x, y, ...), rounded to 0.001 px; run lengths of its
            pixels where a hole shows.
        obb: the four corners as shares of the window, or None when one lies outside or the label has none.
        kept_by: the rule that kept it.
    """

    lesion: int
    box: tuple[float, float, float, float]
    segmentation: list[list[float]] | RunLengths
    obb: list[float] | None
    kept_by: KeptBy

    def as_coco(self) -> dict[str, Any]:
        """Where the lesion lies, in the fields of a COCO annotation.

        ``area`` is that of the box, of a lesion with holes that of its pixels.
        """
        x0, y0, x1, y1 = self.box
        pixels = None if isinstance(self.segmentation, list) else float(sum(self.segmentation["counts"][1::2]))
        return {
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0) if pixels is None else pixels,
            "iscrowd": 0,
            "obb": self.obb,
            "segmentation": self.segmentation,
        }


def place_in_image(lesions: Lesions, raw_to_image: AxisAlignedTransform, size: tuple[int, int]) -> list[PlacedLesion]:
    """Lesions as one image of ``size`` (width, height) shows them: all that have area inside."""
    whole = Tile("", 0, 0, size[0], size[1])
    return place_in_tiles(lesions, raw_to_image, size, (whole,), min_box_ratio=0.0, large_cover=0.0)[0]


def place_in_tiles(
    lesions: Lesions,
    raw_to_tiling: AxisAlignedTransform,
    tiling_size: tuple[int, int],
    tiles: Sequence[Tile],
    *,
    min_box_ratio: float,
    large_cover: float,
) -> list[list[PlacedLesion]]:
    """Lesions of every tile, in the order of tiles and lesions; rules in the module's docstring.

    Args:
        lesions: raw px.
        raw_to_tiling: raw px to px of the frame that the tiles are cut from.
        tiling_size: width and height of that frame, px.
        tiles: boxes in that frame.
        min_box_ratio: smallest share of a box's area in the frame that a tile has to hold.
        large_cover: smallest share of a tile's area that a box has to cover.
    """
    placed: list[list[PlacedLesion]] = [[] for _ in tiles]
    if not len(lesions) or not tiles:
        return placed
    projected = raw_to_tiling.apply_boxes(lesions.boxes)
    whole = box_areas(projected)
    boxes = _clip(projected, (0, 0, *tiling_size))
    outlines = shapely.transform(lesions.outlines, raw_to_tiling.apply)
    corners = None if lesions.corners is None else raw_to_tiling.apply(lesions.corners)
    areas = box_areas(boxes)
    shared, cover, clipped = _shares(outlines, boxes, whole, tiles)
    tiling_to_raw = raw_to_tiling.inverse()
    _leave_out_holes(lesions, tiling_to_raw, tiles, shared, cover)

    visible = shared > 0
    by_ratio = visible & (shared >= min_box_ratio * areas)
    by_cover = visible & (cover >= large_cover) & ~by_ratio
    by_best = np.zeros_like(visible)
    alone = np.flatnonzero(visible.any(axis=0) & ~(by_ratio | by_cover).any(axis=0))
    by_best[shared[:, alone].argmax(axis=0), alone] = True

    for index, tile in enumerate(tiles):
        window_boxes = _clip(boxes, (tile.x0, tile.y0, tile.x1, tile.y1)) - (tile.x0, tile.y0, tile.x0, tile.y0)
        for lesion in np.flatnonzero((by_ratio | by_cover | by_best)[index]).tolist():
            x0, y0, x1, y1 = window_boxes[lesion].tolist()
            placed[index].append(
                PlacedLesion(
                    lesion=lesion,
                    box=(x0, y0, x1, y1),
                    segmentation=_segmentation(lesions, lesion, clipped[index, lesion], tile, tiling_to_raw),
                    obb=None if corners is None else _obb(corners[lesion], tile),
                    kept_by="ratio" if by_ratio[index, lesion] else "cover" if by_cover[index, lesion] else "best",
                )
            )
    return placed


def _shares(
    outlines: NDArray[np.object_], boxes: NDArray[np.float64], whole: NDArray[np.float64], tiles: Sequence[Tile]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.object_]]:
    """What each tile holds of each lesion: box area, its share of the tile, and the clipped outline.

    Args:
        outlines: shapely outlines (n,), px of the tiling frame.
        boxes: (n, 4), clipped to that frame.
        whole: areas of the unclipped boxes (n,), px².
        tiles: boxes in that frame.

    Returns:
        Arrays (tiles, n); areas are 0 where the tile holds nothing of the outline.
    """
    shape = (len(tiles), len(boxes))
    shared = np.zeros(shape)
    cover = np.zeros(shape)
    clipped = np.empty(shape, dtype=object)
    for index, tile in enumerate(tiles):
        window = (tile.x0, tile.y0, tile.x1, tile.y1)
        parts_of_boxes = _clip(boxes, window)
        inside = box_areas(parts_of_boxes)
        inside[(parts_of_boxes[:, 2:] - parts_of_boxes[:, :2] < SMALLEST_SIDE_PX).any(axis=1)] = 0.0
        meets = np.flatnonzero(inside > 0)
        parts = outlines[meets]
        crossing = inside[meets] < whole[meets]
        parts[crossing] = shapely.intersection(parts[crossing], shapely.box(*window))
        filled = shapely.area(parts) > SMALLEST_OUTLINE
        clipped[index, meets[filled]] = parts[filled]
        shared[index, meets[filled]] = inside[meets[filled]]
        cover[index] = shared[index] / (tile.width * tile.height)
    return shared, cover, clipped


def _leave_out_holes(
    lesions: Lesions,
    tiling_to_raw: AxisAlignedTransform,
    tiles: Sequence[Tile],
    shared: NDArray[np.float64],
    cover: NDArray[np.float64],
) -> None:
    """Set the shares of lesions to 0, in place, in tiles that hold nothing but a hole of theirs."""
    if lesions.regions is None:
        return
    for index, tile in enumerate(tiles):
        window = tiling_to_raw.apply_boxes((tile.x0, tile.y0, tile.x1, tile.y1))
        for lesion in np.flatnonzero(shared[index]).tolist():
            region: PixelRegion | None = lesions.regions[lesion]
            if region is not None and not region.shows(window):
                shared[index, lesion] = cover[index, lesion] = 0.0


def _segmentation(
    lesions: Lesions, lesion: int, outline: shapely.Geometry, tile: Tile, tiling_to_raw: AxisAlignedTransform
) -> list[list[float]] | RunLengths:
    region: PixelRegion | None = None if lesions.regions is None else lesions.regions[lesion]
    if region is not None:
        tile_to_raw = AxisAlignedTransform(offset_x=tile.x0, offset_y=tile.y0).then(tiling_to_raw)
        run_lengths = region.run_lengths(tile_to_raw, (tile.width, tile.height))
        if run_lengths is not None:
            return run_lengths
    return _coco_polygons(outline, tile)


def _clip(boxes: NDArray[np.float64], window: tuple[int, int, int, int]) -> NDArray[np.float64]:
    x0, y0, x1, y1 = window
    return np.clip(boxes, (x0, y0, x0, y0), (x1, y1, x1, y1))


def _coco_polygons(outline: shapely.Geometry, tile: Tile) -> list[list[float]]:
    rings = [shapely.get_coordinates(part.exterior)[:-1] - (tile.x0, tile.y0) for part in only_areas(outline)]
    return [np.round(ring, SEGMENTATION_DECIMALS).ravel().tolist() for ring in rings]


def _obb(corners: NDArray[np.float64], tile: Tile) -> list[float] | None:
    points = corners - (tile.x0, tile.y0)
    size = (tile.width, tile.height)
    if (points < -CORNER_NOISE_PX).any() or (points > np.add(size, CORNER_NOISE_PX)).any():
        return None
    shares: list[float] = np.clip(points / size, 0.0, 1.0).ravel().tolist()
    return shares
