"""Merging the detections of an image's tiles into the image's, and those of several detectors into one answer.

A small table says which function does it. ``nms``, the default, is the earlier scripts' way: score threshold, boxes
shifted to where their tile lies, class-wise non-maximum suppression. Everything works on many images at once. It runs
no network and reads no files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from uveitis_assets.detection.class_wise_nms import class_wise_nms
from uveitis_assets.detection.configuration import InferenceConfiguration
from uveitis_assets.detection.detection_batch import DetectionBatch, join_images, join_tiles, to_global
from uveitis_assets.detection.detections import Detections
from uveitis_assets.fundus.geometry import ImageFrames

Merge = Callable[[DetectionBatch, InferenceConfiguration], DetectionBatch]


def merge_image(
    frames: ImageFrames, tile_detections: Sequence[Detections], configuration: InferenceConfiguration
) -> Detections:
    """Merge one image's tiles; see ``merge_images``."""
    return merge_images([frames], [tile_detections], configuration)[0]


def merge_images(
    frames: Sequence[ImageFrames],
    tile_detections: Sequence[Sequence[Detections]],
    configuration: InferenceConfiguration,
) -> list[Detections]:
    """Merge the tiles of many images, found by one detector.

    Args:
        frames: frames of each image; tiles may be cut from the global image or from the native crop.
        tile_detections: per image, detections of each of its tiles in tile px.
        configuration: how to merge, and the score from which detections are kept.

    Returns:
        Detections of each image in global px, clipped to the image, best first with a fixed rule for ties; the
        result does not depend on the order of tiles' detections nor on the other images.

    Raises:
        ValueError: numbers of tiles differ; oriented and axis-aligned detections are mixed.
    """
    batch = join_tiles(frames, tile_detections)
    merged = _MERGES[configuration.merge](batch, configuration)
    return to_global(_at_least(merged, configuration.score_threshold), frames)


def fuse_detectors(
    frames: Sequence[ImageFrames],
    detections: Sequence[Sequence[Detections]],
    configuration: InferenceConfiguration,
) -> list[Detections]:
    """Fuse the merged detections of several detectors (the folds of an ensemble) on the same images.

    Args:
        frames: frames of each image.
        detections: per detector, the detections of each image in global px, as ``merge_images`` returns them.
        configuration: how to merge.

    Returns:
        Detections of each image, as ``merge_images``.
    """
    if len(detections) == 1:
        return list(detections[0])
    in_global = [replace(image_frames, frame="global", tiles=()) for image_frames in frames]
    batch = join_images(detections, [image_frames.tiling_size for image_frames in in_global])
    merged = _nms(batch, configuration)
    return to_global(_at_least(merged, configuration.score_threshold), in_global)


def _nms(batch: DetectionBatch, configuration: InferenceConfiguration) -> DetectionBatch:
    batch = _at_least(batch, configuration.score_threshold)
    return batch.select(class_wise_nms(batch.boxes, batch.groups(), batch.best_first(), configuration.merge_iou))


def _at_least(batch: DetectionBatch, score: float) -> DetectionBatch:
    # Networks give float32: the float32 next to 0.7 counts as 0.7.
    return batch.select(batch.scores.astype(np.float32) >= np.float32(score))


_MERGES: dict[str, Merge] = {"nms": _nms}
