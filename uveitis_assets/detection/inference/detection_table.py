"""Detections of many images as one set of columns in the tiling frame, and back again.

Merging works on these columns, so that a thousand images cost a few NumPy calls and not a thousand. Boxes are
shifted, clipped and mapped here, and compared elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.imaging.geometry import ImageFrames


@dataclass(frozen=True, slots=True)
class DetectionTable:
    """Detections of many images as columns, one row each, in tiling px.

    ``boxes`` float64 (N, 4), ``corners`` float64 (N, 4, 2) or None.

    ``scores`` float64 (N,), ``labels`` int64 (N,), ``images`` int64 (N,): position of the image. ``tiles`` int64 (N,):
    row of ``windows`` float64 (n_tiles, 4), the box of the tile that a detection comes from. ``sizes`` float64
    (n_images, 2): width and height of each image's tiling frame.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    corners: NDArray[np.float64] | None
    images: NDArray[np.int64]
    tiles: NDArray[np.int64]
    windows: NDArray[np.float64]
    sizes: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> DetectionTable:
        """The given rows (indices or a mask), in that order."""
        corners = None if self.corners is None else self.corners[rows]
        return DetectionTable(
            self.boxes[rows],
            self.scores[rows],
            self.labels[rows],
            corners,
            self.images[rows],
            self.tiles[rows],
            self.windows,
            self.sizes,
        )

    def groups(self) -> NDArray[np.int64]:
        """One number per image and category: only boxes of the same group are ever compared."""
        if not len(self):
            return np.zeros(0, np.int64)
        return self.images * (int(self.labels.max()) + 1) + self.labels

    def best_first(self) -> DetectionTable:
        """Rows by image, then score, best first; ties by category, then by box."""
        # One key for both: images lie 2 apart and scores within 1.
        key = 2.0 * self.images - self.scores
        order = np.argsort(key).astype(np.int64)
        ordered = key[order]
        ties = np.zeros(len(order) + 1, np.bool_)
        ties[1:-1] = ordered[1:] == ordered[:-1]
        # Ties are few, and only they are worth sorting by all columns.
        places = np.flatnonzero(ties[1:] | ties[:-1])
        tied = order[places]
        x0, y0, x1, y1 = self.boxes[tied].T
        settled = np.lexsort((y1, x1, y0, x0, self.labels[tied], -self.scores[tied], self.images[tied]))
        order[places] = tied[settled]
        return self.select(order)


def join_tiles(frames: Sequence[ImageFrames], tile_detections: Sequence[Sequence[Detections]]) -> DetectionTable:
    """Shift, and from a scaled tile scale, the detections of each image's tiles to where the tiles lie.

    Args:
        frames: frames of each image.
        tile_detections: per image, one ``Detections`` in tile px per tile of its frames, in their order.

    Raises:
        ValueError: an image has another number of detections than tiles; some tiles are oriented, others not.
    """
    counts = []
    windows = []
    scales = []
    for position, (image_frames, of_tiles) in enumerate(zip(frames, tile_detections, strict=True)):
        if len(image_frames.tiles) != len(of_tiles):
            raise ValueError(
                f"image {position}: expected detections of {len(image_frames.tiles)} tiles, found {len(of_tiles)}"
            )
        counts.append(sum(len(detections) for detections in of_tiles))
        windows += [(tile.x0, tile.y0, tile.x1, tile.y1) for tile in image_frames.tiles]
        scales += [tile.scale for tile in image_frames.tiles]
    parts = [detections for of_tiles in tile_detections for detections in of_tiles]
    per_tile = [len(part) for part in parts]
    places = np.array(windows, np.float64).reshape(-1, 4)
    tiles = np.repeat(np.arange(len(parts), dtype=np.int64), per_tile)
    joined = _joined(parts)
    shift, scale = places[tiles, :2], np.array(scales, np.float64)[tiles]
    boxes = joined.boxes.astype(np.float64) / scale[:, None]
    boxes[:, :2] += shift
    boxes[:, 2:] += shift
    corners = None
    if joined.corners is not None:
        corners = joined.corners.astype(np.float64) / scale[:, None, None] + shift[:, None]
    return DetectionTable(
        boxes=boxes,
        scores=joined.scores.astype(np.float64),
        labels=joined.labels,
        corners=corners,
        images=np.repeat(np.arange(len(frames), dtype=np.int64), counts),
        tiles=tiles,
        windows=places,
        sizes=np.array([image_frames.tiling_size for image_frames in frames], np.float64).reshape(-1, 2),
    )


