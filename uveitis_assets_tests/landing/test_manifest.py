"""Rows of the manifest and its exports: earlier columns, and what changed since the registration."""

import csv
import json
import shutil

import polars as pl
import pytest
from blake3 import blake3

from uveitis_assets.landing.configuration import SplitConfiguration
from uveitis_assets.landing.manifest import build_manifest_part, export_manifest
from uveitis_assets.landing.pseudonyms import patient_key, pseudonym
from uveitis_assets.landing.registration import register
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.landing.landing_samples import build, jpeg, land, lane, rows

EARLIER_COLUMNS = [
    "image_id", "filepath", "dataset", "split", "eye", "labels_path", "label_format", "width", "height", "patient_id",
    "notes",
]  # fmt: skip


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
    store = ArtefactStore(root=tmp_path / "data", raw=tmp_path / "raw")
    land(store, "a.jpg")
    build(store, lane())
    assert rows(store)["lane::a"]["filepath"] == str(tmp_path / "raw" / "ds" / "a.jpg")


def test_building_opens_no_image(store, opened):
    land(store, "a.jpg")
    register(store, lane())
    opened.clear()
    assert build_manifest_part(store, lane(), SplitConfiguration(), "b00001").n_usable == 1
    assert [path for path in opened if path.endswith(".jpg")] == []


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
