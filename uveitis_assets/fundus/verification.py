"""preproc/verify/preprocess_metrics.json: figures over everything preprocessed so far, from the stage indexes.

It recomputes no pixels; the limits of asset checks are applied elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from uveitis_assets.fundus.configuration import PreprocessStage, VerificationConfiguration
from uveitis_assets.fundus.sam2_batches import UNAVAILABLE
from uveitis_assets.fundus.stage_index import Row, read_stage_index
from uveitis_assets.storage import ArtefactStore, write_json

_SAM2 = "sam2_prompted: "


def preprocess_metrics(
    store: ArtefactStore,
    lanes: Sequence[str] | None = None,
    limits: VerificationConfiguration | None = None,
) -> dict[str, Any]:
    """Figures over all batches of the given lanes (None: every lane that has stage indexes).

    The keys are the earlier scripts', in their order, and ``num_quarantined``. Fallbacks are counted over all
    datasets and all causes: a mask that was not believed counts like a model that could not be loaded.
    ``sam_init_failed`` and ``sam_fallback_images`` belong to the first SAM, which is not among the methods: always
    false and 0. Rates and means are null where there is no image.
    """
    limits = limits or VerificationConfiguration()
    roi = _rows(store, "roi_masks", lanes)
    tiles = [row for row in _rows(store, "tiles", lanes) if row["quarantine_reason"] is None]
    usable = [row for row in roi if row["quarantine_reason"] is None]
    sam2_failures = [[reason for reason in row["fallbacks"] if reason.startswith(_SAM2)] for row in usable]
    tile_counts = Counter(int(row["n_tiles"]) for row in tiles)
    return {
        "num_images": len(usable),
        "roi_small_rate": _mean([row["area_ratio"] < limits.min_roi_area_ratio for row in usable]),
        "roi_border_touch_rate": _mean(
            [row["border_touch_ratio"] > limits.max_roi_border_touch_ratio for row in usable]
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


def write_preprocess_metrics(
    store: ArtefactStore,
    lanes: Sequence[str] | None = None,
    limits: VerificationConfiguration | None = None,
) -> dict[str, Any]:
    """Write preprocess_metrics.json and return its content; of two processes the later one sees all batches."""
    with store.lock("preprocess_metrics"):
        metrics = preprocess_metrics(store, lanes, limits)
        write_json(store.verify_folder() / "preprocess_metrics.json", metrics)
    return metrics


def _rows(store: ArtefactStore, stage: PreprocessStage, lanes: Sequence[str] | None) -> list[Row]:
    # A stage index's folder, whatever the batch is called.
    chosen = ["*"] if lanes is None else sorted(set(lanes))
    files = [
        path
        for lane in chosen
        for path in sorted(store.root.glob(store.stage_index(lane, stage, "*").relative_to(store.root).as_posix()))
    ]
    return [row for path in files for row in read_stage_index(path).values()]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
