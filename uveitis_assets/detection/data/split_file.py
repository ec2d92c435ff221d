"""A labelled split as a JSON file, for processes that are to train on exactly what their parent holds.

Float32 survives the way through JSON exactly. Labels are read from COCO files elsewhere (``coco_reader``).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from uveitis_assets.detection.data.labelled_split import LabelledImage, LabelledSplit, LabelledTile
from uveitis_assets.detection.inference.detections import GroundTruth
from uveitis_assets.imaging.geometry import ImageFrames, Tile


def split_to_plain(split: LabelledSplit) -> dict[str, Any]:
    """The split as values that JSON has; NaN corners become null."""
    return {
        "lane": split.lane,
        "fold": split.fold,
        "split": split.split,
        "images": [_image_to_plain(image) for image in split.images],
        "categories": {str(number): name for number, name in split.categories.items()},
        "fingerprint": split.fingerprint,
    }


def split_from_plain(plain: dict[str, Any]) -> LabelledSplit:
    """The split of ``split_to_plain``."""
    return LabelledSplit(
        lane=plain["lane"],
        fold=plain["fold"],
        split=plain["split"],
        images=tuple(_image_from_plain(image) for image in plain["images"]),
        categories={int(number): name for number, name in plain["categories"].items()},
        fingerprint=plain["fingerprint"],
    )


def _image_to_plain(image: LabelledImage) -> dict[str, Any]:
    return {
        "image_id": image.image_id,
        "key": image.key,
        "patient": image.patient,
        "frames": asdict(image.frames),
        "truth": _truth_to_plain(image.truth),
        "tiles": [
            {
                "tile_id": tile.tile_id,
                "file": str(tile.file),
                "width": tile.width,
                "height": tile.height,
                "truth": _truth_to_plain(tile.truth),
            }
            for tile in image.tiles
        ],
        "tiles_fingerprint": image.tiles_fingerprint,
    }


def _image_from_plain(plain: dict[str, Any]) -> LabelledImage:
    frames = dict(plain["frames"])
    for name in ("raw_size", "crop_box", "pad_xy"):
        frames[name] = tuple(frames[name])
    frames["tiles"] = tuple(Tile(**tile) for tile in frames["tiles"])
    tiles = tuple(
        LabelledTile(
            tile["tile_id"], Path(tile["file"]), tile["width"], tile["height"], _truth_from_plain(tile["truth"])
        )
        for tile in plain["tiles"]
    )
    return LabelledImage(
        image_id=plain["image_id"],
        key=plain["key"],
        patient=plain["patient"],
        frames=ImageFrames(**frames),
        truth=_truth_from_plain(plain["truth"]),
        tiles=tiles,
        tiles_fingerprint=plain["tiles_fingerprint"],
    )


def _truth_to_plain(truth: GroundTruth) -> dict[str, Any]:
    corners = [None if np.isnan(box).any() else box.tolist() for box in truth.corners]
    return {
        "boxes": truth.boxes.tolist(),
        "labels": truth.labels.tolist(),
        "corners": corners,
        "scores": truth.scores.tolist(),
    }


def _truth_from_plain(plain: dict[str, Any]) -> GroundTruth:
    unknown = [[np.nan, np.nan]] * 4
    corners = [unknown if box is None else box for box in plain["corners"]]
    return GroundTruth(
        boxes=np.array(plain["boxes"], np.float32).reshape(-1, 4),
        labels=np.array(plain["labels"], np.int64),
        corners=np.array(corners, np.float32).reshape(-1, 4, 2),
        scores=np.array(plain["scores"], np.float32),
    )
