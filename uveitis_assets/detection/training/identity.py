"""Identity of a training: digests of all settings and data that decide its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from uveitis_assets.detection.configuration import DetectorConfiguration
from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.storage.digests import short_digest
from uveitis_assets.training.distributed import n_processes

# Settings that did not exist once: without a mention of their defaults, trainings from then stay recognised.
_ADDED_LATER = {
    "model": ("fit_anchors", "rpn_similarity", "roi_similarity", "nwd_constant"),
    "augmentation": ("origin_shift", "scale", "rotation", "copy_paste", "copy_paste_lesions"),
}


def training_identity(
    configuration: DetectorConfiguration, train: LabelledSplit, val: LabelledSplit, parent: Mapping[str, str] | None
) -> dict[str, Any]:
    """What decides a training's weights: a folder with another identity is not continued.

    Settings that only change the speed, or what is written, shown or predicted later, are left out.
    """
    settings = {
        "model": configuration.model,
        "augmentation": configuration.augmentation,
        "sampling": configuration.sampling,
        "training": configuration.training,
    }
    shown = {"tensorboard", "wandb_project", "checkpoint_every_steps", "checkpoint_every_minutes", "save_every_epochs"}
    speed = {"loader_workers", "tile_cache_gb", "channels_last", "compile"}
    left_out = shown | speed
    plain: dict[str, Any] = {name: part.model_dump(mode="json", exclude=left_out) for name, part in settings.items()}
    for part, values in plain.items():
        for name in _ADDED_LATER.get(part, ()):
            if values[name] == type(settings[part]).model_fields[name].default:
                del values[name]
    plain["selection"] = [
        configuration.overfit_images,
        configuration.evaluation.selection_iou,
        configuration.evaluation.max_detections,
        configuration.inference.merge,
        configuration.inference.merge_iou,
    ]
    # Named only where it differs from what was the only way before: trainings from then stay recognised.
    if configuration.evaluation.selection != "axis_aligned":
        plain["selection"].append(configuration.evaluation.selection)
    if configuration.inference.flips != ("none",):
        plain["selection"].append(list(configuration.inference.flips))
    if _are_scaled(val, configuration.model.input_size):
        # Once validation scaled tiles in a way of its own, and another epoch may have been the best.
        plain["selection"].append("scaled as in training")
    plain["initialise"] = [configuration.initialise.mode, configuration.initialise.min_matched] if parent else None
    return {
        "configuration": short_digest(json.dumps(plain, sort_keys=True)),
        "training labels": train.fingerprint,
        "validation labels": val.fingerprint,
        "initial weights": None if parent is None else parent["digest"],
        "number of processes": n_processes(),
    }


def _are_scaled(split: LabelledSplit, input_size: int) -> bool:
    """Whether the network sees some tiles at another size than theirs."""
    return any((tile.width, tile.height) != (input_size,) * 2 for image in split.images for tile in image.tiles)
