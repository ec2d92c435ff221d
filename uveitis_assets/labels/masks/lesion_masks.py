"""Lesion masks of FGADR's layout: one folder per lesion class, one image file per photograph.

Masks come in many formats; ``mask_files`` reads all as "which pixels are lesion". 8-connected components become boxes
and outlines in raw pixels, those with holes keep their pixels too. A mask of another size is set aside, never resized,
because it would put lesions in the wrong places. So is one that marks most of the retina: it is inverted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from uveitis_assets.labels.class_map import LabelSpace, UnknownClassError
from uveitis_assets.labels.lesions import Lesions, join_lesions, no_lesions, only_areas
from uveitis_assets.labels.masks.mask_files import bad_mask, parse_mask
from uveitis_assets.labels.masks.pixel_regions import region_with_holes

# Staircases of diagonal edges deviate by 0.71 px from the line through them: they go, square lesions stay square.
OUTLINE_TOLERANCE_PX = 0.75
# Part of its box that a round retina fills.
DISC_SHARE = np.pi / 4


def parse_lesion_masks(
    files: Sequence[tuple[str, bytes]],
    label_space: LabelSpace,
    raw_size: tuple[int, int],
    min_component_area: int,
    *,
    crop_box: tuple[int, int, int, int],
    max_marked_share: float,
) -> Lesions:
    """Lesions of all masks of one image, sorted by file name, with findings about grey masks.

    Masks of different folders stay apart also where they map to one category (hard and soft exudates): touching
    lesions do not merge, a lesion marked in both counts twice.

    Args:
        files: name (path below the dataset's landing folder) and bytes of each mask file; the nearest folder that the
            class map names gives the class.
        label_space: meaning of the folders.
        raw_size: width and height of the displayed raw image, px.
        min_component_area: smallest component, raw px.
        crop_box: x0, y0, x1, y1 around the retina, raw px.
        max_marked_share: share of the retina, a disc in that box, that a mask may mark.

    Raises:
        QuarantineError: ``bad_label`` with the file, found and expected.
    """
    parts = []
    for name, data in sorted(files):
        category_id = _category_of(name, label_space)
        reading = parse_mask(data, name, raw_size)
        _refuse_inverted(reading.marked, name, crop_box, max_marked_share)
        lesions = lesions_of_mask(reading.marked, category_id, min_component_area)
        parts.append(replace(lesions, findings=reading.findings))
    return join_lesions(parts)


def _refuse_inverted(
    marked: NDArray[np.bool_], name: str, crop_box: tuple[int, int, int, int], max_marked_share: float
) -> None:
    x0, y0, x1, y1 = crop_box
    share = min(np.count_nonzero(marked[y0:y1, x0:x1]) / (DISC_SHARE * (x1 - x0) * (y1 - y0)), 1.0)
    if share > max_marked_share:
        raise bad_mask(
            name,
            f"found {share:.0%} of the retina marked, expected at most {max_marked_share:.0%}: the mask marks "
            "most of the retina, as an inverted one (lesions black on white) does; invert it, or raise "
            "`labels.max_marked_share`",
        )


def lesions_of_mask(mask: NDArray[np.bool_], category_id: int, min_component_area: int) -> Lesions:
    """8-connected components of at least ``min_component_area`` pixels, sorted by place.

    The place is the row, then the column of the upper left corner of a component's box.

    Boxes have exclusive upper edges; outlines follow the pixel edges of the component's outer border, simplified by
    at most ``OUTLINE_TOLERANCE_PX``, with holes filled; ``regions`` hold the pixels of those with holes.
    """
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    marked = mask.view(np.uint8)[top : top + height, left : left + width]
    if not marked.size:
        return no_lesions()
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(marked, connectivity=8, ltype=cv2.CV_32S)
    statistics = statistics.astype(np.int64)
    large = np.flatnonzero(statistics[1:, cv2.CC_STAT_AREA] >= min_component_area) + 1
    # OpenCV's numbering follows its blocks of pixels; ours is by place.
    large = large[np.lexsort((statistics[large, cv2.CC_STAT_LEFT], statistics[large, cv2.CC_STAT_TOP]))]
    if not len(large):
        return no_lesions()
    corners = statistics[large][:, [cv2.CC_STAT_LEFT, cv2.CC_STAT_TOP]]
    boxes = np.hstack([corners, corners + statistics[large][:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]]])
    components = [labels[y0:y1, x0:x1] == label for label, (x0, y0, x1, y1) in zip(large, boxes.tolist(), strict=True)]
    corners = np.add(corners, (left, top))
    rings = [np.add(_outer_edge(component), corner) for component, corner in zip(components, corners, strict=True)]
    owners = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    outlines = shapely.polygons(shapely.linearrings(np.concatenate(rings), indices=owners))
    # Pixels that meet only at a corner make a ring that touches itself; simplification needs valid areas.
    touching = ~shapely.is_valid(outlines)
    outlines[touching] = [
        shapely.MultiPolygon(only_areas(shapely.make_valid(outline))) for outline in outlines[touching]
    ]
    simple = shapely.simplify(outlines, OUTLINE_TOLERANCE_PX, preserve_topology=False)
    # The fast method can fold thin outlines; the one that keeps topology takes ten times as long.
    folded = ~shapely.is_valid(simple) | (shapely.area(simple) < 0.5 * shapely.area(outlines))
    simple[folded] = shapely.simplify(outlines[folded], OUTLINE_TOLERANCE_PX, preserve_topology=True)
    boxes_in_raw = np.add(boxes, (left, top, left, top), dtype=np.float64)
    regions = np.empty(len(boxes), dtype=object)
    regions[:] = [
        region_with_holes(component, *corner) for component, corner in zip(components, corners.tolist(), strict=True)
    ]
    return Lesions(np.full(len(boxes), category_id, np.int64), boxes_in_raw, simple, regions=regions)


def _outer_edge(component: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Outer border of a component as points on pixel edges, shape (n, 2).

    OpenCV's contours run through pixel centres and would shrink a lesion by half a pixel on each side. On a grid of
    twice the resolution, where a pixel takes its two edges and the sample between them, the border samples are the
    pixel edges.
    """
    height, width = component.shape
    samples = np.zeros((2 * height + 1, 2 * width + 1), np.uint8)
    samples[1::2, 1::2] = component
    samples = cv2.dilate(samples, np.ones((3, 3), np.uint8)).reshape(samples.shape)
    contours, _ = cv2.findContours(samples, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return np.asarray(contours[0], np.float64).reshape(-1, 2) / 2.0


def mask_folder(label_path: str, label_space: LabelSpace) -> str:
    """Folder that gives a mask its class: the nearest in the class map, else the mask's own."""
    folders = PurePosixPath(label_path).parent.parts
    named = [folder for folder in folders if folder in label_space.category_ids]
    return (named or folders or ("",))[-1]


def _category_of(label_path: str, label_space: LabelSpace) -> int:
    try:
        return label_space.category_of(mask_folder(label_path, label_space))
    except UnknownClassError as error:
        raise bad_mask(label_path, f"{error} as the mask's folder") from error
