"""The ledger: identity by content, immutable batches, and everything that can happen to a landing folder."""

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from unicodedata import normalize

import polars as pl
import pytest
from blake3 import blake3

from uveitis_assets.landing import image_file, ledger
from uveitis_assets.landing.change_detection import landing_fingerprint
from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.ledger import read_ledger, registered_batches, registered_images
from uveitis_assets.landing.registration import register
from uveitis_assets_tests.landing.landing_samples import jpeg, land, later


def lane(layout="image_folder", batch_size=3, **options):
    return DatasetConfiguration(name="lane", layout=layout, folder="ds", batch_size=batch_size, **options)


def live(store):
    return {entry.relative_path: entry for entry in read_ledger(store, "lane") if entry.state == "live"}


def test_new_images_fill_batches_sorted_by_path(store):
    for number in range(7):
        land(store, f"{number}.jpg")
    report = register(store, lane())
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


def test_registering_again_changes_nothing_and_reads_nothing(store, monkeypatch):
    for number in range(5):
        land(store, f"{number}.jpg")
    register(store, lane())
    before = store.ledger_file("lane").stat()
    monkeypatch.setattr(ledger, "read_landed_file_and_stat", None)
    report = register(store, lane())
    assert (report.n_unchanged, report.new, report.new_batches, report.touched_batches) == (5, (), (), ())
    assert store.ledger_file("lane").stat().st_ino == before.st_ino


def test_each_new_file_is_opened_once(store, monkeypatch):
    for number in range(20):
        land(store, f"{number}.jpg")
    opened = []
    real = os.open
    monkeypatch.setattr(image_file.os, "open", lambda path, *rest: (opened.append(str(path)), real(path, *rest))[1])
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


def test_a_touched_file_with_the_same_content_is_unchanged(store):
    path = land(store, "a.jpg")
    register(store, lane())
    later(path)
    report = register(store, lane())
    assert (report.n_unchanged, report.changed, report.touched_batches) == (1, (), ())
    assert live(store)["a.jpg"].mtime_ns == path.stat().st_mtime_ns


def test_a_renamed_file_keeps_id_batch_and_patient(store):
    path = land(store, "old name.jpg")
    register(store, lane())
    (store.raw / "ds" / "sub").mkdir()
    path.rename(store.raw / "ds" / "sub" / "new.jpg")
    report = register(store, lane())
    assert (report.renamed, report.new, report.gone) == (("lane::old name",), (), ())
    assert (report.new_batches, report.touched_batches) == ((), ("b00001",))
    entry = live(store)["sub/new.jpg"]
    assert (entry.image_id, entry.batch, entry.patient) == ("lane::old name", "b00001", "old name")
    assert register(store, lane()).n_unchanged == 1
    assert live(store)["sub/new.jpg"].patient == "old name"


def test_a_name_that_states_the_patient_moves_the_image_to_the_new_patient(store):
    path = land(store, "train/10_left.jpeg")
    register(store, lane("eyepacs"))
    path.rename(path.with_name("11_left.jpeg"))
    report = register(store, lane("eyepacs"))
    assert report.renamed == ("lane::10_left",)
    assert live(store)["train/11_left.jpeg"].patient == "11"


def test_swapped_files_are_two_changes(store):
    one, two = land(store, "1.jpg"), land(store, "2.jpg")
    register(store, lane())
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second + b" ")
    two.write_bytes(first + b" ")
    assert register(store, lane()).changed == ("lane::1", "lane::2")


def test_a_changed_file_keeps_its_id_in_a_new_batch(store):
    path = land(store, "a.jpg")
    land(store, "b.jpg")
    register(store, lane())
    path.write_bytes(jpeg(99))
    report = register(store, lane())
    assert (report.changed, report.new) == (("lane::a",), ())
    assert (report.new_batches, report.touched_batches) == (("b00002",), ("b00001",))
    assert [image.image_id for image in registered_images(store, lane(), "b00001")] == ["lane::b"]
    assert [image.image_id for image in registered_images(store, lane(), "b00002")] == ["lane::a"]
    assert [entry.state for entry in read_ledger(store, "lane")] == ["superseded", "live", "live"]
    path.write_bytes(jpeg(98))
    assert register(store, lane()).new_batches == ("b00003",)


