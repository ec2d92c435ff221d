"""Merges the detections of an image's tiles, and the answers of several detectors.

The configuration chooses the way:

- ``nms``, the default, is the earlier scripts' way: boxes shifted to where their tile lies, non-maximum suppression
  per class;
- ``edge_aware`` joins the pieces of lesions that tiles' edges cut before it suppresses duplicates;
- ``weighted_box_fusion`` averages what overlaps.

Oriented detections are suppressed by the overlap of their rotated boxes; they cannot be averaged. Several detectors
are merged tile by tile each on its own; their images' answers are then suppressed among each other (``nms``) or
averaged (the others), where a score falls with the number of detectors that did not find the lesion. Everything works
on many images at once.

One rule for scores: what merges, and how, never depends on ``score_threshold``. All that the networks answer (from
``model.box_score_threshold`` on) takes part, tile by tile and then detector by detector; the threshold chooses among
the merged detections, last of all. So the detections that are written are exactly those evaluated ones that score at
least the threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from uveitis_assets.detection.configuration import InferenceConfiguration
from uveitis_assets.detection.inference.batched_nms import batched_nms
from uveitis_assets.detection.inference.detection_table import DetectionTable, join_images, join_tiles, to_global
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.inference.edge_aware_merging import join_cut_boxes
from uveitis_assets.detection.inference.weighted_box_fusion import fuse_boxes
from uveitis_assets.imaging.geometry import ImageFrames

Merge = Callable[[DetectionTable, InferenceConfiguration], DetectionTable]


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
        ValueError: numbers of tiles differ; oriented and axis-aligned detections are mixed; oriented detections are
            to be averaged.
    """
    table = join_tiles(frames, tile_detections)
    merged = _MERGES[configuration.merge](table, configuration)
    return to_global(_at_least(merged, configuration.score_threshold), frames)


def merge_detectors(
    frames: Sequence[ImageFrames],
    tile_detections: Sequence[Sequence[Sequence[Detections]]],
    configuration: InferenceConfiguration,
) -> list[Detections]:
    """Merge the tiles of many images, found by one or several detectors (the folds of an ensemble).

    Args:
        frames: frames of each image.
        tile_detections: per detector and image, detections of each of its tiles in tile px.
        configuration: how to merge, and the score from which detections are kept.

    Returns:
        Detections of each image, as ``merge_images``.
    """
    if len(tile_detections) == 1:
        return merge_images(frames, tile_detections[0], configuration)
    # A detector's doubts take part in the ensemble's answer: the threshold comes after both steps.
    everything = configuration.model_copy(update={"score_threshold": 0.0})
    merged = [merge_images(frames, found, everything) for found in tile_detections]
    return fuse_detectors(frames, merged, configuration)


def fuse_detectors(
    frames: Sequence[ImageFrames],
    detections: Sequence[Sequence[Detections]],
    configuration: InferenceConfiguration,
) -> list[Detections]:
    """Fuse the merged detections of several detectors (the folds of an ensemble) on the same images.

    Args:
        frames: frames of each image.
        detections: per detector, the detections of each image in global px, as ``merge_images`` returns them without
            a threshold.
        configuration: how to merge, and the score from which fused detections are kept.

    Returns:
        Detections of each image, as ``merge_images``.
    """
    in_global = [replace(image_frames, frame="global", tiles=()) for image_frames in frames]
    table = join_images(detections, [image_frames.tiling_size for image_frames in in_global])
    if configuration.merge == "nms" or table.corners is not None:
        merged = _suppressed(table, configuration.merge_iou)
    else:
        merged = fuse_boxes(table, iou=configuration.merge_iou, n_models=len(detections))
    return to_global(_at_least(merged, configuration.score_threshold), in_global)


def _nms(table: DetectionTable, configuration: InferenceConfiguration) -> DetectionTable:
    # Only better detections suppress one: leaving out the weak ones before is the same, and faster.
    return _suppressed(_at_least(table, configuration.score_threshold), configuration.merge_iou)


def _edge_aware(table: DetectionTable, configuration: InferenceConfiguration) -> DetectionTable:
    return _suppressed(join_cut_boxes(table, iou=configuration.merge_iou), configuration.merge_iou)


def _weighted_box_fusion(table: DetectionTable, configuration: InferenceConfiguration) -> DetectionTable:
    # Tiles are no models: most lesions are seen by one tile only, and that is no reason for doubt.
    return fuse_boxes(table, iou=configuration.merge_iou, n_models=1)


def _suppressed(table: DetectionTable, iou: float) -> DetectionTable:
    ranked = table.best_first()
    if ranked.corners is None:
        return ranked.select(batched_nms(ranked.boxes, ranked.groups(), iou))
    import torch

    from uveitis_assets.detection.models.rotated_boxes import rotated_nms

    corners, scores, groups = (torch.from_numpy(part) for part in (ranked.corners, ranked.scores, ranked.groups()))
    # Of equal scores the first row wins there too; the rows stay in their order.
    return ranked.select(np.sort(rotated_nms(corners, scores, groups, iou).numpy()))


def _at_least(table: DetectionTable, score: float) -> DetectionTable:
    # Networks give float32: the float32 next to 0.7 counts as 0.7.
    return table.select(table.scores.astype(np.float32) >= np.float32(score))


_MERGES: dict[str, Merge] = {"nms": _nms, "edge_aware": _edge_aware, "weighted_box_fusion": _weighted_box_fusion}
