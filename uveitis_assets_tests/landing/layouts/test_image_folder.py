"""Any nested folder of images, with and without a table."""

import pytest

from uveitis_assets_tests.landing.layouts.folders import (
    COMPOSED,
    DECOMPOSED,
    by_path,
    place,
    reasons,
    scan,
    table,
)


def test_image_folder_without_csv_makes_every_image_a_patient(store):
    place(store, "a/left.jpg", "b/left.png", "c d, é.TIFF", "notes.txt")
    result = scan(store, "image_folder")
    assert [(image.relative_path, image.patient, image.eye, image.dataset) for image in result.samples] == [
        ("a/left.jpg", "a/left", "L", "lane"),
        ("b/left.png", "b/left", "L", "lane"),
        ("c d, é.TIFF", "c d, é", None, "lane"),
    ]


def test_image_folder_with_csv(store):
    place(store, "x/1.jpg", "x/2.jpg", "y/2.jpg", "y/3.jpg", "y/4.jpg")
    table(
        store,
        "meta.csv",
        "File;Patient;Eye;Grade\nx\\1.jpg;P1;OD;2\ny/2.jpg;P1;left;\n3;P2;sideways;1.0\n"
        "2.jpg;P9;L;1\n../../etc/passwd;P9;L;1\n/etc/passwd;P9;L;1\nx/1.jpg;P7;L;1\n",
    )
    options = {
        "csv": "meta.csv",
        "path_column": "file",
        "patient_column": "patient",
        "eye_column": "eye",
        "grade_column": "grade",
    }
    result = scan(store, "image_folder", image_folder=options)
    assert {
        path: (image.patient, image.eye, image.label_format, image.notes) for path, image in by_path(result).items()
    } == {
        "x/1.jpg": ("P1", "R", "grade", "grade=2"),
        "x/2.jpg": ("x/2", None, "none", ""),
        "y/2.jpg": ("P1", "L", "none", ""),
        "y/3.jpg": ("P2", None, "grade", "grade=1"),
        "y/4.jpg": ("y/4", None, "none", ""),
    }
    # Two paths leave the folder, one image is named twice, one eye is unknown, the bare name 2.jpg is ambiguous; the
    # images without a row are listed.
    assert sorted(reasons(result)) == ["bad_row", "bad_row", "bad_row", "escapes_root", "escapes_root", "no_patient"]
    assert "2 images (x/2.jpg, y/4.jpg) count as patients of their own" in result.problems[-1].detail
    assert "meta.csv: 1 rows name several images each, the first in line 5; write the path below" in " ".join(
        problem.detail for problem in result.problems
    )


@pytest.mark.parametrize("first", [COMPOSED, DECOMPOSED])
def test_image_folder_rows_belong_to_the_file_of_their_exact_name(store, first):
    grades = {COMPOSED: 1, DECOMPOSED: 2}
    second = next(name for name in grades if name != first)
    place(store, f"{COMPOSED}.jpg", f"{DECOMPOSED}.jpg")
    table(store, "meta.csv", "image,grade\n" + "".join(f"{name}.jpg,{grades[name]}\n" for name in (first, second)))
    options = {"csv": "meta.csv", "grade_column": "grade"}
    result = scan(store, "image_folder", image_folder=options)
    assert {path: image.notes for path, image in by_path(result).items()} == {
        f"{name}.jpg": f"grade={grade}" for name, grade in grades.items()
    }
    assert result.problems == ()
    # The row of the file that went does not take the other one's image.
    (store.raw / "ds" / f"{first}.jpg").unlink()
    result = scan(store, "image_folder", image_folder=options)
    assert [image.notes for image in result.samples] == [f"grade={grades[second]}"]
    assert reasons(result) == ["bad_row"]


def test_a_cell_that_is_no_grade_is_named_by_its_line_and_not_repeated(store):
    place(store, "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    table(store, "meta.csv", "image,name\n1,Jane Doe\n2,4711\n3,NaN\n4,2\n")
    result = scan(store, "image_folder", image_folder={"csv": "meta.csv", "grade_column": "name"})
    assert [image.notes for image in result.samples] == ["", "", "", "grade=2"]
    details = [problem.detail for problem in result.problems]
    assert [detail.split(": ")[0] for detail in details] == ["meta.csv:2", "meta.csv:3", "meta.csv:4"]
    assert not any(cell in detail for detail in details for cell in ("Doe", "4711", "NaN"))


def test_image_folder_with_missing_csv_columns_still_lands(store):
    place(store, "1.jpg")
    table(store, "meta.csv", "image,eye\n1.jpg,L\n")
    result = scan(store, "image_folder", image_folder={"csv": "meta.csv", "patient_column": "subject"})
    assert len(result.samples) == 1
    assert reasons(result) == ["missing_columns"]
    assert "found image, eye" in result.problems[0].detail
