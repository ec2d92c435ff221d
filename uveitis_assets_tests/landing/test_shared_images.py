"""Copies in two lanes: found whatever their names, counted once, silent where nothing leaks."""

import json
import shutil

import pytest

from uveitis_assets.landing.configuration import DatasetConfiguration, SplitConfiguration
from uveitis_assets.landing.ledger import registered_batches
from uveitis_assets.landing.manifest import build_manifest_part
from uveitis_assets.landing.manifest_table import read_manifest
from uveitis_assets.landing.registration import register
from uveitis_assets.landing.shared_images import images_in_two_splits
from uveitis_assets_tests.landing.landing_samples import jpeg, land


def build(store, lane, folder, **splits):
    dataset = DatasetConfiguration(name=lane, layout="image_folder", folder=folder, batch_size=7)
    register(store, dataset)
    for batch in registered_batches(store, lane):
        build_manifest_part(store, dataset, SplitConfiguration(**splits), batch)


@pytest.fixture
def photographs(store):
    for number in range(20):
        land(store, f"{number:02d}.jpg", jpeg(number))
    return store


@pytest.mark.parametrize("copies", ["same folder", "renamed copies"])
def test_every_photograph_that_two_lanes_assign_to_different_splits_is_counted(photographs, copies):
    store = photographs
    folder = "ds"
    if copies == "renamed copies":
        folder = "copies"
        (store.raw / folder).mkdir()
        for number in range(20):
            shutil.copy(store.raw / "ds" / f"{number:02d}.jpg", store.raw / folder / f"z{number:02d}.jpg")
        land(store, "own.jpg", jpeg(99), folder=folder)
    build(store, "one", "ds")
    assert images_in_two_splits(store, "one", "stage0") == []
    build(store, "two", folder)
    ours, theirs = (
        {row["content_hash"]: row["fold_splits"] for row in read_manifest(store, name).iter_rows(named=True)}
        for name in ("one", "two")
    )
    apart = [digest for digest, splits in ours.items() if splits != theirs[digest]]
    assert 0 < len(apart) <= 20
    (message,) = images_in_two_splits(store, "one", "stage0")
    assert message.startswith(f"{len(apart)} images are in two of the splits stage0, their copies are in")
    assert message.count(" in fold ") == 5
    assert f"and {len(apart) - 5} more" in message
    assert "another `splits.name`" in message
    (mirrored,) = images_in_two_splits(store, "two", "stage0")
    assert mirrored.startswith(f"{len(apart)} images")


def test_lanes_with_other_split_names_and_splits_that_agree_are_silent(photographs):
    build(photographs, "one", "ds")
    build(photographs, "two", "ds", name="other")
    assert images_in_two_splits(photographs, "one", "stage0") == []
    pinned = {"train": [], "val": [], "test": [f"{lane}::{n:02d}" for lane in ("one", "two") for n in range(20)]}
    (photographs.root / "pinned.json").write_text(json.dumps(pinned))
    for name in ("one", "two"):
        build(photographs, name, "ds", pinned="pinned.json")
    assert images_in_two_splits(photographs, "one", "stage0") == []


def test_quarantined_copies_do_not_count(store):
    for number in range(12):
        land(store, f"{number}.jpg", jpeg(number)[:-99])
    build(store, "one", "ds")
    build(store, "two", "ds")
    assert images_in_two_splits(store, "one", "stage0") == []
