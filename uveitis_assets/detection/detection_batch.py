"""Detections of many images as one set of columns, in the frame that the tiles were cut from, and back again.

Merging works on these columns, so that a thousand images cost a few NumPy calls and not a thousand. It knows where
tiles lie and how to clip and map boxes; it compares no boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.detections import Detections
from uveitis_assets.fundus.geometry import ImageFrames


@dataclass(frozen=True, slots=True)
class DetectionBatch:
    """Rows are detections; ``boxes`` float64 (N, 4) and ``corners`` float64 (N, 4, 2) or None in tiling px.

    ``scores`` float64 (N,), ``labels`` int64 (N,), ``images`` int64 (N,): position of the image. ``windows`` float64
    (N, 4): box of the tile that a detection comes from; ``sizes`` float64 (n_images, 2): width and height of each
    image's tiling frame.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    corners: NDArray[np.float64] | None
    images: NDArray[np.int64]
    windows: NDArray[np.float64]
    sizes: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> DetectionBatch:
        """The given rows (indices or a mask), in that order."""
        corners = None if self.corners is None else self.corners[rows]
        return DetectionBatch(
            self.boxes[rows],
            self.scores[rows],
            self.labels[rows],
            corners,
            self.images[rows],
            self.windows[rows],
            self.sizes,
        )

    def groups(self) -> NDArray[np.int64]:
        """One number per image and category: only boxes of the same group are ever compared."""
        if not len(self):
            return np.zeros(0, np.int64)
        return self.images * (int(self.labels.max()) + 1) + self.labels

    def best_first(self) -> NDArray[np.int64]:
        """Rows by image, then score, best first; ties by category, then by the box, so that no input order matters."""
        x0, y0, x1, y1 = self.boxes.T
        return np.lexsort((y1, x1, y0, x0, self.labels, -self.scores, self.images)).astype(np.int64)


def join_tiles(frames: Sequence[ImageFrames], tile_detections: Sequence[Sequence[Detections]]) -> DetectionBatch:
    """Shift the detections of each image's tiles to where the tiles lie.

    Args:
        frames: frames of each image.
        tile_detections: per image, one ``Detections`` in tile px per tile of its frames, in their order.

    Raises:
        ValueError: an image has another number of detections than tiles; some tiles are oriented, others not.
    """
    counts = []
    windows = []
    for position, (image_frames, of_tiles) in enumerate(zip(frames, tile_detections, strict=True)):
        if len(image_frames.tiles) != len(of_tiles):
            raise ValueError(
                f"image {position}: expected detections of {len(image_frames.tiles)} tiles, found {len(of_tiles)}"
            )
        counts.append(sum(len(detections) for detections in of_tiles))
        windows += [(tile.x0, tile.y0, tile.x1, tile.y1) for tile in image_frames.tiles]
    parts = [detections for of_tiles in tile_detections for detections in of_tiles]
    per_tile = [len(part) for part in parts]
    window_rows = np.repeat(np.array(windows, np.float64).reshape(-1, 4), per_tile, axis=0)
    joined = _joined(parts)
    shift = window_rows[:, :2]
    return DetectionBatch(
        boxes=joined.boxes.astype(np.float64) + np.tile(shift, 2),
        scores=joined.scores.astype(np.float64),
        labels=joined.labels,
        corners=None if joined.corners is None else joined.corners.astype(np.float64) + shift[:, None],
        images=np.repeat(np.arange(len(frames), dtype=np.int64), counts),
        windows=window_rows,
        sizes=np.array([image_frames.tiling_size for image_frames in frames], np.float64).reshape(-1, 2),
    )


def join_images(images: Sequence[Sequence[Detections]], sizes: Sequence[tuple[int, int]]) -> DetectionBatch:
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
    return DetectionBatch(
        boxes=joined.boxes.astype(np.float64),
        scores=joined.scores.astype(np.float64),
        labels=joined.labels,
        corners=None if joined.corners is None else joined.corners.astype(np.float64),
        images=rows,
        windows=np.hstack([np.zeros((len(rows), 2)), frame_sizes[rows]]),
        sizes=frame_sizes,
    )


def to_global(batch: DetectionBatch, frames: Sequence[ImageFrames]) -> list[Detections]:
    """Clip merged detections to their tiling frame, map them to global px and split them by image, best first.

    Boxes that show nothing of the crop, only the black margin of the global image, are left out. Corners are mapped
    but not clipped: a clipped oriented box is none.
    """
    clipped = np.clip(batch.boxes, 0.0, np.tile(batch.sizes, 2)[batch.images])
    scale, offset = _tiling_to_global(frames)
    shift = np.tile(offset, 2)[batch.images]
    boxes = clipped * scale[batch.images, None] + shift
    content = np.array([_crop_in_global(image_frames) for image_frames in frames], np.float64).reshape(-1, 4)
    window = content[batch.images]
    width = np.minimum(boxes[:, 2], window[:, 2]) - np.maximum(boxes[:, 0], window[:, 0])
    height = np.minimum(boxes[:, 3], window[:, 3]) - np.maximum(boxes[:, 1], window[:, 1])
    rows = batch.best_first()
    rows = rows[(width > 0)[rows] & (height > 0)[rows]]
    corners = None
    if batch.corners is not None:
        corners = batch.corners * scale[batch.images, None, None] + offset[batch.images][:, None]
    counts = np.bincount(batch.images[rows], minlength=len(frames))
    ends = np.cumsum(counts)
    boxes32, scores32 = boxes[rows].astype(np.float32), batch.scores[rows].astype(np.float32)
    labels = batch.labels[rows]
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
    """Scale (n,) and offset (n, 2) of each image's map from tiling to global px; the scale is the same for x and y."""
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
