"""Labels leave out images whose tiles or metadata broke, and name them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from uveitis_assets.fundus.configuration import STAGES
from uveitis_assets.fundus.preprocess import preprocess_batch
from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.labels.coco_summary import BadLabel
from uveitis_assets.labels.configuration import LabelConfiguration
from uveitis_assets.labels.damaged_tiles import damaged_tiles
from uveitis_assets.labels.image_lesions import read_image_lesions
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


def left_out(store: ArtefactStore) -> dict[str, str]:
    """Images that labels leave out as damaged: by the sizes of their pictures, or when their metadata are read."""
    space = load_class_map().label_space("obb")
    labels = LabelConfiguration(format="obb")
    found, stamps = damaged_tiles(store, "lane", ROWS)
    for row in ROWS:
        if row["image_id"] not in found:
            unlabelled = {**row, "label_paths": [], "label_hashes": []}
            read = read_image_lesions(store, store.raw, labels, space, unlabelled, lane="lane", stamps=stamps)
            if isinstance(read, BadLabel) and read.reason == "damaged_artefact":
                found[row["image_id"]] = read
    return {image_id: bad.detail or "" for image_id, bad in found.items()}


@pytest.mark.parametrize("broken", ["global", "tile", "tiles_meta", "crop_meta"])
@pytest.mark.parametrize("size", [0, 50])
def test_an_image_with_a_cut_or_empty_file_is_left_out_by_name(store: ArtefactStore, broken: str, size: int) -> None:
    path = files(store)[broken]
    length = path.stat().st_size
    os.truncate(path, size)
    name = store.name_of(path)
    found = left_out(store)
    assert list(found) == ["lane::image01"]
    assert found["lane::image01"].startswith(f"{name}: expected {length} bytes, found {size}; materialize lane/norm")
    stage = "normalized_crops" if broken == "crop_meta" else "tiles"
    assert read_suspects(store.stage_index("lane", stage, "b00001")) == {name}


def test_metadata_with_another_digit_are_left_out_and_files_that_are_gone_are_not_looked_at(
    store: ArtefactStore,
) -> None:
    path = files(store)["crop_meta"]
    path.write_bytes(path.read_bytes().replace(b"200", b"201"))
    assert "expected CRC-32" in left_out(store)["lane::image01"]
    for path in files(store).values():
        path.unlink()
    assert left_out(store) == {}


def test_both_damaged_metadata_of_an_image_are_named_and_noted(store: ArtefactStore) -> None:
    metadata = [files(store)["crop_meta"], files(store)["tiles_meta"]]
    for path in metadata:
        os.truncate(path, 9)
    (finding,) = left_out(store).values()
    for path, stage in zip(metadata, ("normalized_crops", "tiles"), strict=True):
        assert f"{store.name_of(path)}: expected" in finding
        assert read_suspects(store.stage_index("lane", stage, "b00001")) == {store.name_of(path)}


def test_metadata_of_a_labelled_image_are_read_once(store: ArtefactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (reads.append(path), read_bytes(path))[1])
    assert left_out(store) == {}
    metadata = [files(store)["crop_meta"], files(store)["tiles_meta"]]
    assert [reads.count(path) for path in metadata] == [1, 1]


def test_empty_files_are_found_where_the_version_before_recorded_none(store: ArtefactStore) -> None:
    import polars as pl

    for stage in STAGES:
        index = store.stage_index("lane", stage, "b00001")
        pl.read_parquet(index).drop("files").write_parquet(index)
        index_copy(index).unlink()
    assert left_out(store) == {}
    os.truncate(files(store)["tile"], 0)
    os.truncate(store.tiles_metadata("lane__image02"), 9)
    found = left_out(store)
    assert list(found) == ["lane::image01", "lane::image02"]
    assert "found an empty file" in found["lane::image01"]
    assert "expected JSON" in found["lane::image02"]
