"""Detections and ground truth of one image or tile, as NumPy columns.

Convention: pixel edges (see ``imaging.geometry``); the frame (tile, global or raw) is documented where a value is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Detections:
    """What a detector found in one image.

    ``boxes`` float32 (N, 4) as x0 y0 x1 y1 in px; ``scores`` float32 (N,) in 0..1; ``labels`` int64 (N,), category ids
    from 1; ``corners`` float32 (N, 4, 2) in px, the oriented boxes in order around the box, or None when the detector
    finds axis-aligned boxes only.

    Raises:
        ValueError: the arrays' lengths differ.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    corners: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n = len(self.boxes)
        shapes = {"boxes": (n, 4), "scores": (n,), "labels": (n,)}
        if self.corners is not None:
            shapes["corners"] = (n, 4, 2)
        _check_shapes(self, shapes)

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def empty(cls, *, oriented: bool = False) -> Self:
        """No detections."""
        corners = np.zeros((0, 4, 2), np.float32) if oriented else None
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), corners)

    def select(self, rows: NDArray[Any]) -> Detections:
        """The given rows (indices or a mask), in that order."""
        corners = None if self.corners is None else self.corners[rows]
        return Detections(self.boxes[rows], self.scores[rows], self.labels[rows], corners)


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """The labelled lesions of one image or tile.

    ``boxes`` float32 (N, 4) as x0 y0 x1 y1 in px; ``labels`` int64 (N,), category ids from 1; ``corners`` float32
    (N, 4, 2) in px, NaN in the rows of lesions without an oriented box; ``scores`` float32 (N,): 1 for a person's
    label, the detector's score for a pseudo-label.

    Raises:
        ValueError: the arrays' lengths differ.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    corners: NDArray[np.float32]
    scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        n = len(self.boxes)
        _check_shapes(self, {"boxes": (n, 4), "labels": (n,), "corners": (n, 4, 2), "scores": (n,)})

    def __len__(self) -> int:
        return len(self.boxes)


def _check_shapes(value: object, shapes: dict[str, tuple[int, ...]]) -> None:
    for name, expected in shapes.items():
        found = getattr(value, name).shape
        if found != expected:
            raise ValueError(f"{type(value).__name__}.{name}: expected shape {expected}, found {found}")
