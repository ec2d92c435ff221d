"""Patients in the splits of a manifest: one split per fold, pinned and official ones, and reproducible."""

import json

import pytest

from uveitis_assets.landing.configuration import SplitConfiguration
from uveitis_assets.landing.registration import register
from uveitis_assets_tests.hash_seeds import outputs_under_hash_seeds
from uveitis_assets_tests.landing.landing_samples import build, jpeg, land, lane, rows


def test_patients_are_in_one_split_in_every_fold(store):
    table = ["image,patient"]
    for number in range(60):
        land(store, f"{number:03d}.jpg", jpeg(number))
        table.append(f"{number:03d}.jpg,patient {number % 17}")
    land(store, "meta.csv", "\n".join(table).encode())
    build(store, lane(image_folder={"csv": "meta.csv", "patient_column": "patient"}))
    for fold in range(5):
        splits = {}
        for row in rows(store).values():
            splits.setdefault(row["patient_id"], set()).add(row["fold_splits"][fold])
        assert len(splits) == 17
        assert all(len(split) == 1 for split in splits.values())


def test_copies_are_in_the_splits_of_the_first(store):
    for number in range(30):
        land(store, f"{number:03d}.jpg", jpeg(number))
        land(store, f"z{number:03d}.jpg", jpeg(number))
    summary = build(store, lane(batch_size=100))[0]
    assert summary.n_duplicates == 30
    found = rows(store)
    for number in range(30):
        assert found[f"lane::{number:03d}"]["fold_splits"] == found[f"lane::z{number:03d}"]["fold_splits"]
        assert found[f"lane::z{number:03d}"]["duplicate_of"] == f"lane::{number:03d}"


def test_pinned_patients_keep_their_split_and_new_images_join_them(store):
    table = ["image,patient"]
    for number in range(40):
        land(store, f"{number:03d}.jpg", jpeg(number))
        table.append(f"{number:03d}.jpg,P{number % 20}")
    land(store, "meta.csv", "\n".join(table).encode())
    # Only one image of each of ten patients is pinned; P3 is pinned twice, to two splits.
    old = {
        "train": [f"lane::{number:03d}" for number in range(5)],
        "val": [f"lane::{number:03d}" for number in (5, 6, 23)],
        "test": [f"lane::{number:03d}" for number in (7, 8, 9)],
    }
    (store.root / "splits").mkdir()
    (store.root / "splits" / "old_0.json").write_text(json.dumps(old))
    dataset = lane(image_folder={"csv": "meta.csv", "patient_column": "patient"}, batch_size=100)
    splits = SplitConfiguration(pinned="splits/old_0.json")
    summary = build(store, dataset, splits)[0]
    found = rows(store)
    splits = {patient: found[f"lane::{patient:03d}"]["split"] for patient in range(20)}
    assert [splits[patient] for patient in range(10)] == ["train"] * 3 + ["val"] + ["train"] + ["val"] * 2 + [
        "test"
    ] * 3
    for patient in range(20):
        assert found[f"lane::{patient + 20:03d}"]["fold_splits"] == found[f"lane::{patient:03d}"]["fold_splits"]
    assert len(summary.problems) == 1
    assert "lane::003" in summary.problems[0]


def test_a_pinned_file_for_the_lane_of_which_no_image_is_registered_is_refused_with_ids_of_both(store):
    for number in range(3):
        land(store, f"{number:03d}.jpg", jpeg(number))
    pins = {"train": ["other::000"], "val": [], "test": ["lane::0", "lane::1"]}

    def pin(ids):
        (store.root / "old.json").write_text(json.dumps(ids))

    pin(pins)
    splits = SplitConfiguration(pinned="old.json")
    with pytest.raises(ValueError, match=r"old\.json: names 2 images of the lane, none .* found lane::0, lane::1, "):
        build(store, lane(), splits)
    with pytest.raises(ValueError, match=r"expected ids such as lane::000, lane::001, lane::002: correct the ids"):
        build(store, lane(), splits)
    # A file for several lanes need not name images of each, and new batches need not have a pinned image.
    pin({**pins, "test": []})
    build(store, lane(), splits)
    pin({**pins, "test": ["lane::0", "lane::002"]})
    build(store, lane(batch_size=1), splits)
    assert rows(store)["lane::002"]["split"] == "test"


@pytest.mark.parametrize("end", ["removed", "replaced"])
def test_patients_keep_the_pinned_split_of_photographs_that_are_gone(store, end):
    table = ["image,patient"]
    for number in range(40):
        land(store, f"a{number:02d}.jpg", jpeg(number))
        land(store, f"b{number:02d}.jpg", jpeg(100 + number))
        table += [f"{letter}{number:02d}.jpg,P{number}" for letter in "ab"]
    land(store, "meta.csv", "\n".join(table).encode())
    (store.root / "splits").mkdir()
    pinned = {"train": [], "val": [], "test": [f"lane::a{number:02d}" for number in range(40)]}
    (store.root / "splits" / "old.json").write_text(json.dumps(pinned))
    dataset = lane(image_folder={"csv": "meta.csv", "patient_column": "patient"}, batch_size=100)
    splits = SplitConfiguration(pinned="splits/old.json")
    build(store, dataset, splits)
    assert {row["split"] for row in rows(store).values()} == {"test"}
    for number in range(40):
        (store.raw / "ds" / f"a{number:02d}.jpg").unlink()
        if end == "replaced":
            land(store, f"a{number:02d}.jpg", jpeg(200 + number))
    build(store, dataset, splits)
    assert len(rows(store)) == (40 if end == "removed" else 80)
    assert {split for row in rows(store).values() for split in row["fold_splits"]} == {"test"}


def test_official_splits_reach_the_manifest(store):
    for subset, patient in (("training", 1), ("validation", 2)):
        land(store, f"ultra-widefield-{subset}/Images/{patient}/{patient}_l1.jpg")
    land(store, "Challenge3_upload/Images/3/3_r1.jpg")
    build(store, lane("deepdrid"))
    assert {key: row["fold_splits"] for key, row in rows(store).items()} == {
        "lane_uwf::1_l1": ["train"] * 5,
        "lane_uwf::2_l1": ["val"] * 5,
        "lane_uwf::3_r1": ["test"] * 5,
    }


def test_three_processes_build_the_same_splits(store):
    for number in range(25):
        land(store, f"{number:03d}.jpg", jpeg(number))
    register(store, lane(batch_size=100))
    code = (
        "import json\n"
        "from pathlib import Path\n"
        "from uveitis_assets.storage.store import ArtefactStore\n"
        "from uveitis_assets.landing.configuration import DatasetConfiguration, SplitConfiguration\n"
        "from uveitis_assets.landing.manifest import build_manifest_part\n"
        "from uveitis_assets.landing.manifest_table import read_manifest\n"
        f"store = ArtefactStore(Path({str(store.root)!r}), Path({str(store.raw)!r}))\n"
        "dataset = DatasetConfiguration(name='lane', layout='image_folder', folder='ds', batch_size=100)\n"
        "build_manifest_part(store, dataset, SplitConfiguration(), 'b00001')\n"
        "print(json.dumps(read_manifest(store, 'lane')['fold_splits'].to_list()))\n"
    )
    (printed,) = outputs_under_hash_seeds(code)
    splits = json.loads(printed)
    assert len(splits) == 25
    assert {split for folds in splits for split in folds} == {"train", "val", "test"}
