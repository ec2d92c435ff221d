"""Labelled images that a tiny detector learns within seconds: coloured squares on dark ground, one class per colour."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from uveitis_assets.detection.configuration import DetectorConfiguration
from uveitis_assets.detection.data.labelled_split import (
    LabelledImage,
    LabelledSplit,
    LabelledTile,
    labelled_fingerprint,
)
from uveitis_assets.detection.inference.detections import GroundTruth
from uveitis_assets.imaging.geometry import ImageFrames, Tile
from uveitis_assets.storage.files import write_bytes
from uveitis_assets.storage.store import ArtefactStore, artefact_key

SIDE = 64
CATEGORIES = {1: "red", 2: "green"}
_COLOURS = {1: (220, 40, 40), 2: (40, 220, 40)}

TINY: dict[str, Any] = {
    "model": {
        "backbone": "timm_fpn",
        "timm_model": "test_efficientnet",
        "norm": "group",
        "finest_stride": 8,
        "input_size": SIDE,
        "n_categories": 2,
        "pyramid_channels": 16,
        "head_width": 32,
        "anchor_sizes": [[12], [20], [32], [48]],
        "rpn_pre_nms_train": 100,
        "rpn_post_nms_train": 30,
        "rpn_pre_nms_test": 100,
        "rpn_post_nms_test": 30,
        "detections_per_tile": 20,
    },
    "training": {
        "epochs": 2,
        "batch_size": 2,
        "learning_rate": 2e-3,
        "min_learning_rate": 1e-5,
        "warmup_steps": 2,
        "gradient_clip_norm": 5.0,
        "ema_decay": 0.9,
        "freeze_blocks": 0,
        "patience": 0,
        "tensorboard": False,
    },
    "evaluation": {"bootstrap_samples": 0},
}


def tiny(**changes: Any) -> DetectorConfiguration:
    """A detector that steps in milliseconds; parts are changed, not replaced."""
    merged = {name: dict(part) for name, part in TINY.items()}
    for name, change in changes.items():
        merged[name] = {**merged.get(name, {}), **change} if isinstance(change, dict) else change
    return DetectorConfiguration.model_validate(merged)


def store_at(root: Path) -> ArtefactStore:
    return ArtefactStore(root=root, raw=root / "raw")


def squares_split(
    store: ArtefactStore, n_images: int, *, split: str = "train", seed: int = 0, n_squares: int = 2
) -> LabelledSplit:
    """Images of one tile each, with ``n_squares`` squares of 10 to 20 px each."""
    images = []
    for number in range(n_images):
        rng = np.random.default_rng((seed, number))
        pixels = rng.integers(0, 40, (SIDE, SIDE, 3), dtype=np.uint8)
        boxes, labels = [], []
        for place in range(n_squares):
            label = int(rng.integers(1, 3))
            side = int(rng.integers(10, 21))
            # Squares stand in halves of their own, so that none hides another.
            x = int(rng.integers(place * SIDE // n_squares, (place + 1) * SIDE // n_squares - side + 1))
            y = int(rng.integers(0, SIDE - side))
            pixels[y : y + side, x : x + side] = _COLOURS[label]
            boxes.append((x, y, x + side, y + side))
            labels.append(label)
        images.append(_image(store, f"{split}{number:03d}", pixels, boxes, labels))
    fingerprint = labelled_fingerprint(images, CATEGORIES)
    return LabelledSplit("squares", 0, split, tuple(images), dict(CATEGORIES), fingerprint)


def _image(
    store: ArtefactStore, stem: str, pixels: np.ndarray, boxes: list[tuple[int, ...]], labels: list[int]
) -> LabelledImage:
    image_id = f"squares::{stem}"
    key = artefact_key(image_id)
    path = store.tile(key, "tile_000")
    write_bytes(path, cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes())
    truth = GroundTruth(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        corners=np.full((len(boxes), 4, 2), np.nan, np.float32),
        scores=np.ones(len(boxes), np.float32),
    )
    frames = ImageFrames(
        raw_size=(SIDE, SIDE),
        crop_box=(0, 0, SIDE, SIDE),
        global_size=SIDE,
        pad_xy=(0, 0),
        padded_side=SIDE,
        frame="global",
        tiles=(Tile("tile_000", 0, 0, SIDE, SIDE),),
    )
    tile = LabelledTile("tile_000", path, SIDE, SIDE, truth)
    fingerprint = f"{zlib.crc32(pixels.tobytes()):016x}"
    return LabelledImage(image_id, key, stem, frames, truth, (tile,), fingerprint)
