"""Lanes that need more than their own images: Reinhard colours from other lanes, two dataset tags in one lane."""

import json
import shutil
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from uveitis_assets.components.reference_color import ReferenceColor
from uveitis_assets.storage.files import read_json
from uveitis_assets_tests.components.running_platform import QUIET, Platform, requested
from uveitis_assets_tests.lane_project import fundus_lanes, load_project

REINHARD = """\
type: uveitis_assets.components.fundus_dataset.FundusDataset
attributes:
  name: uwf700
  layout: uwf700
  folder: uwf-700
  roi: {method: threshold}
  normalize: {method: reinhard_lab_ref}
  tiling: {global_size: 128, tile_size: 96}
"""
REGULAR = """\
type: uveitis_assets.components.fundus_dataset.FundusDataset
attributes:
  name: fgadr
  layout: fgadr
  folder: fgadr
"""
REFERENCE = """\
type: uveitis_assets.components.reference_color.ReferenceColor
attributes:
  lanes: [fgadr]
  datasets: [fgadr]
  pixels_per_image: 500
"""


def test_a_reinhard_lane_waits_for_the_reference_colours_and_follows_them(
    tmp_path: Path, platform: Platform, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes = {"uwf700": REINHARD, "fgadr": REGULAR, "reference_color": REFERENCE}
    definitions = load_project(tmp_path, "reinhard_lanes", lanes, monkeypatch)
    tree = dg.ComponentTree.for_project(tmp_path / "reinhard_lanes")
    assert len(tree.get_all_components(of_type=ReferenceColor)) == 1
    two = Platform(definitions, fundus_lanes(tmp_path / "reinhard_lanes"), platform.store)
    for path in sorted(sample.glob("uwf-700/Images/Uveitis/*.jpg"))[:2]:
        two.land(sample, [path.relative_to(sample / "uwf-700").as_posix()])
    shutil.copytree(sample / "fgadr", two.store.raw / "fgadr")
    two.register("uwf700")
    two.register("fgadr")

    early = two.run("uwf700")
    assert not early.success
    (failure,) = [event for event in early.all_events if event.is_step_failure]
    assert "reference_color" in str(failure.event_specific_data)
    assert two.materialized("uwf700/normalized_crops") == set()

    assert two.run("fgadr", only=["manifest"]).success
    result = dg.materialize(
        list(definitions.assets or []), selection=["reference_color"], instance=two.instance, run_config=QUIET
    )
    assert result.success
    (event,) = result.asset_materializations_for_node("reference_color")
    assert event.metadata["n_images_used"].value == 5
    reference = read_json(two.store.reference_color_file())
    assert two.run("uwf700").success
    before = read_json(two.store.normalization_metadata("uwf700__Uveitis-001"))
    assert before["method"] == "reinhard_lab_ref"
    assert two.metadata("uwf700/normalized_crops", "b00001")["n_done"] == 2

    assert "up to date" in str(two.tick_schedule("uwf700_fill_missing"))
    two.store.reference_color_file().write_text(json.dumps({**reference, "lab_mean": [60.0, 140.0, 140.0]}))
    requests = two.tick_schedule("uwf700_fill_missing")
    assert not isinstance(requests, dg.SkipReason), "crops of former colours are stale"
    assert [first for first, _, _ in requested(requests)] == ["b00001"]
    assert two.run("uwf700").success
    assert "up to date" in str(two.tick_schedule("uwf700_fill_missing"))
    assert two.metadata("uwf700/roi_masks", "b00001")["n_done"] == 0
    assert two.metadata("uwf700/normalized_crops", "b00001")["n_done"] == 2
    assert two.metadata("uwf700/tiles", "b00001")["n_done"] == 2


def test_deepdrid_runs_both_of_its_dataset_tags_with_their_own_roi_method_and_official_splits(
    platform: Platform, sample: Path
) -> None:
    root = platform.store.raw / "deepdrid"
    regular = sorted((sample / "fgadr" / "Original_Images").iterdir())
    wide = sorted((sample / "uwf-700" / "Images" / "Healthy").iterdir())
    subsets = {
        "regular_fundus_images/regular-fundus-training": ("1_l1", regular[0]),
        "regular_fundus_images/regular-fundus-validation": ("2_r1", regular[1]),
        "ultra-widefield_images/ultra-widefield-training": ("3_l1", wide[0]),
    }
    for folder, (name, source) in subsets.items():
        images = root / folder / "Images" / name.split("_")[0]
        images.mkdir(parents=True)
        shutil.copy(source, images / f"{name}{source.suffix}")
    platform.register("deepdrid")
    assert platform.run("deepdrid").success
    part = pl.read_parquet(platform.store.manifest_part("deepdrid", "b00001")).sort("image_id")
    assert part["dataset"].to_list() == ["deepdrid_regular", "deepdrid_regular", "deepdrid_uwf"]
    assert part["split"].to_list() == ["train", "val", "train"]
    roi = pl.read_parquet(platform.store.stage_index("deepdrid", "roi_masks", "b00001")).sort("image_id")
    assert roi["method"].to_list() == ["threshold", "threshold", "uwf"]
    assert roi["image_id"].to_list() == part["image_id"].to_list()
    assert platform.metadata("deepdrid/tiles", "b00001")["n_done"] == 3
    listed = platform.metadata("deepdrid/manifest", "b00001")["landing_problems"]
    assert "regular-fundus-training.csv, found none" in listed, "grades are missing and the UI says so"
