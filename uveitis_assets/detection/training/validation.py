"""Evaluates a detector on labelled images: detects tiles, merges per image, compares with labels.

With several processes each detects a share of the images, and every process evaluates all.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from uveitis_assets.detection.configuration import DetectorConfiguration
from uveitis_assets.detection.data.labelled_split import LabelledImage, LabelledSplit
from uveitis_assets.detection.data.tile_dataset import TilePixels
from uveitis_assets.detection.evaluation.evaluate import Evaluation, evaluate_detections
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.inference.predict_images import predict_images
from uveitis_assets.training.distributed import gathered, n_processes, process_rank


def validate(
    model: nn.Module,
    split: LabelledSplit,
    configuration: DetectorConfiguration,
    *,
    pixels: TilePixels,
    device: torch.device,
    amp: bool,
    intervals: bool,
) -> Evaluation:
    """Evaluate a detector on every image of a split, detections merged per image in global px.

    Every process of a group has to call this, and each gets the same result.

    Args:
        model: on ``device``, in evaluation mode.
        split: labelled images.
        configuration: merging and evaluation.
        pixels: where the tiles come from.
        device: where the model is.
        amp: mixed precision.
        intervals: resample patients too.
    """
    # AP ranks all detections: those below the threshold of written predictions count as well.
    inference = configuration.inference.model_copy(update={"score_threshold": 0.0})
    evaluation = configuration.evaluation
    if not intervals:
        evaluation = evaluation.model_copy(update={"bootstrap_samples": 0})
    own = split.images[process_rank() :: n_processes()]
    found = {
        image.image_id: detections
        for image, detections in predict_images(
            [model], own, inference, device=device, amp=amp, read_tiles=lambda image: _tiles(pixels, image)
        )
    }
    everywhere: dict[str, Detections] = {}
    for part in gathered(found):
        everywhere |= part
    detections = [everywhere[image.image_id] for image in split.images]
    return evaluate_detections(split.images, detections, split.categories, evaluation)


def _tiles(pixels: TilePixels, image: LabelledImage) -> list[NDArray[np.uint8]]:
    return [pixels.read(image, number) for number in range(len(image.tiles))]