def test_an_overwrite_with_equal_size_and_modification_time_is_noticed(store):
    path = land(store, "a.jpg")
    state = path.stat()
    register(store, lane())
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_mtime_ns == state.st_mtime_ns
    assert register(store, lane()).changed == ("lane::a",)


def test_a_vanished_file_is_gone_and_comes_back(store):
    path = land(store, "a.jpg")
    land(store, "b.jpg")
    register(store, lane())
    data = path.read_bytes()
    path.unlink()
    report = register(store, lane())
    assert (report.gone, report.touched_batches, report.n_images) == (("lane::a",), ("b00001",), 1)
    assert [image.image_id for image in registered_images(store, lane(), "b00001")] == ["lane::b"]
    assert register(store, lane()).gone == ()
    path.write_bytes(data)
    report = register(store, lane())
    assert (report.returned, report.new, report.touched_batches) == (("lane::a",), (), ("b00001",))
    assert live(store)["a.jpg"].batch == "b00001"


def test_a_returned_file_whose_id_was_given_away_gets_another(store):
    path = land(store, "x/a.jpg", jpeg(1))
    register(store, lane())
    path.unlink()
    register(store, lane())
    land(store, "y/a.jpg", jpeg(2))
    assert register(store, lane()).new == ("lane::a",)
    land(store, "x/a.jpg", jpeg(1))
    register(store, lane())
    ids = {path: entry.image_id for path, entry in live(store).items()}
    assert ids["y/a.jpg"] == "lane::a"
    assert ids["x/a.jpg"].startswith("lane::a~")


def test_an_unmounted_folder_takes_nothing_away(store):
    land(store, "a.jpg")
    register(store, lane())
    (store.raw / "ds").rename(store.raw / "elsewhere")
    report = register(store, lane())
    assert (report.gone, report.n_images) == ((), 1)
    assert [problem.reason for problem in report.problems][:1] == ["missing_folder"]


# Copies -------------------------------------------------------------------------------------------------------


def test_copies_are_two_entries_that_follow_one_patient(store):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        land(store, name, jpeg(5) if name != "c.jpg" else None)
    report = register(store, lane())
    assert (report.n_images, report.duplicates) == (3, ("lane::b",))
    entries = live(store)
    assert entries["b.jpg"].duplicate_of == "lane::a"
    assert entries["a.jpg"].duplicate_of is None
    assert (entries["b.jpg"].patient, entries["b.jpg"].split_patient) == ("b", "a")
    assert (entries["c.jpg"].patient, entries["c.jpg"].split_patient) == ("c", "c")
    assert [problem.reason for problem in report.problems] == ["duplicate_of_other_patient"]


def test_a_quarantined_copy_is_not_said_to_follow_another_patient_s_split(store):
    land(store, "a.jpg", jpeg(5))
    copy = land(store, "b.png", jpeg(5))
    report = register(store, lane())
    assert report.quarantined == {"lane::b": "wrong_extension"}
    assert report.problems == ()
    copy.rename(copy.with_suffix(".jpg"))
    assert [problem.reason for problem in register(store, lane()).problems] == ["duplicate_of_other_patient"]


def test_a_later_copy_with_a_smaller_path_follows_the_first_and_stays_when_that_goes(store):
    first = land(store, "z.jpg", jpeg(5))
    register(store, lane())
    land(store, "a.jpg", jpeg(5))
    report = register(store, lane())
    assert (report.duplicates, report.new_batches, report.touched_batches) == (("lane::a",), ("b00002",), ())
    assert live(store)["a.jpg"].duplicate_of == "lane::z"
    first.unlink()
    report = register(store, lane())
    assert report.gone == ("lane::z",)
    assert report.touched_batches == ("b00001", "b00002")
    assert live(store)["a.jpg"].duplicate_of is None
    assert live(store)["a.jpg"].split_patient == "z"


def test_empty_files_are_not_copies_of_each_other(store):
    land(store, "a.jpg", b"")
    land(store, "b.jpg", b"")
    report = register(store, lane())
    assert report.duplicates == ()
    assert report.quarantined == {"lane::a": "empty_file", "lane::b": "empty_file"}


