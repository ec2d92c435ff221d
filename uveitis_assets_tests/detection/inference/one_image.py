"""Merging of the tiles of a single image, for tests that need no more."""

from __future__ import annotations

from collections.abc import Sequence

from uveitis_assets.detection.configuration import InferenceConfiguration
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.inference.merging import merge_images
from uveitis_assets.imaging.geometry import ImageFrames


def merged_image(
    frames: ImageFrames, tile_detections: Sequence[Detections], configuration: InferenceConfiguration
) -> Detections:
    [merged] = merge_images([frames], [tile_detections], configuration)
    return merged
