"""Labels leave out images whose tiles or metadata broke, and name them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from uveitis_assets.fundus.configuration import STAGES
from uveitis_assets.fundus.preprocess import preprocess_batch
from uveitis_assets.labels.damaged_tiles import damaged_tiles
from uveitis_assets.stages.index import index_copy
from uveitis_assets.stages.suspect_files import read_suspects
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.fundus.preprocess_inputs import SMALL, land_many

ROWS = [{"image_id": f"lane::image0{number}", "batch": "b00001"} for number in range(3)]


@pytest.fixture
def store(tmp_path: Path) -> ArtefactStore:
    store = ArtefactStore(tmp_path, tmp_path / "raw")
    images = land_many(store, 3)
    preprocess_batch(store, "lane", "b00001", lambda: images, SMALL, STAGES, workers=1, code_version="1")
    return store


def files(store: ArtefactStore) -> dict[str, Path]:
    key = "lane__image01"
    return {
        "global": store.global_image(key, 128),
        "tile": store.tile(key, "tile_001"),
        "tiles_meta": store.tiles_metadata(key),
        "crop_meta": store.crop_metadata(key),
    }


@pytest.mark.parametrize("broken", ["global", "tile", "tiles_meta", "crop_meta"])
@pytest.mark.parametrize("size", [0, 50])
def test_an_image_with_a_cut_or_empty_file_is_left_out_by_name(store: ArtefactStore, broken: str, size: int) -> None:
    path = files(store)[broken]
    length = path.stat().st_size
    os.truncate(path, size)
    name = store.name_of(path)
    assert damaged_tiles(store, "lane", ROWS) == {"lane::image01": f"{name}: expected {length} bytes, found {size}"}
    stage = "normalized_crops" if broken == "crop_meta" else "tiles"
    assert read_suspects(store.stage_index("lane", stage, "b00001")) == {name}


def test_metadata_with_another_digit_are_left_out_and_files_that_are_gone_are_not_looked_at(
    store: ArtefactStore,
) -> None:
    path = files(store)["crop_meta"]
    path.write_bytes(path.read_bytes().replace(b"200", b"201"))
    assert "expected CRC-32" in damaged_tiles(store, "lane", ROWS)["lane::image01"]
    for path in files(store).values():
        path.unlink()
    assert damaged_tiles(store, "lane", ROWS) == {}


def test_empty_files_are_found_where_the_version_before_recorded_none(store: ArtefactStore) -> None:
    import polars as pl

    for stage in STAGES:
        index = store.stage_index("lane", stage, "b00001")
        pl.read_parquet(index).drop("files").write_parquet(index)
        index_copy(index).unlink()
    assert damaged_tiles(store, "lane", ROWS) == {}
    os.truncate(files(store)["tile"], 0)
    os.truncate(store.tiles_metadata("lane__image02"), 9)
    found = damaged_tiles(store, "lane", ROWS)
    assert list(found) == ["lane::image01", "lane::image02"]
    assert "found an empty file" in found["lane::image01"]
    assert "expected JSON" in found["lane::image02"]
