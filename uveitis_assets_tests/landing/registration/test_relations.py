"""Copies and patients: whose split an image follows."""

import pytest

from uveitis_assets.landing.registration import register
from uveitis_assets_tests.landing.landing_samples import jpeg, land, lane, live


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


def test_a_quarantined_copy_is_not_reported_to_follow_another_patient_s_split(store):
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
