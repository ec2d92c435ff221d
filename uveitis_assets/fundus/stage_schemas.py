"""Columns and metadata of the preprocessing stages' indexes."""

from __future__ import annotations

import polars as pl

from uveitis_assets.fundus.configuration import PreprocessStage

# Name of the metadata: digest of the reference colours, in the indexes of the stages that depend on them.
REFERENCE_COLOR_METADATA = "reference_color"

_COMMON = {
    "image_id": pl.String,
    "key": pl.String,
    "dataset": pl.String,
    "content_hash": pl.String,
    "fingerprint": pl.String,
    "quarantine_reason": pl.String,
    "quarantine_detail": pl.String,
}

STAGE_SCHEMAS: dict[PreprocessStage, pl.Schema] = {
    "roi_masks": pl.Schema(
        _COMMON
        | {
            "method": pl.String,
            "fallbacks": pl.List(pl.String),
            "area_ratio": pl.Float64,
            "border_touch_ratio": pl.Float64,
            "width": pl.Int32,
            "height": pl.Int32,
        }
    ),
    "normalized_crops": pl.Schema(
        _COMMON
        | dict.fromkeys(("x0", "y0", "x1", "y1"), pl.Int32)
        | {"method": pl.String}
        | dict.fromkeys(("mean_r", "mean_g", "mean_b", "std_r", "std_g", "std_b"), pl.Float64)
        | {"channels_without_signal": pl.List(pl.String)}
    ),
    "tiles": pl.Schema(
        _COMMON
        | {
            "n_tiles": pl.Int32,
            "global_size": pl.Int32,
            "frame": pl.String,
            "reconstruction_abs_error": pl.Float64,
            "black_ratio": pl.Float64,
        }
    ),
}