def test_one_of_two_copies_renamed_is_recognised(store):
    land(store, "a.jpg", jpeg(5))
    second = land(store, "b.jpg", jpeg(5))
    register(store, lane())
    second.rename(second.with_name("c.jpg"))
    report = register(store, lane())
    assert (report.renamed, report.gone, report.new) == (("lane::b",), (), ())


# Ids ----------------------------------------------------------------------------------------------------------


def test_equal_stems_in_different_folders_stay_distinct(store):
    land(store, "Images/DR/001.jpg")
    land(store, "Images/Uveitis/001.jpg")
    land(store, "Labels/DR/001.txt", b"1 0 0 1 0 1 1 0 1\n")
    register(store, lane("uwf700"))
    entries = live(store)
    first, second = entries["Images/DR/001.jpg"], entries["Images/Uveitis/001.jpg"]
    assert first.image_id == "lane::001"
    assert second.image_id.startswith("lane::001~")
    assert len(second.image_id) == len("lane::001~") + 8
    assert (first.label_paths, second.label_paths) == (("Labels/DR/001.txt",), ())
    assert (first.label_format, second.label_format) == ("obb", "none")


def test_ids_differ_on_disk_whatever_case_form_or_separator(store):
    names = ["Eye.jpg", "eye.jpg", "x::y.jpg", "x__y.jpg", normalize("NFD", "é/é.jpg"), normalize("NFC", "ö/é.jpg")]
    for number, name in enumerate(names):
        land(store, name, jpeg(number))
    register(store, lane())
    ids = [entry.image_id for entry in read_ledger(store, "lane")]
    keys = {normalize("NFC", image_id.replace("::", "__")).casefold() for image_id in ids}
    assert len(keys) == len(names)
    assert all(image_id == normalize("NFC", image_id) for image_id in ids)
    register(store, lane())
    assert [entry.image_id for entry in read_ledger(store, "lane")] == ids


def test_long_names_with_spaces_commas_and_line_breaks_get_usable_ids(store):
    land(store, "é" * 120 + ".jpg", jpeg(1))
    land(store, "é" * 119 + "ö.jpg", jpeg(2))
    land(store, "a, b\nc.jpg", jpeg(3))
    register(store, lane())
    ids = [entry.image_id for entry in read_ledger(store, "lane")]
    assert "lane::a, b_c" in ids
    assert len(set(ids)) == 3
    assert all(len(image_id.encode()) < 180 for image_id in ids)


def test_identify_by_content_keeps_names_out_of_the_id(store):
    dataset = lane(image_folder={"identify_by_content": True})
    path = land(store, "Jane Doe.jpg", jpeg(1))
    land(store, "Jane Doe copy.jpg", jpeg(1))
    os.mkfifo(store.raw / "ds" / "John Roe.jpg")
    report = register(store, dataset)
    digest = blake3(jpeg(1)).hexdigest()
    assert len(report.new) == 3
    assert f"lane::img_{digest[:16]}" in report.new
    assert "Doe" not in repr(report)
    assert "Roe" not in repr(report)
    images = registered_images(store, dataset, "b00001")
    assert all(image.name == image.image_id + ".jpg" for image in images)
    path.write_bytes(jpeg(2))
    report = register(store, dataset)
    assert report.new == (f"lane::img_{blake3(jpeg(2)).hexdigest()[:16]}",)
    assert report.touched_batches == ("b00001",)
    assert "Doe" not in repr(report)


# Bad input ----------------------------------------------------------------------------------------------------


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


def test_a_broken_link_that_is_mended_fills_its_entry(store):
    link = store.raw / "ds" / "link.jpg"
    link.parent.mkdir()
    link.symlink_to("target.jpeg.later")
    assert register(store, lane()).quarantined == {"lane::link": "broken_symlink"}
    (store.raw / "ds" / "target.jpeg.later").write_bytes(jpeg(1))
    report = register(store, lane())
    assert (report.changed, report.quarantined) == (("lane::link",), {})
    assert (report.new_batches, report.touched_batches) == ((), ("b00001",))
    assert live(store)["link.jpg"].content_hash == blake3(jpeg(1)).hexdigest()


