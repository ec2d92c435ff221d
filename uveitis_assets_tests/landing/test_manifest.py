"""The manifest: earlier columns, honest rows, no raw patient id outside the ledger."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pytest
from blake3 import blake3

from uveitis_assets.landing import image_file
from uveitis_assets.landing.configuration import DatasetConfiguration, SplitConfiguration
from uveitis_assets.landing.ledger import registered_batches
from uveitis_assets.landing.manifest import build_manifest_part, export_manifest, summarize
from uveitis_assets.landing.manifest_table import manifest_state, read_manifest, require_one_split_assignment
from uveitis_assets.landing.pseudonyms import patient_key, pseudonym
from uveitis_assets.landing.registration import register
from uveitis_assets.landing.splits import hashed_splits
from uveitis_assets.landing.splits_files import write_splits_files
from uveitis_assets_tests.hash_seeds import outputs_under_hash_seeds
from uveitis_assets_tests.landing.landing_samples import jpeg, land
from uveitis_assets_tests.patience import patience

EARLIER_COLUMNS = [
    "image_id", "filepath", "dataset", "split", "eye", "labels_path", "label_format", "width", "height", "patient_id",
    "notes",
]  # fmt: skip


def lane(layout="image_folder", name="lane", folder="ds", batch_size=4, **options):
    return DatasetConfiguration(name=name, layout=layout, folder=folder, batch_size=batch_size, **options)


def build(store, dataset, splits=None, batches=None):
    register(store, dataset)
    splits = splits or SplitConfiguration()
    return [
        build_manifest_part(store, dataset, splits, batch)
        for batch in batches or registered_batches(store, dataset.name)
    ]


def rows(store, name="lane"):
    return {row["image_id"]: row for row in read_manifest(store, name).iter_rows(named=True)}


def test_rows_of_the_uwf_layout(store):
    land(store, "Images/Uveitis/001_left.jpg", jpeg(1, size=(80, 40)))
    land(
        store,
        "Images/DR/002.jpg",
        jpeg(2, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    )
    land(store, "Images/DR/bad.jpg", b"")
    land(store, "Labels/Uveitis/001_left.txt", b"1 0 0 1 0 1 1 0 1\n")
    summary = build(store, lane("uwf700"))[0]
    found = rows(store)
    first = found["lane::001_left"]
    assert first["filepath"] == "raw/ds/Images/Uveitis/001_left.jpg"
    assert first["labels_path"] == "raw/ds/Labels/Uveitis/001_left.txt"
    assert (first["dataset"], first["eye"], first["label_format"], first["notes"]) == (
        "lane",
        "L",
        "obb",
        "disease=Uveitis",
    )
    assert (first["width"], first["height"]) == (80, 40)
    assert (found["lane::002"]["width"], found["lane::002"]["height"]) == (48, 64)
    assert first["patient_id"] == pseudonym(patient_key(store), "lane", "001_left")
    assert found["lane::bad"]["quarantine_reason"] == "empty_file"
    assert (summary.n_images, summary.n_usable, summary.quarantine_reasons) == (3, 2, {"empty_file": 1})
    assert summary.label_formats == {"none": 1, "obb": 1}
    assert summary.eyes == {"L": 1, "unknown": 1}
    assert sum(summary.splits.values()) == 2


def test_hashes_of_lesion_labels_are_those_of_the_registered_bytes(store):
    for name in ("a", "b"):
        land(store, f"Images/Uveitis/{name}.jpg")
    land(store, "Labels/Uveitis/a.txt", b"1 0 0 1 0 1 1 0 1\n")
    (store.raw / "ds" / "Labels" / "Uveitis" / "b.txt").symlink_to("/etc/hostname")
    register(store, lane("uwf700"))
    land(store, "Labels/Uveitis/a.txt", b"")
    build_manifest_part(store, lane("uwf700"), SplitConfiguration(), "b00001")
    found = {image_id: row["label_hashes"] for image_id, row in rows(store).items()}
    assert found == {"lane::a": [blake3(b"1 0 0 1 0 1 1 0 1\n").hexdigest()], "lane::b": [""]}


def test_parts_without_a_later_column_are_read_with_nulls(store):
    for number in range(2):
        land(store, f"{number}.jpg")
    build(store, lane(batch_size=1))
    first = store.manifest_part("lane", "b00001")
    pl.read_parquet(first).drop("label_hashes").write_parquet(first)
    assert [row["label_hashes"] for row in rows(store).values()] == [None, []]


DAMAGES = {
    "garbage": lambda data: b"garbage",
    "empty": lambda data: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "another table": lambda data: parquet_of(other=[1]),
}


def parquet_of(**columns):
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_replaced_by_its_own_batch_and_named_to_all_others(store, damage):
    for number in range(3):
        land(store, f"{number}.jpg")
    build(store, lane(batch_size=1))
    part = store.manifest_part("lane", "b00002")
    whole = part.read_bytes()
    part.write_bytes(DAMAGES[damage](whole))
    named = (
        rf"^{re.escape(str(part))}: expected the manifest rows of a batch, found .*; delete the file and materialize "
        r"lane/manifest\[b00002\] again$"
    )
    for use in (
        lambda: read_manifest(store, "lane"),
        lambda: export_manifest(store, lane(batch_size=1), SplitConfiguration()),
        lambda: write_splits_files(store, "stage0", 5),
        lambda: build_manifest_part(store, lane(batch_size=1), SplitConfiguration(seed=7), "b00003"),
    ):
        with pytest.raises(ValueError, match=named):
            use()
    build_manifest_part(store, lane(batch_size=1), SplitConfiguration(), "b00002")
    assert part.read_bytes() == whole
    assert len(read_manifest(store, "lane")) == 3


def test_the_last_part_heals_too(store):
    for number in range(2):
        land(store, f"{number}.jpg")
    build(store, lane(batch_size=1))
    part = store.manifest_part("lane", "b00002")
    whole = part.read_bytes()
    part.write_bytes(b"garbage")
    build_manifest_part(store, lane(batch_size=1), SplitConfiguration(), "b00002")
    assert part.read_bytes() == whole


def test_several_masks_are_joined_by_semicolons(store, real_data):
    shutil.copytree(real_data / "idrid_fgadr_layout", store.raw / "ds")
    build(store, lane("fgadr", batch_size=100))
    row = rows(store)["lane::IDRiD_03"]
    assert row["labels_path"] == ";".join(f"raw/ds/{path}" for path in row["label_paths"])
    assert row["label_paths"] == [
        f"{lesion}_Masks/IDRiD_03.png" for lesion in ("HardExudate", "Hemohedge", "Microaneurysms", "SoftExudate")
    ]
    assert (row["width"], row["height"]) == (4288, 2848)


def test_paths_outside_the_data_folder_are_absolute(tmp_path):
    from uveitis_assets.storage.store import ArtefactStore

    store = ArtefactStore(root=tmp_path / "data", raw=tmp_path / "raw")
    land(store, "a.jpg")
    build(store, lane())
    assert rows(store)["lane::a"]["filepath"] == str(tmp_path / "raw" / "ds" / "a.jpg")


def test_building_opens_no_image(store, monkeypatch):
    land(store, "a.jpg")
    register(store, lane())
    monkeypatch.setattr(image_file, "read_landed_file_and_stat", None)
    monkeypatch.setattr(image_file.cv2, "imdecode", None)
    assert build_manifest_part(store, lane(), SplitConfiguration(), "b00001").n_usable == 1


def test_files_that_vanish_or_change_after_registering_are_reported(store):
    vanished, changed = land(store, "a.jpg"), land(store, "b.jpg")
    land(store, "c.jpg")
    register(store, lane())
    vanished.unlink()
    changed.write_bytes(jpeg(9) + b" ")
    summary = build_manifest_part(store, lane(), SplitConfiguration(), "b00001")
    assert summary.quarantine_reasons == {"changed_since_registration": 1, "missing": 1}
    assert summary.n_usable == 1
    assert rows(store)["lane::b"]["quarantine_detail"].startswith("b.jpg: expected ")


def test_an_unknown_batch_and_an_unregistered_lane_are_errors(store):
    with pytest.raises(ValueError, match="register the dataset first"):
        build_manifest_part(store, lane(), SplitConfiguration(), "b00001")
    land(store, "a.jpg")
    register(store, lane())
    with pytest.raises(ValueError, match="no batch b00009"):
        build_manifest_part(store, lane(), SplitConfiguration(), "b00009")


def test_a_changed_image_is_one_row_of_the_latest_batch(store):
    path = land(store, "a.jpg")
    build(store, lane())
    path.write_bytes(jpeg(5, size=(128, 96)))
    register(store, lane())
    build_manifest_part(store, lane(), SplitConfiguration(), "b00002")  # b00001 is not rebuilt yet
    assert [(row["batch"], row["width"]) for row in rows(store).values()] == [("b00002", 128)]
    assert build_manifest_part(store, lane(), SplitConfiguration(), "b00001").n_images == 0
    assert len(rows(store)) == 1


def test_equal_input_gives_equal_bytes(store):
    for number in range(6):
        land(store, f"{number}.jpg")
    build(store, lane())
    export_manifest(store, lane(), SplitConfiguration())
    files = [
        *store.manifest_parts("lane"),
        *(store.manifest_export("lane", kind) for kind in ("jsonl", "csv", "parquet")),
    ]
    before = [file.read_bytes() for file in files]
    build(store, lane())
    export_manifest(store, lane(), SplitConfiguration())
    assert [file.read_bytes() for file in files] == before


def test_exports_have_the_earlier_columns_first_in_all_three_formats(store):
    land(store, 'a, "b".jpg')
    land(store, "é_left.jpg")
    land(store, "zero.jpg", b"")
    build(store, lane())
    export_manifest(store, lane(), SplitConfiguration())
    columns = [*EARLIER_COLUMNS, "content_hash", "quarantine_reason"]
    lines = store.manifest_export("lane", "jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [list(record) for record in records] == [columns] * 3
    assert [record["image_id"] for record in records] == ['lane::a, "b"', "lane::zero", "lane::é_left"]
    assert [record["eye"] for record in records] == [None, None, "L"]
    with store.manifest_export("lane", "csv").open(newline="", encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert list(table[0]) == columns
    assert [row["image_id"] for row in table] == [record["image_id"] for record in records]
    assert [row["quarantine_reason"] for row in table] == ["", "empty_file", ""]
    assert pl.read_parquet(store.manifest_export("lane", "parquet")).to_dicts() == records


def splits_of(store, name="stage0", fold=0):
    return json.loads(store.splits_file(name, fold).read_text())


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
        sides = {image_id: split for split, ids in value.items() for image_id in ids}
        for name in ("one", "two"):
            for image_id, row in rows(store, name).items():
                if row["quarantine_reason"] is None:
                    assert row["fold_splits"][fold] == sides[image_id]
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
            ids = {image_id for side in splits_of(store, fold=fold).values() for image_id in side}
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


def test_patients_are_on_one_side_in_every_fold(store):
    table = ["image,patient"]
    for number in range(60):
        land(store, f"{number:03d}.jpg", jpeg(number))
        table.append(f"{number:03d}.jpg,patient {number % 17}")
    land(store, "meta.csv", "\n".join(table).encode())
    build(store, lane(image_folder={"csv": "meta.csv", "patient_column": "patient"}))
    for fold in range(5):
        sides = {}
        for row in rows(store).values():
            sides.setdefault(row["patient_id"], set()).add(row["fold_splits"][fold])
        assert len(sides) == 17
        assert all(len(side) == 1 for side in sides.values())


def test_copies_are_on_the_side_of_the_first(store):
    for number in range(30):
        land(store, f"{number:03d}.jpg", jpeg(number))
        land(store, f"z{number:03d}.jpg", jpeg(number))
    summary = build(store, lane(batch_size=100))[0]
    assert summary.n_duplicates == 30
    found = rows(store)
    for number in range(30):
        assert found[f"lane::{number:03d}"]["fold_splits"] == found[f"lane::z{number:03d}"]["fold_splits"]
        assert found[f"lane::z{number:03d}"]["duplicate_of"] == f"lane::{number:03d}"


def test_pinned_patients_keep_their_side_and_new_images_join_them(store):
    table = ["image,patient"]
    for number in range(40):
        land(store, f"{number:03d}.jpg", jpeg(number))
        table.append(f"{number:03d}.jpg,P{number % 20}")
    land(store, "meta.csv", "\n".join(table).encode())
    # Only one image of each of ten patients is pinned; P3 is pinned twice, to two sides.
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
    sides = {patient: found[f"lane::{patient:03d}"]["split"] for patient in range(20)}
    assert [sides[patient] for patient in range(10)] == ["train"] * 3 + ["val"] + ["train"] + ["val"] * 2 + ["test"] * 3
    for patient in range(20):
        assert found[f"lane::{patient + 20:03d}"]["fold_splits"] == found[f"lane::{patient:03d}"]["fold_splits"]
    assert len(summary.problems) == 1
    assert "lane::003" in summary.problems[0]


@pytest.mark.parametrize("end", ["removed", "replaced"])
def test_patients_keep_the_pinned_side_of_photographs_that_are_gone(store, end):
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
    assert {side for row in rows(store).values() for side in row["fold_splits"]} == {"test"}


@pytest.fixture
def visits(store):
    """A lane whose 20 patients have one photograph in the first batch and one that lands later."""
    table = ["image,patient"] + [f"{letter}{number:02d}.jpg,P{number}" for number in range(20) for letter in "ab"]
    land(store, "meta.csv", "\n".join(table).encode())
    for number in range(20):
        land(store, f"a{number:02d}.jpg", jpeg(number))
    return lane(image_folder={"csv": "meta.csv", "patient_column": "patient"}, batch_size=100)


def land_second_visits(store):
    for number in range(20):
        land(store, f"b{number:02d}.jpg", jpeg(100 + number))


def torn_patients(store):
    torn = set()
    for fold in range(5):
        sides = {}
        for row in rows(store).values():
            sides.setdefault(row["patient_id"], set()).add(row["fold_splits"][fold])
        torn |= {patient for patient, side in sides.items() if len(side) > 1}
    return torn


def write_pinned(store, split):
    ids = [f"lane::a{number:02d}" for number in range(20)]
    (store.root / "pinned.json").write_text(json.dumps({"train": [], "val": [], "test": [], split: ids}))


CHANGES = {
    "seed": ({}, {"seed": 7}),
    "test ratio": ({}, {"test_ratio": 0.6}),
    "folds": ({"folds": 8}, {}),
    "official splits": ({"use_official": False}, {}),
    "pinned file": ({}, {"pinned": "pinned.json"}),
    "content of the pinned file": ({"pinned": "pinned.json"}, {"pinned": "pinned.json"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_split_configuration_deals_all_batches_alike_although_only_the_new_one_runs(store, visits, change):
    before, after = (SplitConfiguration(**options) for options in CHANGES[change])
    write_pinned(store, "test")
    build(store, visits, before)
    export_manifest(store, visits, before)
    write_pinned(store, "val")
    land_second_visits(store)
    (built,) = build(store, visits, after, batches=["b00002"])
    assert torn_patients(store) == set()
    require_one_split_assignment("lane", read_manifest(store, "lane"))
    summary = export_manifest(store, visits, after)
    dealt_apart = [path.read_bytes() for path in store.manifest_parts("lane")]
    build(store, visits, after)
    assert [path.read_bytes() for path in store.manifest_parts("lane")] == dealt_apart
    assert (built.reassigned_batches, summary.reassigned_batches) == (("b00001",), ())
    assert summary.splits == summarize(read_manifest(store, "lane")).splits


def test_images_that_move_a_patient_move_it_in_batches_that_do_not_run(store):
    land(store, "ultra-widefield-training/Images/1/1_l1.jpg")
    build(store, lane("deepdrid"))
    land(store, "Challenge3_upload/Images/1/1_r1.jpg")
    build(store, lane("deepdrid"), batches=["b00002"])
    assert export_manifest(store, lane("deepdrid"), SplitConfiguration()).reassigned_batches == ("b00001",)
    assert {side for row in rows(store).values() for side in row["fold_splits"]} == {"test"}


def test_parts_that_are_dealt_rightly_are_left_alone(store, visits):
    land_second_visits(store)
    build(store, visits)
    before = [path.stat().st_ino for path in store.manifest_parts("lane")]
    assert export_manifest(store, visits, SplitConfiguration()).reassigned_batches == ()
    assert [path.stat().st_ino for path in store.manifest_parts("lane")] == before


def test_a_part_from_before_dealings_were_fingerprinted_is_dealt_again(store, visits):
    build(store, visits)
    (part,) = store.manifest_parts("lane")
    expected = pl.read_parquet(part)
    expected.drop("split_fingerprint").write_parquet(part)
    assert export_manifest(store, visits, SplitConfiguration()).reassigned_batches == ("b00001",)
    assert pl.read_parquet(part).equals(expected)


def test_dealing_a_part_again_does_not_pass_for_making_it_again(store, visits):
    build(store, visits)
    (part,) = store.manifest_parts("lane")
    state = manifest_state(part)
    assert state is not None
    assert export_manifest(store, visits, SplitConfiguration(seed=7)).reassigned_batches == ("b00001",)
    assert manifest_state(part) == state


def test_an_image_that_came_back_under_another_id_follows_its_content_until_its_batch_runs(store):
    before, after = SplitConfiguration(seed=1), SplitConfiguration(seed=4)
    assert hashed_splits("lane", "x/a", before) != hashed_splits("lane", "x/a", after)
    path = land(store, "x/a.jpg", jpeg(1))
    build(store, lane(), before)
    path.unlink()
    land(store, "z.jpg", jpeg(9))
    register(store, lane())
    land(store, "y/a.jpg", jpeg(2))
    register(store, lane())
    land(store, "x/a.jpg", jpeg(1))
    build(store, lane(), after, batches=["b00002", "b00003"])
    export_manifest(store, lane(), after)
    listed = pl.read_parquet(store.manifest_part("lane", "b00001")).row(0, named=True)
    build(store, lane(), after)
    (renamed,) = (row for image_id, row in rows(store).items() if image_id.startswith("lane::a~"))
    assert (listed["image_id"], listed["fold_splits"]) == ("lane::a", renamed["fold_splits"])


def test_a_manifest_of_two_dealings_is_refused_with_what_to_materialize_and_mended_by_that(store, visits):
    land_second_visits(store)
    for number in range(20):
        land(store, f"c{number:02d}.jpg", jpeg(200 + number))
    visits = visits.model_copy(update={"batch_size": 20})
    build(store, visits)
    first = store.manifest_part("lane", "b00001").read_bytes()
    after = SplitConfiguration(seed=7)
    build(store, visits, after)
    killed = [path.read_bytes() for path in store.manifest_parts("lane")]
    build(store, visits)
    # Killed after the first of three parts was dealt again.
    assert store.manifest_part("lane", "b00001").read_bytes() == first
    store.manifest_part("lane", "b00001").write_bytes(killed[0])
    refusal = "found b00001 dealt by another than the last one; materialize any batch of lane/manifest again"
    with pytest.raises(ValueError, match=refusal):
        require_one_split_assignment("lane", read_manifest(store, "lane"))
    with pytest.raises(ValueError, match=refusal):
        write_splits_files(store, "stage0", 5)
    assert build(store, visits, after, batches=["b00001"])[0].reassigned_batches == ("b00002", "b00003")
    require_one_split_assignment("lane", read_manifest(store, "lane"))
    assert write_splits_files(store, "stage0", 5)
    require_one_split_assignment("empty", read_manifest(store, "empty"))


@pytest.mark.parametrize("action", ["build", "export", "read"])
def test_building_exporting_and_reading_a_lane_take_turns(store, visits, action):
    build(store, visits)
    actions = {
        "build": lambda: build_manifest_part(store, visits, SplitConfiguration(), "b00001"),
        "export": lambda: export_manifest(store, visits, SplitConfiguration()),
        "read": lambda: read_manifest(store, "lane"),
    }
    with ThreadPoolExecutor(1) as pool:
        with store.lock("lane.manifest"):
            waiting = pool.submit(actions[action])
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
        waiting.result(timeout=patience(20))


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


def written_bytes(store, *, with_ledger):
    ledger = store.ledger_file("lane").parent
    for path in sorted(store.root.rglob("*")):
        inside = path.is_relative_to(ledger)
        if path.is_file() and not path.is_relative_to(store.raw) and inside == with_ledger:
            yield path, path.read_bytes()
            if path.suffix == ".parquet":  # compressed pages would hide a name
                yield path, repr(pl.read_parquet(path).to_dicts()).encode()


def test_raw_patient_ids_and_private_file_names_stay_in_the_ledger(store):
    secrets = ["Doe-Jane-1971", "Roe-John-1980", "PATIENT-4711", "PATIENT-4712"]
    land(store, "Doe-Jane-1971/scan_Doe-Jane-1971_left.jpg", jpeg(1))
    land(store, "Roe-John-1980.jpg", jpeg(2))
    land(store, "Roe-John-1980-copy.jpg", jpeg(2))
    land(store, "Roe-John-1980-cut.jpg", jpeg(3)[:-99])
    (store.raw / "ds" / "Doe-Jane-1971" / "Roe-John-1980.jpg").symlink_to("nowhere")
    (store.raw / "ds" / "Roe-John-1980-loop").symlink_to(".")
    land(
        store,
        "meta.csv",
        b"image,patient,grade\nscan_Doe-Jane-1971_left.jpg,PATIENT-4711,2\nRoe-John-1980.jpg,PATIENT-4712,bad\n"
        b"Doe-Jane-1971-lost.jpg,PATIENT-4711,1\nPATIENT-4711\n",
    )
    options = {"csv": "meta.csv", "patient_column": "patient", "grade_column": "grade", "identify_by_content": True}
    dataset = lane(image_folder=options, batch_size=100)
    report = register(store, dataset)
    summaries = build(store, dataset)
    (store.raw / "ds" / "Roe-John-1980.jpg").unlink()
    summaries += [build_manifest_part(store, dataset, SplitConfiguration(), "b00001")]
    summaries += [export_manifest(store, dataset, SplitConfiguration())]
    write_splits_files(store, "stage0", 5)
    for secret in secrets:
        for path, data in written_bytes(store, with_ledger=False):
            assert secret.encode() not in data, path
        assert secret not in repr(report)
        assert secret not in repr(summaries)
        assert any(secret.encode() in data for _, data in written_bytes(store, with_ledger=True))
    assert summaries[-2].quarantine_reasons == {"broken_symlink": 1, "missing": 1, "truncated": 1}
    assert len(report.problems) >= 4


def test_raw_patient_ids_of_a_csv_stay_in_the_ledger_without_hidden_names_too(store):
    land(store, "a.jpg")
    land(store, "b.jpg", b"")
    land(store, "meta.csv", b"image,patient\na.jpg,PATIENT-4711\nb.jpg,PATIENT-4712\nb.jpg,PATIENT-4712\n")
    dataset = lane(image_folder={"csv": "meta.csv", "patient_column": "patient"})
    report = register(store, dataset)
    summaries = build(store, dataset)
    export_manifest(store, dataset, SplitConfiguration())
    write_splits_files(store, "stage0", 5)
    assert b"PATIENT-47" in b"".join(data for _, data in written_bytes(store, with_ledger=True))
    assert b"PATIENT-47" not in b"".join(data for _, data in written_bytes(store, with_ledger=False))
    assert "PATIENT-47" not in repr((report, summaries))


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
    sides = json.loads(printed)
    assert len(sides) == 25
    assert {side for folds in sides for side in folds} == {"train", "val", "test"}


def test_lanes_exporting_at_the_same_time_write_whole_files(store):
    for name in ("one", "two"):
        for number in range(30):
            land(store, f"{number}.jpg", jpeg(number), folder=name)
        build(store, lane(name=name, folder=name))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from uveitis_assets.storage.store import ArtefactStore\n"
        "from uveitis_assets.landing.configuration import DatasetConfiguration, SplitConfiguration\n"
        "from uveitis_assets.landing.manifest import export_manifest\n"
        "from uveitis_assets.landing.splits_files import write_splits_files\n"
        f"store = ArtefactStore(Path({str(store.root)!r}), Path({str(store.raw)!r}))\n"
        "for _ in range(10):\n"
        "    dataset = DatasetConfiguration(name=sys.argv[1], layout='image_folder', folder='x')\n"
        "    export_manifest(store, dataset, SplitConfiguration())\n"
        "    write_splits_files(store, 'stage0', 5)\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, name]) for name in ("one", "two")]
    while any(process.poll() is None for process in processes):
        for fold in range(5):
            if store.splits_file("stage0", fold).exists():
                assert sum(len(ids) for ids in splits_of(store, fold=fold).values()) == 60
        time.sleep(0.01)
    assert [process.returncode for process in processes] == [0, 0]
    assert len(store.manifest_export("one", "jsonl").read_text().splitlines()) == 30
