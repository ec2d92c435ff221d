"""Labelled images that exist in memory only: given classes per tile, no files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from uveitis_assets.detection.data.labelled_split import (
    LabelledImage,
    LabelledSplit,
    LabelledTile,
    labelled_fingerprint,
)
from uveitis_assets.detection.inference.detections import GroundTruth
from uveitis_assets_tests.labels.lane import frames_of

FRAMES = frames_of((100, 100), global_size=128, tile_size=96, stride=72)


def truth_of(classes: Sequence[int]) -> GroundTruth:
    n = len(classes)
    boxes = np.tile(np.array([10, 20, 30, 40], np.float32), (n, 1))
    corners = np.full((n, 4, 2), np.nan, np.float32)
    return GroundTruth(boxes, np.array(classes, np.int64), corners, np.ones(n, np.float32))


def labelled_image(name: str, classes_of_tiles: Sequence[Sequence[int]]) -> LabelledImage:
    tiles = tuple(
        LabelledTile(f"tile_{number:03d}", Path(f"{name}_{number}.png"), 96, 96, truth_of(classes))
        for number, classes in enumerate(classes_of_tiles)
    )
    every = [label for classes in classes_of_tiles for label in classes]
    return LabelledImage(f"uwf700::{name}", f"uwf700__{name}", f"patient-{name}", FRAMES, truth_of(every), tiles)


def random_images(n_images: int, *, empty: float, seed: int = 0) -> list[LabelledImage]:
    """Images of four tiles; class k is about 1.6 times as frequent as class k + 1, classes 1 to 8."""
    rng = np.random.default_rng(seed)
    frequency = 1.6 ** -np.arange(8.0)
    images = []
    for number in range(n_images):
        present = 1 + rng.choice(8, size=rng.integers(1, 4), p=frequency / frequency.sum())
        tiles = [[] if rng.random() < empty else rng.choice(present, 2).tolist() for _ in range(4)]
        images.append(labelled_image(f"eye{number:04d}", tiles))
    return images


def split_of(images: Sequence[LabelledImage]) -> LabelledSplit:
    categories = {number: f"class {number}" for number in range(1, 21)}
    return LabelledSplit("uwf700", 0, "train", tuple(images), categories, labelled_fingerprint(images, categories))