def test_a_file_that_becomes_unreadable_keeps_what_is_known_and_recovers(store):
    path = land(store, "a.jpg", jpeg(1))
    register(store, lane())
    path.unlink()
    path.symlink_to("nowhere")
    report = register(store, lane())
    assert (report.quarantined, report.touched_batches) == ({"lane::a": "broken_symlink"}, ("b00001",))
    assert live(store)["a.jpg"].content_hash == blake3(jpeg(1)).hexdigest()
    path.unlink()
    path.write_bytes(jpeg(1))
    report = register(store, lane())
    assert (report.quarantined, report.touched_batches) == ({}, ("b00001",))


# Labels -------------------------------------------------------------------------------------------------------


def test_added_changed_and_removed_labels_relabel_the_image(store):
    for name in ("a", "b"):
        land(store, f"Images/Uveitis/{name}.jpg")
    register(store, lane("uwf700"))
    label = land(store, "Labels/Uveitis/a.txt", b"1 0 0 1 0 1 1 0 1\n")
    report = register(store, lane("uwf700"))
    assert (report.relabelled, report.touched_batches, report.new_batches) == (("lane::a",), ("b00001",), ())
    assert register(store, lane("uwf700")).relabelled == ()
    later(label)
    assert register(store, lane("uwf700")).relabelled == ()
    label.write_bytes(b"")
    assert register(store, lane("uwf700")).relabelled == ("lane::a",)
    label.unlink()
    assert register(store, lane("uwf700")).relabelled == ("lane::a",)
    assert live(store)["Images/Uveitis/a.jpg"].label_format == "none"


def test_a_changed_grade_relabels_only_its_image(store):
    land(store, "train/1_left.jpeg")
    land(store, "train/2_left.jpeg")
    land(store, "trainLabels.csv", b"image,level\n1_left,0\n2_left,0\n")
    register(store, lane("eyepacs"))
    land(store, "trainLabels.csv", b"image,level\n1_left,3\n2_left,0\n")
    assert register(store, lane("eyepacs")).relabelled == ("lane::1_left",)
    assert live(store)["train/1_left.jpeg"].notes == "grade=3"


def test_a_label_that_cannot_be_read_is_a_problem(store):
    land(store, "Images/Uveitis/a.jpg")
    (store.raw / "ds" / "Labels" / "Uveitis").mkdir(parents=True)
    (store.raw / "ds" / "Labels" / "Uveitis" / "a.txt").symlink_to("/etc/hostname")
    report = register(store, lane("uwf700"))
    assert [(problem.path, problem.reason) for problem in report.problems] == [("Labels/Uveitis/a.txt", "escapes_root")]


def test_conflicting_official_splits_are_reported_and_the_strictest_holds(store):
    land(store, "ultra-widefield-training/Images/1/1_l1.jpg")
    land(store, "ultra-widefield-training/Images/2/2_l1.jpg")
    header = b"patient_id,image_id,image_path,DR_level,position\n"
    land(store, "ultra-widefield-training/ultra-widefield-training.csv", header + b"1,1_l1,,0,left\n2,2_l1,,0,left\n")
    register(store, lane("deepdrid"))
    land(store, "ultra-widefield-validation/Images/1/1_r1.jpg")
    land(store, "ultra-widefield-validation/ultra-widefield-validation.csv", header + b"1,1_r1,,0,right\n")
    report = register(store, lane("deepdrid"))
    assert [problem.reason for problem in report.problems] == ["conflicting_official_splits"]
    assert "train, val; val holds" in report.problems[0].detail
    # The image that was there before moves with its patient: its batch has to be rebuilt.
    assert (report.new_batches, report.touched_batches) == (("b00002",), ("b00001",))
    assert {entry.image_id: entry.patient_official_split for entry in live(store).values()} == {
        "lane_uwf::1_l1": "val",
        "lane_uwf::1_r1": "val",
        "lane_uwf::2_l1": "train",
    }


