"""Layouts with grades in tables, DeepDRiD and EyePACS: patients, eyes, grades and official splits."""

from uveitis_assets_tests.landing.layouts.folders import (
    place,
    reasons,
    scan,
    table,
)

REGULAR = "regular_fundus_images/"
WIDE = "ultra-widefield_images/"
REGULAR_HEADER = (
    "patient_id,image_id,image_path,Overall quality,left_eye_DR_Level,right_eye_DR_Level,patient_DR_Level,Clarity\n"
)


def test_deepdrid_as_published(store):
    train, val = REGULAR + "regular-fundus-training/", REGULAR + "regular-fundus-validation/"
    test = REGULAR + "Online-Challenge1&2-Evaluation/"
    place(store, train + "Images/1/1_l1.jpg", train + "Images/1/1_r1.jpg", train + "Images/56/56_r3.jpg")
    table(
        store,
        train + "regular-fundus-training.csv",
        REGULAR_HEADER
        + "1,1_l1,\\regular-fundus-training\\1\\1_l1.jpg,0,3,,4,8\n"
        + "1,1_r1,\\regular-fundus-training\\1\\1_r1.jpg,0,,4,4,8\n"
        + "56,56_r3,\\regular-fundus-training\\56\\56_r3.jpg,0,1,,1,10\n",
    )
    place(store, val + "Images/265/265_l1.jpg")
    table(
        store,
        val + "regular-fundus-validation.csv",
        REGULAR_HEADER + "265,265_l1,\\regular-fundus-validation\\265\\265_l1.jpg,0,,,2,8\n",
    )
    place(store, test + "Images/347/347_l1.jpg")
    table(store, test + "Challenge1_upload.csv", "image_id,DR_Level\n347_l1,\n")
    table(store, test + "Challenge2_upload.csv", "Overall quality,image_id\n,347_l1\n")
    wide = WIDE + "ultra-widefield-training/"
    place(store, wide + "Images/121/l3.jpg", wide + "Images/1/1_r1.jpg")
    table(
        store,
        wide + "ultra-widefield-training.csv",
        "patient_id,image_id,image_path,DR_level,position\n"
        "121,121_l3,ultra-widefield-training\\121\\121_l3.jpg,2,left_eye\n"
        "1,1_r1,ultra-widefield-training\\1\\1_r1.jpg,5,right_eye\n",
    )
    result = scan(store, "deepdrid")
    assert result.problems == ()
    facts = {
        (image.dataset, image.identifier): (image.patient, image.eye, image.notes, image.official_split)
        for image in result.samples
    }
    assert facts == {
        ("lane_regular", "1_l1"): ("1", "L", "grade=3", "train"),
        ("lane_regular", "1_r1"): ("1", "R", "grade=4", "train"),
        ("lane_regular", "56_r3"): ("56", "R", "grade=1", "train"),
        ("lane_regular", "265_l1"): ("265", "L", "grade=2", "val"),
        ("lane_regular", "347_l1"): ("347", "L", "", "test"),
        ("lane_uwf", "121_l3"): ("121", "L", "grade=2", "train"),
        ("lane_uwf", "1_r1"): ("1", "R", "grade=5", "train"),
    }
    by_id = {(image.dataset, image.identifier): image for image in result.samples}
    assert by_id["lane_regular", "347_l1"].label_format == "none"
    assert by_id["lane_uwf", "121_l3"].label_format == "grade"


def test_deepdrid_images_land_without_csv_row_or_columns(store):
    place(store, "regular-fundus-training/Images/7/7_l1.jpg", "ultra-widefield-training/Images/9/9_r2.jpg")
    table(store, "ultra-widefield-training/ultra-widefield-training.csv", "patient,picture\n9,9_r2\n")
    result = scan(store, "deepdrid")
    assert [(image.identifier, image.patient, image.eye, image.label_format) for image in result.samples] == [
        ("7_l1", "7", "L", "none"),
        ("9_r2", "9", "R", "none"),
    ]
    assert sorted(reasons(result)) == ["missing", "missing_columns"]


def test_deepdrid_paths_that_escape_and_images_that_are_not_there_are_problems(store):
    wide = "ultra-widefield-training/"
    place(store, wide + "Images/1/1_l1.jpg")
    table(
        store,
        wide + "ultra-widefield-training.csv",
        "patient_id,image_id,image_path,DR_level,position\n"
        "1,1_l1,ultra-widefield-training\\..\\..\\..\\secret.jpg,1,left_eye\n"
        "2,2_l1,ultra-widefield-training\\2\\2_l1.jpg,1,left_eye\n"
        "1,1_l1,ultra-widefield-training\\1\\1_l1.jpg,many,left_eye\n",
    )
    result = scan(store, "deepdrid")
    assert len(result.samples) == 1
    assert result.samples[0].label_format == "none"
    assert sorted(reasons(result)) == ["bad_row", "escapes_root", "missing"]


def test_eyepacs(store):
    place(store, "train/10_left.jpeg", "train/10_right.jpeg", "train/13_left.jpeg", "train/readme.txt")
    table(store, "trainLabels.csv", "image,level\n10_left,0\n10_right,4\n13_left,bad\n99_left,1\n98_left,1\n")
    result = scan(store, "eyepacs")
    assert [
        (image.relative_path, image.patient, image.eye, image.label_format, image.notes) for image in result.samples
    ] == [
        ("train/10_left.jpeg", "10", "L", "grade", "grade=0"),
        ("train/10_right.jpeg", "10", "R", "grade", "grade=4"),
        ("train/13_left.jpeg", "13", "L", "none", ""),
    ]
    assert reasons(result) == ["bad_row", "missing"]
    assert "2 rows" in result.problems[1].detail
    assert "line 5" in result.problems[1].detail


def test_eyepacs_lands_without_its_csv(store):
    place(store, "train/10_left.jpeg")
    result = scan(store, "eyepacs")
    assert result.samples[0].label_format == "none"
    assert reasons(result) == ["missing"]
