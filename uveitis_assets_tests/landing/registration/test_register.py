"""Registration of files of one folder: batches, what is read, what is set aside, and what is kept safe."""

import json
import os
import random
import stat

import polars as pl
from blake3 import blake3

from uveitis_assets.landing.ledger import read_ledger, registered_batches, registered_images
from uveitis_assets.landing.registration import register
from uveitis_assets_tests.landing.landing_samples import jpeg, land, lane, live


def test_new_images_fill_batches_sorted_by_path(store):
    for number in range(7):
        land(store, f"{number}.jpg")
    report = register(store, lane(batch_size=3))
    assert report.n_images == 7
    assert report.new == tuple(f"lane::{number}" for number in range(7))
    assert report.new_batches == ("b00001", "b00002", "b00003")
    assert registered_batches(store, "lane") == ["b00001", "b00002", "b00003"]
    assert [entry.batch for entry in read_ledger(store, "lane")] == ["b00001"] * 3 + ["b00002"] * 3 + ["b00003"]
    second = registered_images(store, lane(), "b00002")
    assert [image.image_id for image in second] == ["lane::3", "lane::4", "lane::5"]
    assert second[0].path == store.raw / "ds" / "3.jpg"
    assert second[0].content_hash == blake3((store.raw / "ds" / "3.jpg").read_bytes()).hexdigest()
    assert second[0].name == "3.jpg"


def test_registering_again_changes_nothing_and_reads_nothing(store, opened):
    for number in range(5):
        land(store, f"{number}.jpg")
    register(store, lane())
    before = store.ledger_file("lane").stat()
    opened.clear()
    report = register(store, lane())
    assert [path for path in opened if path.endswith(".jpg")] == []
    assert (report.n_unchanged, report.new, report.new_batches, report.touched_batches) == (5, (), (), ())
    assert store.ledger_file("lane").stat().st_ino == before.st_ino


def test_each_new_file_is_opened_once(store, opened):
    for number in range(20):
        land(store, f"{number}.jpg")
    register(store, lane())
    assert sorted(path for path in opened if path.endswith(".jpg")) == sorted(
        str(store.raw / "ds" / f"{number}.jpg") for number in range(20)
    )


def test_a_second_registration_never_adds_to_an_existing_batch(store):
    land(store, "b.jpg")
    register(store, lane())
    land(store, "a.jpg")
    report = register(store, lane())
    assert (report.new, report.new_batches, report.touched_batches) == (("lane::a",), ("b00002",), ())
    assert [image.image_id for image in registered_images(store, lane(), "b00001")] == ["lane::b"]


def test_batch_numbers_go_on_when_the_batch_size_changes(store):
    for number in range(4):
        land(store, f"{number}.jpg")
    register(store, lane(batch_size=4))
    land(store, "5.jpg")
    land(store, "6.jpg")
    assert register(store, lane(batch_size=1)).new_batches == ("b00002", "b00003")


def test_equal_folders_give_equal_ledgers_up_to_times(store, tmp_path):
    for number in random.Random(1).sample(range(30), 30):
        land(store, f"{number:02d}.jpg", jpeg(number))
    register(store, lane())
    frame = pl.read_parquet(store.ledger_file("lane")).drop("mtime_ns", "ctime_ns")
    store.ledger_file("lane").unlink()
    register(store, lane())
    assert frame.equals(pl.read_parquet(store.ledger_file("lane")).drop("mtime_ns", "ctime_ns"))


def test_every_bad_file_is_listed_with_its_reason_and_the_good_one_lands(store, tmp_path):
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(jpeg(1))
    land(store, "good.jpg")
    land(store, "zero.jpg", b"")
    land(store, "cut.jpg", jpeg(2)[:-200])
    land(store, "text.jpg", b"hello" * 100)
    land(store, "lies.png", jpeg(3))
    land(store, "tiny.jpg", jpeg(4, size=(1, 1)))
    (store.raw / "ds" / "broken.jpg").symlink_to("nowhere.jpg")
    (store.raw / "ds" / "escaping.jpg").symlink_to(outside)
    os.mkfifo(store.raw / "ds" / "pipe.jpg")
    report = register(store, lane())
    assert report.n_images == 9
    assert report.quarantined == {
        "lane::zero": "empty_file",
        "lane::cut": "truncated",
        "lane::text": "not_an_image",
        "lane::lies": "wrong_extension",
        "lane::tiny": "too_small",
        "lane::broken": "broken_symlink",
        "lane::escaping": "escapes_root",
        "lane::pipe": "unreadable",
    }
    entries = live(store)
    assert entries["broken.jpg"].content_hash == ""
    assert (entries["good.jpg"].width, entries["good.jpg"].height) == (64, 48)
    assert register(store, lane()).touched_batches == ()


def test_problems_are_kept_beside_the_ledger(store):
    land(store, "Images/DR/a.jpg")
    land(store, "Labels/DR/b.txt")
    register(store, lane("uwf700"))
    problems = json.loads(store.landing_problems_file("lane").read_text())["problems"]
    assert [problem["reason"] for problem in problems] == ["label_without_image"]


def test_only_the_owner_reads_the_ledger(store):
    land(store, "a.jpg")
    register(store, lane())
    folder = store.ledger_file("lane").parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_spent_time_budget_leaves_the_rest_for_the_next_registration(store):
    for number in range(5):
        land(store, f"{number}.jpg")
    found = []
    while not found or found[-1].n_deferred:
        found.append(register(store, lane(), time_budget_s=0.0, files_per_time_check=2))
    assert [report.n_deferred for report in found] == [3, 1, 0]
    assert [report.new for report in found] == [("lane::0", "lane::1"), ("lane::2", "lane::3"), ("lane::4",)]
    assert [report.gone for report in found] == [(), (), ()]
    assert sorted(live(store)) == [f"{number}.jpg" for number in range(5)]


def test_a_rename_whose_reading_is_put_off_keeps_its_identity(store):
    for number in range(3):
        land(store, f"{number}.jpg")
    register(store, lane())
    (store.raw / "ds" / "0.jpg").rename(store.raw / "ds" / "9.jpg")
    land(store, "4.jpg")
    while register(store, lane(), time_budget_s=0.0, files_per_time_check=1).n_deferred:
        pass
    assert live(store)["9.jpg"].image_id == "lane::0"
    assert live(store)["9.jpg"].batch == "b00001"
