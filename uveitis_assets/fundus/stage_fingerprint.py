"""Fingerprints of the stages: digests of all that a stage's result depends on besides the image.

A row with the present content hash and fingerprint need not be made again. Only settings that can change the result
enter, so that others recompute nothing.
"""

from __future__ import annotations

import json
from typing import Any

from uveitis_assets.fundus.configuration import (
    NormalizationConfiguration,
    PreprocessConfiguration,
    PreprocessStage,
    RoiConfiguration,
)
from uveitis_assets.storage.digests import short_digest


def stage_fingerprints(
    configuration: PreprocessConfiguration,
    dataset: str,
    code_version: str,
    *,
    sam2_checkpoint: str | None = None,
    reference_color: str | None = None,
) -> dict[PreprocessStage, str]:
    """Fingerprint of each stage for images of one dataset tag; each includes those of the stages before.

    Which images are persisted, the limits of the checks, the number of workers and SAM 2's batch size do not enter.

    Args:
        configuration: the lane's configuration.
        dataset: dataset tag; the ROI methods may depend on it.
        code_version: version of the code that computes the stages.
        sam2_checkpoint: digest of the SAM 2 checkpoint, None where there is none.
        reference_color: digest of the reference colours, None where there are none.

    Returns:
        16 hex digits per stage.
    """
    roi = _digest({"code": code_version, "roi": _roi_settings(configuration.roi, dataset, sam2_checkpoint)})
    normalized = _digest(
        {
            "before": roi,
            "crop_pad_px": configuration.roi.crop_pad_px,
            "normalize": _normalization_settings(configuration.normalize, reference_color),
        }
    )
    tiles = _digest({"before": normalized, "tiling": configuration.tiling.model_dump(mode="json")})
    return {"roi_masks": roi, "normalized_crops": normalized, "tiles": tiles}


def _roi_settings(roi: RoiConfiguration, dataset: str, sam2_checkpoint: str | None) -> dict[str, Any]:
    methods = roi.methods_for(dataset)
    settings: dict[str, Any] = {
        "methods": methods,
        "downsample_max_side": roi.downsample_max_side,
        "min_area_ratio": roi.min_area_ratio,
    }
    if "threshold" in methods:
        settings["sat_threshold"] = roi.sat_threshold
    if "sam2_prompted" in methods:
        settings["sam2"] = roi.sam2.model_dump(mode="json", exclude={"batch_size", "checkpoint"})
        settings["sam2_checkpoint"] = sam2_checkpoint
        settings["max_area_ratio"] = roi.max_area_ratio
        settings["max_border_touch_ratio"] = roi.max_border_touch_ratio
    return settings


def _normalization_settings(normalize: NormalizationConfiguration, reference_color: str | None) -> dict[str, Any]:
    settings: dict[str, Any] = {"method": normalize.method, "stats_erode_px": normalize.stats_erode_px}
    match normalize.method:
        case "zscore_rgb":
            settings["zscore_clip"] = normalize.zscore_clip
        case "clahe_luminance":
            settings["clahe"] = [normalize.clahe_clip_limit, normalize.clahe_grid]
        case "reinhard_lab_ref":
            settings["reference_color"] = reference_color
        case _:
            pass
    return settings


def _digest(value: dict[str, Any]) -> str:
    return short_digest(json.dumps(value, sort_keys=True))
