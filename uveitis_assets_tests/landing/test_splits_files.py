"""The splits files: all lanes of a name, no others, and none that is left over."""

from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from uveitis_assets.landing.configuration import SplitConfiguration
from uveitis_assets.landing.manifest import build_manifest_part, export_manifest
from uveitis_assets.landing.splits_files import write_splits_files
from uveitis_assets_tests.landing.landing_samples import build, jpeg, land, lane, rows, splits_of


def test_splits_files_hold_all_lanes_of_the_name_without_quarantined_images(store):
    for number in range(12):
        land(store, f"{number}.jpg", folder="one")
        land(store, f"{number}.jpg", folder="two")
    land(store, "bad.jpg", b"", folder="one")
    land(store, "other.jpg", folder="three")
    for name in ("one", "two"):
        build(store, lane(name=name, folder=name))
    build(store, lane(name="three", folder="three"), SplitConfiguration(name="stage9"))
    paths = write_splits_files(store, "stage0", 5)
    assert [path.name for path in paths] == [f"stage0_{fold}.json" for fold in range(5)]
    for fold in range(5):
        value = splits_of(store, fold=fold)
        assert list(value) == ["train", "val", "test"]
        everything = sorted(value["train"] + value["val"] + value["test"])
        assert everything == sorted(f"{name}::{number}" for name in ("one", "two") for number in range(12))
        splits = {image_id: split for split, ids in value.items() for image_id in ids}
        for name in ("one", "two"):
            for image_id, row in rows(store, name).items():
                if row["quarantine_reason"] is None:
                    assert row["fold_splits"][fold] == splits[image_id]
    assert {row["split"] for row in rows(store, "one").values()} <= {"train", "val", "test"}


def test_fewer_folds_than_asked_are_an_error_that_names_the_lane(store):
    land(store, "a.jpg")
    build(store, lane(), SplitConfiguration(folds=2))
    with pytest.raises(ValueError, match="lane/manifest: expected 5 folds of stage0"):
        write_splits_files(store, "stage0", 5)


def test_splits_files_of_folds_that_do_not_exist_any_more_are_removed_and_no_others(store):
    land(store, "a.jpg")
    for folds in (12, 3):
        build(store, lane(), SplitConfiguration(folds=folds))
        write_splits_files(store, "stage0", folds)
        for name in ("stage0_x.json", "stage0_1_7.json", "old_stage0_9.json", "stage0_09.json", "stage00_9.json"):
            (store.root / "splits" / name).write_text("{}")
    assert sorted(path.name for path in (store.root / "splits").iterdir()) == sorted(
        ["stage0_0.json", "stage0_1.json", "stage0_2.json", "stage0_x.json", "stage0_1_7.json", "old_stage0_9.json",
         "stage0_09.json", "stage00_9.json"]
    )  # fmt: skip


def names_of_splits_files(store):
    return sorted(path.name for path in (store.root / "splits").iterdir())


@pytest.mark.parametrize("found_by", ["part", "export"])
def test_a_lane_that_takes_another_split_name_leaves_the_files_of_its_former_one(store, found_by):
    renamed = SplitConfiguration(name="stage1", folds=2)
    splits = SplitConfiguration(folds=2)
    for name in ("one", "two"):
        for number in range(6):
            land(store, f"{number}.jpg", folder=name)
        build(store, lane(name=name, folder=name), splits)
    write_splits_files(store, "stage0", 2)
    (store.root / "splits" / "stage0_x.json").write_text("{}")
    for lane_left, left in (("one", {"two"}), ("two", set())):
        dataset = lane(name=lane_left, folder=lane_left)
        if found_by == "part":
            build_manifest_part(store, dataset, renamed, "b00002")
        export_manifest(store, dataset, renamed)
        write_splits_files(store, "stage1", 2)
        files = store.splits_files("stage0")
        assert set(files) == ({0, 1} if left else set())
        for fold in files:
            ids = {image_id for split in splits_of(store, fold=fold).values() for image_id in split}
            assert ids == {f"{name}::{number}" for name in left for number in range(6)}
    assert names_of_splits_files(store) == ["stage0_x.json", "stage1_0.json", "stage1_1.json"]


def test_a_lane_of_one_batch_leaves_its_former_name_s_files_too(store):
    land(store, "1.jpg")
    build(store, lane(), SplitConfiguration(folds=2))
    write_splits_files(store, "stage0", 2)
    build_manifest_part(store, lane(), SplitConfiguration(name="stage1", folds=2), "b00001")
    assert store.splits_files("stage0") == {}


def test_splits_files_of_a_former_name_stay_where_the_lane_has_pinned_them(store):
    for number in range(6):
        land(store, f"{number}.jpg")
    build(store, lane(), SplitConfiguration(folds=2))
    write_splits_files(store, "stage0", 2)
    before = splits_of(store)
    build(store, lane(), SplitConfiguration(name="stage1", folds=2, pinned="splits/stage0_{fold}.json"))
    assert names_of_splits_files(store) == ["stage0_0.json", "stage0_1.json"]
    assert splits_of(store) == before


def test_nothing_moves_when_images_land(store):
    for number in range(40):
        land(store, f"{number:03d}.jpg", jpeg(number))
    build(store, lane())
    write_splits_files(store, "stage0", 5)
    before = [splits_of(store, fold=fold) for fold in range(5)]
    for number in range(40, 120):
        land(store, f"new/{number:03d}.jpg", jpeg(number))
    land(store, "000 copy.jpg", jpeg(0))
    build(store, lane())
    write_splits_files(store, "stage0", 5)
    for fold in range(5):
        after = splits_of(store, fold=fold)
        for split in ("train", "val", "test"):
            assert set(before[fold][split]) <= set(after[split])


def test_lanes_exporting_at_the_same_time_write_whole_files(store):
    for name in ("one", "two"):
        for number in range(30):
            land(store, f"{number}.jpg", jpeg(number), folder=name)
        build(store, lane(name=name, folder=name))

    def export_often(name):
        for _ in range(5):
            export_manifest(store, lane(name=name, folder="x"), SplitConfiguration())
            write_splits_files(store, "stage0", 5)

    with ThreadPoolExecutor(2) as pool:
        exports = [pool.submit(export_often, name) for name in ("one", "two")]
        while wait(exports, timeout=0.01).not_done:
            for fold in range(5):
                if store.splits_file("stage0", fold).exists():
                    assert sum(len(ids) for ids in splits_of(store, fold=fold).values()) == 60
        for export in exports:
            export.result()
    assert len(store.manifest_export("one", "jsonl").read_text().splitlines()) == 30
