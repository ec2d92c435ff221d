"""preprocess_metrics.json."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from uveitis_assets.fundus.configuration import (
    STAGES,
    PreprocessConfiguration,
    RoiConfiguration,
    VerificationConfiguration,
)
from uveitis_assets.fundus.preprocess import preprocess_batch
from uveitis_assets.fundus.stage_schemas import STAGE_SCHEMAS
from uveitis_assets.fundus.verification import preprocess_metrics, write_preprocess_metrics
from uveitis_assets.stages.index import write_stage_index
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.fundus.preprocess_inputs import SMALL, land, land_many

KEYS = [
    "num_images",
    "roi_small_rate",
    "roi_border_touch_rate",
    "sam_init_failed",
    "sam_fallback_images",
    "sam2_init_failed",
    "sam2_fallback_images",
    "tile_count_distribution",
    "avg_reconstruction_abs_error",
]


def roi_row(name: str, **columns: Any) -> dict[str, Any]:
    return {
        "image_id": name,
        "quarantine_reason": None,
        "method": "threshold",
        "fallbacks": [],
        "area_ratio": 0.5,
        "border_touch_ratio": 0.1,
    } | columns


def tiles_row(name: str, **columns: Any) -> dict[str, Any]:
    return {"image_id": name, "quarantine_reason": None, "n_tiles": 4, "reconstruction_abs_error": 0.0} | columns


def test_figures_are_taken_over_all_lanes_and_batches(store: ArtefactStore) -> None:
    refused = ["sam2_prompted: expected a mask of at least 0.100 of the image, found 0.002"]
    write_stage_index(
        store.stage_index("one", "roi_masks", "b1"),
        STAGE_SCHEMAS["roi_masks"],
        [
            roi_row("a", area_ratio=0.11),
            roi_row("b", border_touch_ratio=0.6),
            roi_row("q", quarantine_reason="missing"),
        ],
    )
    write_stage_index(
        store.stage_index("two", "roi_masks", "b7"),
        STAGE_SCHEMAS["roi_masks"],
        [roi_row("c", fallbacks=refused), roi_row("d")],
    )
    write_stage_index(
        store.stage_index("one", "tiles", "b1"),
        STAGE_SCHEMAS["tiles"],
        [tiles_row("a", n_tiles=12, reconstruction_abs_error=0.5), tiles_row("b")],
    )
    metrics = preprocess_metrics(store)
    assert metrics["num_images"] == 4
    assert metrics["num_quarantined"] == 1
    assert metrics["roi_small_rate"] == 0.25
    assert metrics["roi_border_touch_rate"] == 0.25
    assert metrics["sam2_fallback_images"] == 1
    assert metrics["sam2_init_failed"] is False
    assert metrics["tile_count_distribution"] == {"4": 1, "12": 1}
    assert metrics["avg_reconstruction_abs_error"] == 0.25
    assert preprocess_metrics(store, ["two"])["num_images"] == 2


def test_each_lane_is_compared_with_its_own_limits_whichever_ran_last(store: ArtefactStore) -> None:
    for lane in ("one", "two"):
        rows = [roi_row(f"{lane}{number}", area_ratio=0.2, border_touch_ratio=0.3) for number in range(2)]
        write_stage_index(store.stage_index(lane, "roi_masks", "b1"), STAGE_SCHEMAS["roi_masks"], rows)
    strict = VerificationConfiguration(min_roi_area_ratio=0.25, max_roi_border_touch_ratio=0.25)
    lax = VerificationConfiguration(min_roi_area_ratio=0.1)
    only_one = write_preprocess_metrics(store, "one", strict)
    assert (only_one["roi_small_rate"], only_one["roi_border_touch_rate"]) == (0.5, 0.5)
    both = write_preprocess_metrics(store, "two", lax)
    assert write_preprocess_metrics(store, "one", strict) == both
    assert (both["roi_small_rate"], both["roi_border_touch_rate"]) == (0.5, 0.5)
    assert write_preprocess_metrics(store, "two", strict)["roi_small_rate"] == 1.0


def test_limits_that_cannot_be_read_are_named(store: ArtefactStore) -> None:
    write_stage_index(store.stage_index("one", "roi_masks", "b1"), STAGE_SCHEMAS["roi_masks"], [roi_row("a")])
    store.lane_limits_file("one").write_text('{"min_roi": 1}')
    with pytest.raises(ValueError, match=r"limits\.json.*delete the file"):
        preprocess_metrics(store)


def test_a_model_that_could_not_be_loaded_is_not_hidden(store: ArtefactStore) -> None:
    roi = RoiConfiguration.model_validate(
        {"method": "sam2_prompted", "fallback": ["threshold"], "sam2": {"checkpoint": "models/none.pt"}}
    )
    configuration = PreprocessConfiguration(roi=roi, tiling=SMALL.tiling)
    preprocess_batch(store, "lane", "b1", land_many(store, 2), configuration, STAGES, workers=1, code_version="1")
    metrics = preprocess_metrics(store)
    assert metrics["sam2_init_failed"] is True
    assert metrics["sam2_fallback_images"] == 2


def test_the_file_has_the_earlier_scripts_keys(store: ArtefactStore) -> None:
    images = [*land_many(store, 2), land(store, "black.png", np.zeros((90, 90, 3), dtype=np.uint8))]
    preprocess_batch(store, "lane", "b1", images, SMALL, STAGES, workers=1, code_version="1")
    written = write_preprocess_metrics(store, "lane", VerificationConfiguration())
    on_disk = json.loads((store.root / "preproc" / "verify" / "preprocess_metrics.json").read_text())
    assert on_disk == written
    assert list(on_disk)[: len(KEYS)] == KEYS
    assert on_disk["num_images"] == 2
    assert on_disk["num_quarantined"] == 1
    assert on_disk["avg_reconstruction_abs_error"] == 0.0


def test_without_images_rates_are_null_rather_than_good(store: ArtefactStore) -> None:
    metrics = preprocess_metrics(store)
    assert metrics["num_images"] == 0
    assert metrics["roi_small_rate"] is None
    assert metrics["avg_reconstruction_abs_error"] is None
