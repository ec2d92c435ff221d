"""Figures of preprocess_metrics.json over everything preprocessed so far, from the stage indexes.

Asset checks apply their limits elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from pydantic import ValidationError

from uveitis_assets.fundus.configuration import PreprocessStage, VerificationConfiguration
from uveitis_assets.fundus.roi.sam2_batches import UNAVAILABLE
from uveitis_assets.stages.index import Row, read_stage_index
from uveitis_assets.storage.files import read_json, write_json
from uveitis_assets.storage.store import ArtefactStore

# The limits that the figures look at.
_LIMIT_FIELDS = {"min_roi_area_ratio", "max_roi_border_touch_ratio"}
_SAM2 = "sam2_prompted: "


def preprocess_metrics(store: ArtefactStore, lanes: Sequence[str] | None = None) -> dict[str, Any]:
    """Figures over all batches of the given lanes (None: every lane that has stage indexes).

    Each lane's images are compared with that lane's limits (see write_preprocess_metrics), so that the figures do not
    depend on which lane ran last; by the default limits where a lane has left none.

    The keys are the earlier scripts', in their order, and ``num_quarantined``. Fallbacks are counted over all
    datasets and all causes: an implausible mask counts like a model that could not be loaded.
    ``sam_init_failed`` and ``sam_fallback_images`` belong to the first SAM, which is not among the methods: always
    false and 0. Rates and means are null where there is no image.
    """
    roi = _rows(store, "roi_masks", lanes)
    tiles = [row for _, row in _rows(store, "tiles", lanes) if row["quarantine_reason"] is None]
    usable_of_lanes = [(lane, row) for lane, row in roi if row["quarantine_reason"] is None]
    usable = [row for _, row in usable_of_lanes]
    limits = {lane: _limits(store, lane) for lane in sorted({lane for lane, _ in usable_of_lanes})}
    sam2_failures = [[reason for reason in row["fallbacks"] if reason.startswith(_SAM2)] for row in usable]
    tile_counts = Counter(int(row["n_tiles"]) for row in tiles)
    return {
        "num_images": len(usable),
        "roi_small_rate": _mean([row["area_ratio"] < limits[lane].min_roi_area_ratio for lane, row in usable_of_lanes]),
        "roi_border_touch_rate": _mean(
            [row["border_touch_ratio"] > limits[lane].max_roi_border_touch_ratio for lane, row in usable_of_lanes]
        ),
        "sam_init_failed": False,
        "sam_fallback_images": 0,
        "sam2_init_failed": any(
            reason.startswith(_SAM2 + UNAVAILABLE) for reasons in sam2_failures for reason in reasons
        ),
        "sam2_fallback_images": sum(1 for reasons in sam2_failures if reasons),
        "tile_count_distribution": {str(count): tile_counts[count] for count in sorted(tile_counts)},
        "avg_reconstruction_abs_error": _mean([row["reconstruction_abs_error"] for row in tiles]),
        "num_quarantined": len(roi) - len(usable),
    }


def write_preprocess_metrics(store: ArtefactStore, lane: str, limits: VerificationConfiguration) -> dict[str, Any]:
    """Keep a lane's limits, then write preprocess_metrics.json over all lanes and return its content.

    Of two processes the later one sees all batches.
    """
    with store.lock("preprocess_metrics"):
        write_json(store.lane_limits_file(lane), limits.model_dump(mode="json", include=_LIMIT_FIELDS))
        metrics = preprocess_metrics(store)
        write_json(store.verify_folder() / "preprocess_metrics.json", metrics)
    return metrics


def _limits(store: ArtefactStore, lane: str) -> VerificationConfiguration:
    path = store.lane_limits_file(lane)
    if not path.exists():
        return VerificationConfiguration()
    try:
        return VerificationConfiguration.model_validate(read_json(path))
    except ValidationError as error:
        raise ValueError(f"{path}: expected the limits of {lane}; delete the file and run again: {error}") from error


def _rows(store: ArtefactStore, stage: PreprocessStage, lanes: Sequence[str] | None) -> list[tuple[str, Row]]:
    """Lane and row of each image. A stage index lies in its folder, whatever the batch is called."""
    chosen = ["*"] if lanes is None else sorted(set(lanes))
    files = [
        path
        for lane in chosen
        for path in sorted(store.root.glob(store.stage_index(lane, stage, "*").relative_to(store.root).as_posix()))
    ]
    return [(path.parts[-3], row) for path in files for row in read_stage_index(path).values()]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