@pytest.mark.parametrize("end", ["removed", "replaced", "replaced and removed"])
def test_a_patient_keeps_the_official_split_of_a_photograph_that_is_gone(store, end):
    header = b"patient_id,image_id,image_path,DR_level,position\n"
    land(store, "ultra-widefield-training/Images/1/1_l1.jpg")
    land(store, "ultra-widefield-training/ultra-widefield-training.csv", header + b"1,1_l1,,0,left\n")
    only_test = land(store, "Challenge3_upload/Images/1/1_r1.jpg")
    register(store, lane("deepdrid"))
    if end.startswith("replaced"):
        only_test.write_bytes(jpeg(99))
        register(store, lane("deepdrid"))
    if end.endswith("removed"):
        only_test.unlink()
    report = register(store, lane("deepdrid"))
    assert live(store)["ultra-widefield-training/Images/1/1_l1.jpg"].patient_official_split == "test"
    assert "conflicting_official_splits" in {problem.reason for problem in report.problems}
    assert register(store, lane("deepdrid")).touched_batches == ()


@pytest.mark.parametrize("end", ["removed", "replaced"])
def test_content_that_another_patient_s_file_once_had_is_reported(store, end):
    """B and C are photographs of Q; B follows P, whose file had its content before, C follows Q."""
    dataset = lane(batch_size=10, image_folder={"csv": "meta.csv", "patient_column": "patient"})
    land(store, "meta.csv", b"image,patient\nA.jpg,P\nB.jpg,Q\nC.jpg,Q\n")
    first = land(store, "A.jpg", jpeg(1))
    land(store, "C.jpg", jpeg(2))
    if end == "removed":
        land(store, "B.jpg", jpeg(1))
    register(store, dataset)
    if end == "removed":
        first.unlink()
    else:
        land(store, "A.jpg", jpeg(3))
        land(store, "B.jpg", jpeg(1))
    report = register(store, dataset)
    assert (live(store)["B.jpg"].split_patient, live(store)["C.jpg"].split_patient) == ("P", "Q")
    (problem,) = (one for one in report.problems if one.reason == "duplicate_of_other_patient")
    assert problem.path == "B.jpg"
    assert f"lane::B has the same content as lane::A, {end} since" in problem.detail


@pytest.mark.parametrize("seed", range(6))
def test_random_histories_keep_the_ledger_consistent(store, seed):
    """Random landing, removing, renaming, copying and changing: what must hold after every registration."""
    generator = random.Random(seed)
    folder = store.raw / "ds"
    folder.mkdir()
    members = {}
    for step in range(12):
        for _ in range(generator.randint(1, 5)):
            files = sorted(folder.glob("*.jpg"))
            action = generator.choice(["land", "land", "remove", "rename", "copy", "change"])
            fresh = folder / f"{generator.randrange(10**6):06d}.jpg"
            if action == "land" or not files:
                fresh.write_bytes(jpeg(generator.randrange(10**6)))
            elif action == "remove":
                generator.choice(files).unlink()
            elif action == "rename":
                generator.choice(files).rename(fresh)
            elif action == "copy":
                fresh.write_bytes(generator.choice(files).read_bytes())
            else:
                generator.choice(files).write_bytes(jpeg(generator.randrange(10**6)))
        before = {entry.image_id: entry.batch for entry in live(store).values()}
        report = register(store, lane(batch_size=2))
        entries = live(store)
        assert {path: entry.content_hash for path, entry in entries.items()} == {
            file.name: blake3(file.read_bytes()).hexdigest() for file in folder.glob("*.jpg")
        }, step
        ids = [entry.image_id for entry in entries.values()]
        assert len(set(ids)) == len(ids)
        # Members of a batch never come from elsewhere: an image in an old batch was in it before.
        for entry in read_ledger(store, "lane"):
            members.setdefault(entry.batch, set())
            if entry.batch not in report.new_batches:
                assert (entry.image_id, entry.content_hash) in members[entry.batch]
            members[entry.batch].add((entry.image_id, entry.content_hash))
        assert all(len(found) <= 2 for found in members.values())
        changed_batches = {batch for image_id, batch in before.items() if image_id not in ids}
        assert changed_batches <= set(report.touched_batches)
        first = {}
        for entry in read_ledger(store, "lane"):
            first.setdefault(entry.content_hash, entry.patient)
        assert all(entry.split_patient == first[entry.content_hash] for entry in entries.values())
        assert register(store, lane(batch_size=2)).touched_batches == ()


