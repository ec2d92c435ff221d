"""A table of which no row is of an image stops the registration of its lane, and says what was found and expected."""

import pytest

from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.layouts.unmatched_tables import unmatched_table_problem
from uveitis_assets.landing.registration import RegistrationRefusedError, UnmatchedTableError, register
from uveitis_assets_tests.landing.layouts.folders import place, scan, table


def unmatched(result):
    return [problem.detail for problem in result.problems if problem.reason == "unmatched_table"]


@pytest.mark.parametrize(
    ("layout", "options", "files", "csv", "content", "found", "expected"),
    [
        (
            "image_folder",
            {"image_folder": {"csv": "t.csv", "grade_column": "grade"}},
            ["a/IMG_001.jpg", "a/IMG_002.jpg"],
            "t.csv",
            "image,grade\nIMG_901.jpg,1\nIMG_902.jpg,2\n",
            "found in image 'IMG_901.jpg' (line 2), 'IMG_902.jpg' (line 3)",
            "expected such as 'a/IMG_001.jpg', 'a/IMG_002.jpg'; correct",
        ),
        (
            "uwf700",
            {"patients": {"csv": "people.csv", "path_column": "file"}},
            ["Images/Uveitis/Uveitis-001.jpg"],
            "people.csv",
            "sep=;\nfile;patient\nUveitis-901;Doe\nDoe, Jane;Doe\n",
            "found in file 'Uveitis-901' (line 3), 'aaa, aaaa' (line 4)",
            "expected such as 'Images/Uveitis/Uveitis-001.jpg' (a and 0 stand for letters and digits that are not",
        ),
        (
            "eyepacs",
            {},
            ["train/10_left.jpeg"],
            "trainLabels.csv",
            "image,level\n77_left,0\n78_middle_2,0\n",
            "found in image '77_left' (line 2), '00_aaaaaa_0' (line 3)",
            "expected such as 'train/10_left.jpeg' (a and 0",
        ),
        (
            "deepdrid",
            {},
            ["regular-fundus-training/Images/1/1_l1.jpg"],
            "regular-fundus-training/regular-fundus-training.csv",
            "image_id,patient_id,image_path\n901_l1,901,/regular/901/901_l1.jpg\n",
            "found in image_path '/regular/901/901_l1.jpg' (line 2)",
            "expected such as 'regular-fundus-training/Images/1/1_l1.jpg'; correct",
        ),
    ],
    ids=["image_folder", "patients", "eyepacs", "deepdrid"],
)
def test_a_table_of_other_images_is_named_with_the_first_names_found_and_expected(
    store, layout, options, files, csv, content, found, expected
):
    place(store, *files)
    table(store, csv, content)
    (detail,) = unmatched(scan(store, layout, **options))
    assert detail.startswith(f"{csv}: none of its ")
    assert found in detail
    assert expected in detail
    assert "Doe" not in detail, "a column that is not the images' names may hold a patient's"


def test_names_stay_private_where_they_name_patients(store):
    place(store, "Doe_Jane.jpg")
    table(store, "t.csv", "image,patient\nRoe_Rick.jpg,7\n")
    options = {"csv": "t.csv", "patient_column": "patient", "identify_by_content": True}
    (detail,) = unmatched(scan(store, "image_folder", image_folder=options))
    assert "found in image 'aaa_aaaa.aaa' (line 2); expected such as 'aaa_aaaa.aaa' (a and 0 stand" in detail
    assert not any(name in detail for name in ("Doe", "Jane", "Roe", "Rick"))


def test_one_row_of_an_image_is_enough_and_without_images_or_rows_nothing_is_found(store):
    options = {"image_folder": {"csv": "t.csv", "patient_column": "patient"}}
    table(store, "t.csv", "image,patient\nb.jpg,P\nc.jpg,P\n")
    assert unmatched(scan(store, "image_folder", **options)) == []
    place(store, "a.jpg", "b.jpg")
    assert unmatched(scan(store, "image_folder", **options)) == []
    table(store, "t.csv", "image,patient\n")
    assert unmatched(scan(store, "image_folder", **options)) == []


def test_nothing_is_registered_until_a_row_is_of_an_image(store):
    dataset = DatasetConfiguration(name="lane", layout="image_folder", folder="ds", patients={"csv": "t.csv"})
    place(store, "left/a_1.jpg", "right/a_1.jpg", "b_1.jpg")
    table(store, "t.csv", "image,patient\na_1,P1\nB-1,P2\n")
    with pytest.raises(UnmatchedTableError, match=r"lane: no row of t\.csv is of an image; nothing was") as refused:
        register(store, dataset)
    lines = str(refused.value).splitlines()[1:]
    assert lines[0].startswith("  t.csv: none of its 2 rows is of one of the 3 images")
    assert any("line 3 may mean b_1.jpg" in line for line in lines)
    assert any("1 rows name several images each, the first in line 2" in line for line in lines)
    assert isinstance(refused.value, RegistrationRefusedError)
    assert not store.ledger_file("lane").exists()
    table(store, "t.csv", "image,patient\na_1,P1\nb_1,P2\n")
    assert len(register(store, dataset).new) == 3


def test_numbers_are_shown_as_numbers_only_though_files_are_numbered() -> None:
    problem = unmatched_table_problem("people.csv", "image", [(2, "48213")], ["00001.jpg", "00002.jpg"])
    assert "48213" not in problem.detail
    assert "'00000' (line 2)" in problem.detail
