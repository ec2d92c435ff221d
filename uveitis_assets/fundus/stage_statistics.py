"""Statistics of a preprocessing stage over all usable images of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from uveitis_assets.fundus.configuration import PreprocessStage
from uveitis_assets.stages.index import Row

# Name of the number, column of the stage's index, how the column is summed up.
_STATISTICS: dict[PreprocessStage, tuple[tuple[str, str, Callable[[list[Any]], float]], ...]] = {
    "roi_masks": (
        ("roi_area_ratio_min", "area_ratio", min),
        ("roi_area_ratio_mean", "area_ratio", fmean),
        ("roi_border_touch_ratio_mean", "border_touch_ratio", fmean),
        ("roi_border_touch_ratio_max", "border_touch_ratio", max),
    ),
    "normalized_crops": (
        ("n_channels_without_signal", "channels_without_signal", lambda lists: sum(map(len, lists))),
        *((f"{column}_mean", column, fmean) for column in ("mean_r", "mean_g", "mean_b")),
    ),
    "tiles": (
        ("n_tiles", "n_tiles", sum),
        ("reconstruction_abs_error_max", "reconstruction_abs_error", max),
        ("reconstruction_abs_error_mean", "reconstruction_abs_error", fmean),
        ("black_ratio_mean", "black_ratio", fmean),
    ),
}


def stage_statistics(stage: PreprocessStage, rows: Sequence[Row]) -> dict[str, float]:
    """Statistics over the index rows of a stage's usable images; none without any."""
    if not rows:
        return {}
    values = {name: reduce([row[column] for row in rows]) for name, column, reduce in _STATISTICS[stage]}
    # Counts stay whole numbers: 32 tiles would be shown as 32.0.
    return {name: value if isinstance(value, int) else float(value) for name, value in values.items()}
