"""Which file a name in a table means, and which it may mean."""

import pytest

from uveitis_assets.landing.layouts.file_names import FileNames
from uveitis_assets_tests.landing.layouts.folders import COMPOSED, DECOMPOSED, by_path, place, reasons, scan, table


@pytest.mark.parametrize(
    ("files", "cell", "found"),
    [
        (["train/10_left.jpeg"], "10_left", ["train/10_left.jpeg"]),
        (["train/10_left.jpeg"], "10_left.jpeg", ["train/10_left.jpeg"]),
        (["train/10_left.jpeg"], "10_left.JPG", ["train/10_left.jpeg"]),
        (["train/10_left.jpeg"], "train\\10_left.Jpeg", ["train/10_left.jpeg"]),
        (["train/10_left.jpeg"], "train/10_left", ["train/10_left.jpeg"]),
        (["a.TIF"], "a.tiff", ["a.TIF"]),
        (["a.b.tif"], "a.b", ["a.b.tif"]),
        ([f"{COMPOSED}.PNG"], f"{DECOMPOSED}.png", [f"{COMPOSED}.PNG"]),
        # The spelling decides before aliases do.
        (["a.jpg", "a.jpeg", "a.JPG"], "a.JPG", ["a.JPG"]),
        (["a.jpg", "a.jpeg"], "a.JPG", ["a.jpg"]),
        (["a.JPG", "a.jpeg"], "a.jpg", ["a.JPG"]),
        # What does not decide is left to the user.
        (["a.jpg", "a.png"], "a", ["a.jpg", "a.png"]),
        (["x/a.jpg", "y/a.jpg"], "a.jpg", ["x/a.jpg", "y/a.jpg"]),
        (["a.JPG", "a.Jpg"], "a.jpg", ["a.JPG", "a.Jpg"]),
        # Another format, another case of the name and another folder are other files.
        (["a.png"], "a.jpg", []),
        (["A.png"], "a.png", []),
        (["x/a.png"], "y/a.png", []),
    ],
)
def test_the_file_that_a_cell_means(files, cell, found):
    assert FileNames(files).find(cell) == found


@pytest.mark.parametrize(
    ("files", "cell", "almost"),
    [
        (["train/10_left.jpeg"], "10_LEFT.jpeg", "train/10_left.jpeg"),
        (["train/10_left.jpeg"], "10_left.png", "train/10_left.jpeg"),
        (["train/10_left.jpeg"], "0010-left", "train/10_left.jpeg"),
        (["train/10_left.jpeg"], "images/10_left.jpeg", "train/10_left.jpeg"),
        (["train/10_left.jpeg"], "C:\\data\\10_left.jpeg", "train/10_left.jpeg"),
        (["train/10_left.jpeg", "train/10_right.jpeg"], "10_lefft.jpeg", "train/10_left.jpeg"),
        (["train/10_left.jpeg"], "10_left.webp", "train/10_left.jpeg"),
        (["98_left.jpeg"], "99_left.jpeg", None),
        (["a.jpg", "a.png"], "A", None),
        (["Miller.jpg"], "Smith.jpg", None),
        (["a.jpg"], "", None),
    ],
)
def test_the_file_that_a_cell_may_mean(files, cell, almost):
    names = FileNames(files)
    assert names.find(cell) == [] or len(names.find(cell)) > 1
    assert names.almost(cell, ()) == almost
    assert almost is None or names.almost(cell, {almost}) is None


def test_eyepacs_names_with_extension_and_one_that_is_almost_there(store):
    place(store, "train/10_left.jpeg", "train/10_right.JPG", "train/11_left.jpeg", "train/12_left.jpeg")
    table(
        store,
        "trainLabels.csv",
        'image;level\n10_left.jpg;"1,0"\ntrain/10_right.jpeg;2;\n11-Left.jpeg;3\n12_left;1\n12_left.jpeg;4\n99_left;1\n',
    )
    result = scan(store, "eyepacs")
    assert [image.notes for image in result.samples] == ["grade=1", "grade=2", "", "grade=1"]
    assert sorted(reasons(result)) == ["bad_row", "missing"]
    details = " ".join(problem.detail for problem in result.problems)
    assert "trainLabels.csv:6: the image stands in line 5 already, which holds" in details
    assert "2 rows name images that are not there, the first in line 4; land them, or correct the names" in details
    assert "line 4 may mean train/11_left.jpeg" in details


def test_eyepacs_gives_a_grade_that_two_files_claim_to_none(store):
    place(store, "train/10_left.jpeg", "train/10_left.png", "train/11_left.jpeg")
    table(store, "trainLabels.csv", "image,level\n10_left,1\n11_left,2\n")
    result = scan(store, "eyepacs")
    assert [image.notes for image in result.samples] == ["", "", "grade=2"]
    assert "1 rows name several images each, the first in line 2" in result.problems[0].detail


def test_deepdrid_matches_paths_and_ids_with_other_extensions(store):
    wide = "ultra-widefield-training/"
    place(store, wide + "Images/1/1_l1.JPG", wide + "Images/2/2_l1.jpeg", wide + "Images/3/3_l1.jpg")
    place(store, wide + "Images/3/x/3_l1.png")
    table(
        store,
        wide + "ultra-widefield-training.csv",
        "sep=;\npatient_id;image_id;image_path;DR_level;position\n"
        "1;1_l1.jpg;ultra-widefield-training\\1\\1_l1.jpg;1;left;\n2;2_l1.jpg;;2;left\n3;3_l1;;3;left\n",
    )
    result = scan(store, "deepdrid")
    images = by_path(result)
    assert {path.rpartition("/")[2]: image.notes for path, image in images.items()} == {
        "1_l1.JPG": "grade=1",
        "2_l1.jpeg": "grade=2",
        "3_l1.jpg": "",
        "3_l1.png": "",
    }
    assert images[wide + "Images/1/1_l1.JPG"].identifier == "1_l1"
    assert "1 rows name several images each, the first in line 5" in result.problems[0].detail


def test_names_that_are_almost_there_stay_private_where_names_name_patients(store):
    place(store, "Doe_Jane.jpg")
    table(store, "t.csv", "image,grade\nDoe-Jane.jpg,1\n")
    options = {"csv": "t.csv", "grade_column": "grade"}
    shown = scan(store, "image_folder", image_folder=options).problems[0].detail
    hidden = scan(store, "image_folder", image_folder={**options, "identify_by_content": True}).problems[0].detail
    assert "line 2 may mean Doe_Jane.jpg" in shown
    assert "Doe" not in hidden
    assert "line 2 almost has a file's name" in hidden
