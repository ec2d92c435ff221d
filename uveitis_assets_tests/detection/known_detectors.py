"""Stand-ins for trained detectors: they find what was painted, so that a test knows the right answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.imaging.configuration import TilingConfiguration
from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets.imaging.tiling import image_frames

INK = 20


class PaintedBoxDetector(torch.nn.Module):
    """Finds filled rectangles: those painted with red value ``INK * k`` are of category k; counts its passes."""

    def __init__(self, score: float = 0.9, most_tiles: int | None = None) -> None:
        super().__init__()
        self.score = score
        self.most_tiles = most_tiles
        self.passes: list[int] = []

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        if self.most_tiles is not None and len(images) > self.most_tiles:
            raise torch.OutOfMemoryError("the accelerator's memory is full")
        self.passes.append(len(images))
        return [self._found(image) for image in images]

    def _found(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        red = (image[0] * 255).round().to(torch.int64)
        boxes, labels = [], []
        for value in sorted(set(red.unique().tolist()) - {0}):
            rows, columns = torch.nonzero(red == value, as_tuple=True)
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            boxes.append([float(edge) for edge in edges])
            labels.append(value // INK)
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "scores": torch.full((len(boxes),), self.score),
            "labels": torch.tensor(labels, dtype=torch.int64),
        }


def painted(height: int, width: int, boxes: dict[int, tuple[int, int, int, int]]) -> NDArray[np.uint8]:
    """Black RGB image with one filled rectangle (x0, y0, x1, y1) per category."""
    image = np.zeros((height, width, 3), np.uint8)
    for label, (x0, y0, x1, y1) in boxes.items():
        image[y0:y1, x0:x1, 0] = INK * label
    return image


def small_frames(
    *,
    crop: tuple[int, int] = (256, 256),
    global_size: int = 256,
    tile_size: int = 64,
    overlap: float = 0.25,
    frame: str = "global",
    origin: tuple[int, int] = (0, 0),
) -> ImageFrames:
    """Frames of an image of which the crop begins at ``origin``."""
    tiling = TilingConfiguration.model_construct(
        global_size=global_size, tile_size=tile_size, overlap=overlap, frame=frame
    )
    x0, y0 = origin
    raw = (x0 + crop[0] + 5, y0 + crop[1] + 7)
    return image_frames(raw, (x0, y0, x0 + crop[0], y0 + crop[1]), tiling)


def detections(rows: list[tuple[Any, float, int]]) -> Detections:
    """Detections from (box, score, label) rows."""
    return Detections(
        np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[1] for row in rows], np.float32),
        np.array([row[2] for row in rows], np.int64),
    )