# Safety -------------------------------------------------------------------------------------------------------


def test_only_the_owner_reads_the_ledger(store):
    land(store, "a.jpg")
    register(store, lane())
    folder = store.ledger_file("lane").parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_problems_are_kept_beside_the_ledger(store):
    land(store, "Images/DR/a.jpg")
    land(store, "Labels/DR/b.txt")
    register(store, lane("uwf700"))
    problems = json.loads(store.landing_problems_file("lane").read_text())["problems"]
    assert [problem["reason"] for problem in problems] == ["label_without_image"]


def test_equal_folders_give_equal_ledgers_up_to_times(store, tmp_path):
    for number in random.Random(1).sample(range(30), 30):
        land(store, f"{number:02d}.jpg", jpeg(number))
    register(store, lane())
    frame = pl.read_parquet(store.ledger_file("lane")).drop("mtime_ns", "ctime_ns")
    store.ledger_file("lane").unlink()
    register(store, lane())
    assert frame.equals(pl.read_parquet(store.ledger_file("lane")).drop("mtime_ns", "ctime_ns"))


def test_a_killed_registration_leaves_the_old_ledger_and_the_next_one_finishes(store):
    for number in range(300):
        land(store, f"{number:03d}.jpg", jpeg(number))
    register(store, lane())
    for number in range(300, 900):
        land(store, f"{number:03d}.jpg", jpeg(number))
    before = store.ledger_file("lane").read_bytes()
    code = (
        "from pathlib import Path\n"
        "from uveitis_assets.storage.store import ArtefactStore\n"
        "from uveitis_assets.landing.configuration import DatasetConfiguration\n"
        "from uveitis_assets.landing import ledger\n"
        f"store = ArtefactStore(Path({str(store.root)!r}), Path({str(store.raw)!r}))\n"
        "read = ledger.read_landed_file_and_stat\n"
        "def slow(*arguments):\n"
        "    print('reading', flush=True)\n"
        "    import time; time.sleep(0.01)\n"
        "    return read(*arguments)\n"
        "ledger.read_landed_file_and_stat = slow\n"
        "ledger.register(store, DatasetConfiguration(name='lane', layout='image_folder', folder='ds', batch_size=3))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        for _ in range(50):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert store.ledger_file("lane").read_bytes() == before
    report = register(store, lane())  # the dead process's lock does not hold
    assert (report.n_images, len(report.new)) == (900, 600)


def test_two_processes_registering_at_once_agree(store):
    for number in range(60):
        land(store, f"{number:03d}.jpg", jpeg(number))
    code = (
        "from pathlib import Path\n"
        "from uveitis_assets.storage.store import ArtefactStore\n"
        "from uveitis_assets.landing.configuration import DatasetConfiguration\n"
        "from uveitis_assets.landing.registration import register\n"
        f"store = ArtefactStore(Path({str(store.root)!r}), Path({str(store.raw)!r}))\n"
        "dataset = DatasetConfiguration(name='lane', layout='image_folder', folder='ds', batch_size=7)\n"
        "print(len(register(store, dataset).new))\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    counts = sorted(int(process.communicate()[0]) for process in processes)
    assert counts == [0, 60]
    assert len(read_ledger(store, "lane")) == 60


# A sensor's look ----------------------------------------------------------------------------------------------


@pytest.fixture
def landed(store):
    for name in ("Images/Uveitis/a.jpg", "Images/Uveitis/b.jpg", "Images/DR/a.jpg"):
        land(store, name)
    land(store, "Labels/Uveitis/a.txt", b"1 0 0 1 0 1 1 0 1\n")
    register(store, lane("uwf700"))
    return store


def test_the_fingerprint_of_an_unchanged_folder_stays(landed):
    values = {landing_fingerprint(landed, lane("uwf700"), tick) for tick in range(5)}
    assert len(values) == 1


def act_add(root):
    (root / "Images/DR/c.jpg").write_bytes(jpeg(7))


def act_remove(root):
    (root / "Images/DR/a.jpg").unlink()


def act_rename(root):
    (root / "Images/DR/a.jpg").rename(root / "Images/Uveitis/z.jpg")


def act_replace(root):
    (root / "new").write_bytes(jpeg(8))
    (root / "new").replace(root / "Images/DR/a.jpg")


def act_overwrite(root):
    (root / "Images/DR/a.jpg").write_bytes(jpeg(8))


def act_edit_label(root):
    (root / "Labels/Uveitis/a.txt").write_bytes(b"")


def act_new_folder(root):
    (root / "Images/New").mkdir()
    (root / "Images/New/q.jpg").write_bytes(jpeg(9))


@pytest.mark.parametrize(
    "act", [act_add, act_remove, act_rename, act_replace, act_overwrite, act_edit_label, act_new_folder]
)
def test_the_fingerprint_notices_and_settles_after_registering(landed, act):
    before = landing_fingerprint(landed, lane("uwf700"), 0)
    time.sleep(0.01)  # folder times have the resolution of the kernel's clock tick
    act(landed.raw / "ds")
    assert landing_fingerprint(landed, lane("uwf700"), 1) != before
    register(landed, lane("uwf700"))
    values = {landing_fingerprint(landed, lane("uwf700"), tick) for tick in range(4)}
    assert len(values) == 1


def test_an_in_place_change_is_noticed_within_one_round_of_slices(store, monkeypatch):
    monkeypatch.setattr(ledger, "_FEWEST_ROWS_PER_TICK", 4)
    for number in range(10):
        land(store, f"{number}.jpg")
    register(store, lane())
    quiet = landing_fingerprint(store, lane(), 0)
    land(store, "9.jpg", jpeg(77))
    noticed = [landing_fingerprint(store, lane(), tick) != quiet for tick in range(6)]
    assert noticed == [False, False, True] * 2


def test_an_edited_csv_is_noticed_at_once(store):
    land(store, "train/1_left.jpeg")
    land(store, "trainLabels.csv", b"image,level\n1_left,0\n")
    register(store, lane("eyepacs"))
    before = landing_fingerprint(store, lane("eyepacs"))
    land(store, "trainLabels.csv", b"image,level\n1_left,1\n")
    assert landing_fingerprint(store, lane("eyepacs")) != before


def test_the_fingerprint_of_a_missing_folder_and_before_the_first_registration(store):
    empty = landing_fingerprint(store, lane())
    land(store, "a.jpg")
    assert landing_fingerprint(store, lane()) != empty


def test_a_spent_time_budget_leaves_the_rest_for_the_next_registration(store, monkeypatch):
    monkeypatch.setattr(ledger, "_READ_CHUNK", 2)
    for number in range(5):
        land(store, f"{number}.jpg")
    found = []
    while not found or found[-1].n_deferred:
        found.append(register(store, lane(), time_budget_s=0.0))
    assert [report.n_deferred for report in found] == [3, 1, 0]
    assert [report.new for report in found] == [("lane::0", "lane::1"), ("lane::2", "lane::3"), ("lane::4",)]
    assert [report.gone for report in found] == [(), (), ()]
    assert sorted(live(store)) == [f"{number}.jpg" for number in range(5)]


def test_a_rename_whose_reading_is_put_off_keeps_its_identity(store, monkeypatch):
    monkeypatch.setattr(ledger, "_READ_CHUNK", 1)
    for number in range(3):
        land(store, f"{number}.jpg")
    register(store, lane())
    (store.raw / "ds" / "0.jpg").rename(store.raw / "ds" / "9.jpg")
    land(store, "4.jpg")
    while register(store, lane(), time_budget_s=0.0).n_deferred:
        pass
    assert live(store)["9.jpg"].image_id == "lane::0"
    assert live(store)["9.jpg"].batch == "b00001"


def test_an_empty_landing_folder_takes_no_image_away(store):
    path = land(store, "0.jpg")
    register(store, lane())
    content = path.read_bytes()
    path.unlink()
    report = register(store, lane())
    assert report.gone == ()
    assert "no_images" in {problem.reason for problem in report.problems}
    path.write_bytes(content)
    assert register(store, lane()).n_unchanged == 1
