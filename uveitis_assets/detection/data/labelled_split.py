"""The labelled images and tiles of one fold and split, as training and evaluation see them.

Plain records; ``coco_reader`` reads them from COCO files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3

from uveitis_assets.detection.inference.detections import GroundTruth
from uveitis_assets.imaging.geometry import ImageFrames

FINGERPRINT_DIGITS = 16


@dataclass(frozen=True, slots=True)
class LabelledTile:
    """One tile of a labelled image; ``truth`` is in the tile's pixels, ``file`` is its RGB PNG."""

    tile_id: str
    file: Path
    width: int
    height: int
    truth: GroundTruth


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One labelled image; ``truth`` is in the global image's pixels.

    ``patient`` is the manifest's pseudonym. ``frames`` place the tiles in the global image and in the source image.
    ``tiles`` holds every tile, those without lesions too, in the order of the COCO file. ``tiles_fingerprint`` is 16
    hex digits that change with the tiles' pixels, whatever the labels; empty where nothing needs it.
    """

    image_id: str
    key: str
    patient: str
    frames: ImageFrames
    truth: GroundTruth
    tiles: tuple[LabelledTile, ...]
    tiles_fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class LabelledSplit:
    """All labelled images of one lane, fold and split, in the order of the COCO file.

    ``categories`` maps category ids (from 1) to names; ``fingerprint`` is 16 hex digits that change when the labels,
    the tiles' content or their frames change.
    """

    lane: str
    fold: int
    split: str
    images: tuple[LabelledImage, ...]
    categories: dict[int, str]
    fingerprint: str


def labelled_fingerprint(images: Iterable[LabelledImage], categories: Mapping[int, str]) -> str:
    """16 hex digits of what training sees of images: labels, categories, frames and tile content."""
    digest = blake3(repr(sorted(categories.items())).encode())
    for image in images:
        # The patient stays out: pseudonyms differ between installations, pixels and labels do not.
        digest.update(repr((image.image_id, image.tiles_fingerprint, image.frames)).encode())
        for truth in (image.truth, *(tile.truth for tile in image.tiles)):
            digest.update(len(truth).to_bytes(8, "little"))
            for array in (truth.boxes, truth.labels, truth.corners, truth.scores):
                digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:FINGERPRINT_DIGITS]
