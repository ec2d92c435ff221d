"""Identity of a training: digests of all settings and data that decide its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from uveitis_assets.detection.configuration import DetectorConfiguration
from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.data.sampling import EpochSampler
from uveitis_assets.detection.evaluation.detection_limits import detections_that_count
from uveitis_assets.detection.model_configuration import FEWEST_DETECTIONS, IMAGENET_MEAN, IMAGENET_STD
from uveitis_assets.storage.digests import short_digest
from uveitis_assets.training.distributed import n_processes

# Settings that did not exist once: without a mention of their defaults, trainings from then stay recognised.
_ADDED_LATER = {
    "model": (
        *("fit_anchors", "rpn_similarity", "roi_similarity", "nwd_constant"),
        *("head_stages", "later_stage_ious", "stage_loss_weights"),
        *("rpn_anchors_per_tile", "rpn_positive_share", "roi_regions_per_tile", "roi_positive_share"),
    ),
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
        defaults = type(settings[part])().model_dump(mode="json")
        for name in _ADDED_LATER.get(part, ()):
            if values[name] == defaults[name]:
                del values[name]
    _as_before(plain["model"])
    plain["selection"] = [
        configuration.overfit_images,
        configuration.evaluation.selection_iou,
        detections_that_count(configuration.evaluation.max_detections, val.images),
        configuration.inference.merge,
        configuration.inference.merge_iou,
    ]
    # Named only where it differs from what was the only way before: trainings from then stay recognised.
    if configuration.evaluation.selection != "axis_aligned":
        plain["selection"].append(configuration.evaluation.selection)
    if configuration.inference.merge != "nms":
        # Weak detections once took another part in merging, and another epoch may have been the best.
        plain["selection"].append("thresholds after merging")
    if configuration.inference.flips != ("none",):
        plain["selection"].append(list(configuration.inference.flips))
    if _are_scaled(val, configuration.model.input_size):
        # Once validation scaled tiles in a way of its own, and another epoch may have been the best.
        plain["selection"].append("scaled as in training")
    if len(train.categories) < configuration.model.n_categories:
        # Once a network answered with classes that it was not taught, and another epoch may have been the best.
        plain["classes"] = "untaught masked"
    if _sampler(configuration, train).has_remainders_or_few_empty_tiles:
        # Once remainders were drawn by chance, and empty tiles several times an epoch.
        plain["draws"] = "remainders carried, empty tiles once"
    if configuration.model.roi_similarity != "iou":
        # Once regions were compared by IoU whatever the setting was.
        plain["regions"] = "compared as configured"
    plain["initialise"] = [configuration.initialise.mode, configuration.initialise.min_matched] if parent else None
    return {
        "configuration": short_digest(json.dumps(plain, sort_keys=True)),
        "training labels": train.fingerprint,
        "validation labels": val.fingerprint,
        "initial weights": None if parent is None else parent["digest"],
        "number of processes": n_processes(),
    }


def _as_before(model: dict[str, Any]) -> None:
    """Settings that follow labels and backbone, as they stood when they were fixed numbers."""
    model["detections_per_tile"] = model["detections_per_tile"] or FEWEST_DETECTIONS
    if model["input_mean"] in (None, list(IMAGENET_MEAN)) and model["input_std"] in (None, list(IMAGENET_STD)):
        del model["input_mean"], model["input_std"]


def _sampler(configuration: DetectorConfiguration, train: LabelledSplit) -> EpochSampler:
    return EpochSampler(train.images, configuration.sampling, configuration.training.seed)


def _are_scaled(split: LabelledSplit, input_size: int) -> bool:
    """Whether the network sees some tiles at another size than theirs."""
    return any((tile.width, tile.height) != (input_size,) * 2 for image in split.images for tile in image.tiles)
