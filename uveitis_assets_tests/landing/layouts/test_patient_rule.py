"""Patients from a table or from file names, in lanes whose layout knows file names only."""

import pytest
from pydantic import ValidationError

from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets_tests.landing.layouts.folders import place, reasons, scan, table

EYES = r"(?P<patient>\d+)_(left|right)"
FOLDERS = {"uwf700": "Images/Uveitis/", "fgadr": "Original_Images/", "image_folder": "sub/"}


def patients(result):
    return {sample.relative_path.rpartition("/")[2]: sample.patient for sample in result.samples}


@pytest.mark.parametrize("layout", FOLDERS)
def test_a_pattern_finds_the_person_of_both_eyes(store, layout):
    names = ("10_left.jpg", "10_right.PNG", "11_left.jpeg", "12_middle.jpg", "x10_left.jpg", "10_left_late.jpg")
    place(store, *(FOLDERS[layout] + name for name in names))
    result = scan(store, layout, patients={"pattern": EYES})
    own = {"image_folder": "sub/"}.get(layout, "")
    assert patients(result) == {
        "10_left.jpg": "10",
        "10_right.PNG": "10",
        "11_left.jpeg": "11",
        "12_middle.jpg": f"{own}12_middle",
        "x10_left.jpg": f"{own}x10_left",
        "10_left_late.jpg": f"{own}10_left_late",
    }
    assert reasons(result) == ["no_patient"]
    assert result.problems[0].detail.startswith("3 images (")
    assert "12_middle.jpg" in result.problems[0].detail
    assert result.lost_patients == ()


@pytest.mark.parametrize("layout", FOLDERS)
def test_a_table_finds_the_person_of_both_eyes(store, layout):
    place(store, *(FOLDERS[layout] + name for name in ("a.jpg", "b.JPEG", "c.png", "d.png", "e.png")))
    table(store, "patients.csv", "sep=;\nIMAGE;Patient;seen\nb.jpg;P1;x;\na;P1;;\nc.png;;;\nD.png;P2;\n")
    result = scan(store, layout, patients={"csv": "patients.csv"})
    own = {"image_folder": "sub/"}.get(layout, "")
    assert patients(result) == {
        "a.jpg": "P1",
        "b.JPEG": "P1",
        "c.png": f"{own}c",
        "d.png": f"{own}d",
        "e.png": f"{own}e",
    }
    assert reasons(result) == ["missing", "no_patient"]
    assert f"line 6 may mean {FOLDERS[layout]}d.png" in result.problems[0].detail
    assert "3 images" in result.problems[1].detail
    assert result.lost_patients == ()


def test_named_columns_and_a_table_of_grades_beside_that_of_patients(store):
    place(store, "a.jpg", "b.jpg")
    table(store, "patients.csv", "file,person\na.jpg,P1\nb.jpg,P1\n")
    table(store, "grades.csv", "image,grade\na,2\nb,3\n")
    rule = {"csv": "patients.csv", "path_column": "file", "patient_column": "person"}
    options = {"csv": "grades.csv", "grade_column": "grade"}
    result = scan(store, "image_folder", patients=rule, image_folder=options)
    assert [(sample.patient, sample.notes) for sample in result.samples] == [("P1", "grade=2"), ("P1", "grade=3")]
    assert result.problems == ()


def test_a_pattern_with_a_slash_is_compared_with_the_path(store):
    place(store, "Images/4711/left.jpg", "Images/4711/right.jpg", "Images/left.jpg")
    result = scan(store, "image_folder", patients={"pattern": r"Images/(?P<patient>\d+)/.*"})
    assert [sample.patient for sample in result.samples] == ["4711", "4711", "Images/left"]


def test_a_name_whose_patient_is_empty_is_listed(store):
    place(store, "_left.jpg", "P1_left.jpg")
    result = scan(store, "image_folder", patients={"pattern": r"(?P<patient>.*)_left"})
    assert [sample.patient for sample in result.samples] == ["P1", "_left"]
    assert reasons(result) == ["no_patient"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "missing"),
        ("image,subject\na.jpg,P1\n", "missing_columns"),
        ("image,patient\na.jpg,P1\nb.jpg\n", "bad_row"),
        (b"PK\x03\x04", "not_csv"),
    ],
)
@pytest.mark.parametrize("way", ["patients", "image_folder"])
def test_patients_are_lost_where_their_table_cannot_be_read(store, content, reason, way):
    place(store, "a.jpg", "b.jpg")
    if content is not None:
        table(store, "t.csv", content)
    options = {"patients": {"csv": "t.csv"}}
    if way == "image_folder":
        options = {"image_folder": {"csv": "t.csv", "patient_column": "patient"}}
    result = scan(store, "image_folder", **options)
    assert [problem.reason for problem in result.lost_patients] == [reason]
    assert result.lost_patients[0] in result.problems
    assert "no_patient" not in reasons(result)


def test_nothing_is_lost_without_images_and_by_a_table_of_grades_alone(store):
    place(store, "notes.txt")
    assert scan(store, "image_folder", patients={"csv": "t.csv"}).lost_patients == ()
    place(store, "a.jpg")
    assert scan(store, "image_folder", image_folder={"csv": "t.csv", "grade_column": "grade"}).lost_patients == ()


def test_deepdrid_loses_only_patients_that_its_file_names_do_not_hold(store):
    place(store, "ultra-widefield-training/Images/121/l3.jpg", "regular-fundus-training/Images/7_l1.jpg")
    assert scan(store, "deepdrid").lost_patients == ()
    place(store, "regular-fundus-training/Images/photo.jpg", "regular-fundus-training/Regular-fundus-training.xlsx")
    (lost,) = scan(store, "deepdrid").lost_patients
    assert lost.detail.endswith("regular-fundus-training/Regular-fundus-training.xlsx may be meant: save it as CSV")
    table(store, "regular-fundus-training/regular-fundus-training.csv", b"PK\x03\x04")
    assert [problem.reason for problem in scan(store, "deepdrid").lost_patients] == ["not_csv"]


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ("uwf700", {"patients": {"pattern": "(?P<patient>[0-9+_left"}}, "expected a regular expression such as"),
        ("uwf700", {"patients": {"pattern": r"(\d+)_left"}}, r"expected a group \(\?P<patient>"),
        ("uwf700", {"patients": {}}, "expected either `csv` or `pattern`, found neither"),
        ("fgadr", {"patients": {"csv": "a.csv", "pattern": EYES}}, "expected either `csv` or `pattern`, found both"),
        ("fgadr", {"patients": {"pattern": EYES, "patient_column": "id"}}, "patient_column name columns of a CSV file"),
        ("fgadr", {"patients": {"csv": "../a.csv"}}, "expected a CSV file below the dataset folder"),
        ("eyepacs", {"patients": {"pattern": EYES}}, "layout eyepacs reads the patients itself; expected a layout"),
        ("deepdrid", {"patients": {"csv": "a.csv"}}, "among uwf700, fgadr, image_folder"),
        (
            "image_folder",
            {"patients": {"csv": "a.csv"}, "image_folder": {"csv": "b.csv", "patient_column": "patient"}},
            "expected one place where patients stand, found image_folder.patient_column too",
        ),
    ],
)
def test_a_wrong_rule_is_refused_when_it_is_loaded(layout, options, message):
    with pytest.raises(ValidationError, match=message):
        DatasetConfiguration(name="lane", layout=layout, folder="ds", **options)
