"""The labelled images and tiles of one fold and split, as training and evaluation see them.

These are plain records; reading them from the COCO files is the business of ``coco_split``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uveitis_assets.detection.inference.detections import GroundTruth
from uveitis_assets.imaging.geometry import ImageFrames


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
    hex digits that change with the tiles' pixels, whatever the labels; empty where nothing has to know.
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