def join_images(images: Sequence[Sequence[Detections]], sizes: Sequence[tuple[int, int]]) -> DetectionTable:
    """Pool several detectors' detections of the same images; each image's whole frame is the window.

    Args:
        images: per detector, detections of every image in px of one frame.
        sizes: width and height of that frame for every image.
    """
    parts = [detections for of_detector in images for detections in of_detector]
    joined = _joined(parts)
    numbers = np.tile(np.arange(len(sizes), dtype=np.int64), len(images))
    rows = np.repeat(numbers, [len(part) for part in parts])
    frame_sizes = np.array(sizes, np.float64).reshape(-1, 2)
    return DetectionTable(
        boxes=joined.boxes.astype(np.float64),
        scores=joined.scores.astype(np.float64),
        labels=joined.labels,
        corners=None if joined.corners is None else joined.corners.astype(np.float64),
        images=rows,
        tiles=rows,
        windows=np.hstack([np.zeros_like(frame_sizes), frame_sizes]),
        sizes=frame_sizes,
    )


def to_global(table: DetectionTable, frames: Sequence[ImageFrames]) -> list[Detections]:
    """Split merged detections, best first, by image: clipped to the tiling frame, mapped to global px.

    Boxes that show nothing of the crop, only the black margin of the global image, are left out. Corners are mapped
    but not clipped: a clipped oriented box is none.
    """
    scale, offset = _tiling_to_global(frames)
    content = np.array([_crop_in_global(image_frames) for image_frames in frames], np.float64).reshape(-1, 4)
    size, window = table.sizes[table.images], content[table.images]
    boxes = np.empty_like(table.boxes)
    for side in range(4):
        axis = side % 2
        boxes[:, side] = np.clip(table.boxes[:, side], 0.0, size[:, axis])
        boxes[:, side] = boxes[:, side] * scale[table.images] + offset[table.images, axis]
    width = np.minimum(boxes[:, 2], window[:, 2]) - np.maximum(boxes[:, 0], window[:, 0])
    height = np.minimum(boxes[:, 3], window[:, 3]) - np.maximum(boxes[:, 1], window[:, 1])
    rows = np.flatnonzero((width > 0) & (height > 0))
    corners = None
    if table.corners is not None:
        corners = table.corners * scale[table.images, None, None] + offset[table.images][:, None]
    counts = np.bincount(table.images[rows], minlength=len(frames))
    ends = np.cumsum(counts)
    boxes32, scores32 = boxes[rows].astype(np.float32), table.scores[rows].astype(np.float32)
    labels = table.labels[rows]
    corners32 = None if corners is None else corners[rows].astype(np.float32)
    return [
        Detections(
            boxes32[start:end],
            scores32[start:end],
            labels[start:end],
            None if corners32 is None else corners32[start:end],
        )
        for start, end in zip((ends - counts).tolist(), ends.tolist(), strict=True)
    ]


def _joined(parts: Sequence[Detections]) -> Detections:
    """Detections one after the other; empty ones without corners fit to either kind."""
    filled = [part for part in parts if len(part)]
    oriented = [part.corners for part in (filled or parts) if part.corners is not None]
    if not filled:
        return Detections.empty(oriented=bool(oriented))
    if oriented and len(oriented) != len(filled):
        raise ValueError(
            f"expected all detections or none with corners, found {len(oriented)} of {len(filled)}; "
            "axis-aligned and oriented detectors cannot be merged with each other"
        )
    return Detections(
        np.concatenate([part.boxes for part in filled]),
        np.concatenate([part.scores for part in filled]),
        np.concatenate([part.labels for part in filled]),
        np.concatenate(oriented) if oriented else None,
    )


def _tiling_to_global(frames: Sequence[ImageFrames]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale (n,) and offset (n, 2) of each image's map from tiling to global px."""
    scale = np.ones(len(frames))
    offset = np.zeros((len(frames), 2))
    for position, image_frames in enumerate(frames):
        if image_frames.frame == "native":
            transform = image_frames.crop_to_global
            scale[position] = transform.scale_x
            offset[position] = transform.offset_x, transform.offset_y
    return scale, offset


def _crop_in_global(frames: ImageFrames) -> tuple[float, float, float, float]:
    width, height = frames.crop_size
    x0, y0, x1, y1 = frames.crop_to_global.apply_boxes((0, 0, width, height)).tolist()
    return x0, y0, x1, y1
