"""Each layout's images, labels, patients, eyes and official splits."""

import shutil
from unicodedata import normalize

import pytest

from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.layouts import scan_landing_folder


def scan(store, layout, **options):
    return scan_landing_folder(DatasetConfiguration(name="lane", layout=layout, folder="ds", **options), store)


def place(store, *names, data=b"x"):
    for name in names:
        path = store.raw / "ds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def table(store, name, text):
    place(store, name, data=text.encode() if isinstance(text, str) else text)


def by_path(result):
    return {image.relative_path: image for image in result.samples}


def reasons(result):
    return [problem.reason for problem in result.problems]


@pytest.mark.parametrize("layout", ["uwf700", "fgadr", "deepdrid", "eyepacs", "image_folder"])
def test_missing_and_empty_folders_are_problems_not_errors(store, layout):
    assert scan(store, layout).samples == ()
    assert "missing_folder" in reasons(scan(store, layout))
    (store.raw / "ds").mkdir()
    assert "no_images" in reasons(scan(store, layout))


def test_a_dataset_folder_outside_the_raw_root_is_a_problem(store):
    for folder in ("../..", "/etc", ""):
        with pytest.raises(ValueError, match="expected a folder below"):
            DatasetConfiguration(name="lane", layout="image_folder", folder=folder)
    (store.raw / "linked").symlink_to(store.root.parent, target_is_directory=True)
    dataset = DatasetConfiguration(name="lane", layout="image_folder", folder="linked")
    assert reasons(scan_landing_folder(dataset, store)) == ["escapes_root"]


# UWF-700 ------------------------------------------------------------------------------------------------------


def test_uwf700_labels_belong_to_the_image_of_the_same_disease_folder(store):
    place(
        store, "Images/Uveitis/001_left.jpg", "Images/DR/001_left.jpg", "Images/Normal/001_left.jpg", "Images/DR/r.txt"
    )
    place(store, "Labels/Uveitis/001_left.txt", "Labels/DR/001_left.txt")
    result = scan(store, "uwf700")
    images = by_path(result)
    assert list(images) == ["Images/DR/001_left.jpg", "Images/Normal/001_left.jpg", "Images/Uveitis/001_left.jpg"]
    assert [image.label_paths for image in result.samples] == [
        ("Labels/DR/001_left.txt",),
        (),
        ("Labels/Uveitis/001_left.txt",),
    ]
    assert [image.label_format for image in result.samples] == ["obb", "none", "obb"]
    assert [image.notes for image in result.samples] == ["disease=DR", "disease=Normal", "disease=Uveitis"]
    assert {(image.dataset, image.patient, image.eye) for image in result.samples} == {("lane", "001_left", "L")}
    assert result.problems == ()


def test_uwf700_an_empty_label_file_is_a_label_and_an_orphan_is_reported(store):
    place(store, "Images/Uveitis/a.jpg")
    place(store, "Labels/Uveitis/a.txt", data=b"")
    place(store, "Labels/Uveitis/lost.txt", "Labels/DR/a.txt")
    result = scan(store, "uwf700")
    assert result.samples[0].label_format == "obb"
    assert reasons(result) == ["label_without_image"]
    assert "2 label files" in result.problems[0].detail


def test_uwf700_names_match_across_unicode_forms(store):
    place(store, normalize("NFD", "Images/Uvéite/é.JPG"))
    place(store, normalize("NFC", "Labels/Uvéite/é.TXT"))
    assert scan(store, "uwf700").samples[0].label_format == "obb"


COMPOSED, DECOMPOSED = (normalize(form, "\u00e9") for form in ("NFC", "NFD"))


def labels_of(result):
    return {image.relative_path: image.label_paths for image in result.samples}


def test_uwf700_images_that_differ_only_in_unicode_form_keep_their_own_labels(store):
    for name in (COMPOSED, DECOMPOSED):
        place(store, f"Images/Uveitis/{name}.png", f"Labels/Uveitis/{name}.txt")
    result = scan(store, "uwf700")
    assert labels_of(result) == {
        f"Images/Uveitis/{name}.png": (f"Labels/Uveitis/{name}.txt",) for name in (COMPOSED, DECOMPOSED)
    }
    assert result.problems == ()


def test_uwf700_a_label_stays_with_the_image_of_its_exact_name_and_the_look_alike_is_reported(store):
    place(store, f"Images/Uveitis/{COMPOSED}.png", f"Images/Uveitis/{DECOMPOSED}.png", f"Labels/Uveitis/{COMPOSED}.txt")
    result = scan(store, "uwf700")
    assert labels_of(result) == {
        f"Images/Uveitis/{COMPOSED}.png": (f"Labels/Uveitis/{COMPOSED}.txt",),
        f"Images/Uveitis/{DECOMPOSED}.png": (),
    }
    (problem,) = result.problems
    assert (problem.reason, problem.path) == ("ambiguous_label", f"Images/Uveitis/{DECOMPOSED}.png")


@pytest.mark.parametrize(
    ("images", "labels"),
    [(("a.jpg", "a.png"), ("a.txt",)), (("a.jpg",), ("a.TXT", "a.txt")), (("a.jpg", "a.png"), ("a.TXT", "a.txt"))],
)
def test_uwf700_labels_that_could_be_of_several_images_are_given_to_none(store, images, labels):
    place(store, *(f"Images/Uveitis/{name}" for name in images), *(f"Labels/Uveitis/{name}" for name in labels))
    result = scan(store, "uwf700")
    assert [(image.label_format, image.label_paths) for image in result.samples] == [("none", ())] * len(images)
    (problem,) = result.problems
    assert (problem.reason, problem.path) == ("ambiguous_label", f"Labels/Uveitis/{labels[0]}")
    assert all(name in problem.detail for name in (*images, *labels))


def test_uwf700_all_real_label_files_find_their_image(store, real_data):
    shutil.copytree(real_data / "uwf700_labels" / "Labels", store.raw / "ds" / "Labels")
    stems = sorted(path.stem for path in (real_data / "uwf700_labels").rglob("*.txt"))
    place(store, *(f"Images/Uveitis/{stem}.jpg" for stem in stems), "Images/Uveitis/Uveitis-095.jpg")
    result = scan(store, "uwf700")
    assert len(stems) == 98
    assert sum(image.label_format == "obb" for image in result.samples) == 98
    assert result.problems == ()


# FGADR --------------------------------------------------------------------------------------------------------


def test_fgadr_masks_have_the_image_name_or_stem(store):
    place(store, "Original_Images/0001_1.png", "Original_Images/0002_1.jpg", "Original_Images/0003_1.png")
    place(store, "HardExudate_Masks/0001_1.png", "SoftExudate_Masks/0001_1.png", "HardExudate_Masks/0002_1.PNG")
    place(store, "HardExudate_Masks/0009_1.png")
    result = scan(store, "fgadr")
    assert [(image.label_format, image.notes, len(image.label_paths)) for image in result.samples] == [
        ("mask", "mask_count=2", 2),
        ("mask", "mask_count=1", 1),
        ("none", "mask_count=0", 0),
    ]
    assert result.samples[1].label_paths == ("HardExudate_Masks/0002_1.PNG",)
    assert reasons(result) == ["label_without_image"]


def test_fgadr_a_mask_of_an_image_s_exact_name_is_not_given_to_another_photograph_of_the_stem(store):
    place(store, "Original_Images/p.png", "Original_Images/p.jpg", "Hemohedge_Masks/p.png")
    result = scan(store, "fgadr")
    assert labels_of(result) == {"Original_Images/p.jpg": (), "Original_Images/p.png": ("Hemohedge_Masks/p.png",)}
    assert result.problems == ()


def test_fgadr_masks_of_names_that_differ_only_in_unicode_form_stay_apart(store):
    for name in (COMPOSED, DECOMPOSED):
        place(store, f"Original_Images/{name}.png", f"HardExudate_Masks/{name}.png")
    place(store, f"SoftExudate_Masks/{COMPOSED}.png")
    result = scan(store, "fgadr")
    assert labels_of(result) == {
        f"Original_Images/{COMPOSED}.png": (f"HardExudate_Masks/{COMPOSED}.png", f"SoftExudate_Masks/{COMPOSED}.png"),
        f"Original_Images/{DECOMPOSED}.png": (f"HardExudate_Masks/{DECOMPOSED}.png",),
    }


def test_fgadr_images_with_a_mask_that_could_be_of_either_are_unlabelled_altogether(store):
    """With the other mask alone they would be listed as free of hard exudates."""
    place(store, "Original_Images/p.png", "Original_Images/p.jpg", "Original_Images/q.png")
    place(store, "HardExudate_Masks/p.tif", "SoftExudate_Masks/p.png", "HardExudate_Masks/q.jpg")
    result = scan(store, "fgadr")
    assert [(image.relative_path, image.label_format, image.notes) for image in result.samples] == [
        ("Original_Images/p.jpg", "none", "mask_count=0"),
        ("Original_Images/p.png", "none", "mask_count=0"),
        ("Original_Images/q.png", "mask", "mask_count=1"),
    ]
    (problem,) = result.problems
    assert (problem.reason, problem.path) == ("ambiguous_label", "HardExudate_Masks/p.tif")


def test_fgadr_real_layout(store, real_data):
    shutil.copytree(real_data / "idrid_fgadr_layout", store.raw / "ds")
    result = scan(store, "fgadr")
    assert len(result.samples) == 14
    assert result.problems == ()
    soft = {path.stem for path in (real_data / "idrid_fgadr_layout" / "SoftExudate_Masks").iterdir()}
    for image in result.samples:
        assert any("SoftExudate" in path for path in image.label_paths) == (image.patient in soft)


# DeepDRiD -----------------------------------------------------------------------------------------------------

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


# EyePACS ------------------------------------------------------------------------------------------------------


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


# Any folder ---------------------------------------------------------------------------------------------------


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
    # Two paths leave the folder, one image is named twice, one eye is unknown, the bare name 2.jpg is ambiguous.
    assert sorted(reasons(result)) == ["bad_row", "bad_row", "bad_row", "escapes_root", "escapes_root"]
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


def test_image_types_that_are_not_read_are_reported(store):
    place(store, "a.jpg", "b.dcm", "c/d.GIF", "notes.txt")
    result = scan(store, "image_folder")
    assert [image.relative_path for image in result.samples] == ["a.jpg"]
    assert reasons(result) == ["unsupported_file_type"]
    assert "2 files of the types .dcm, .gif" in result.problems[0].detail


def test_lanes_of_one_layout_have_tags_of_their_own(store):
    place(store, "Images/DR/a.jpg")
    for name in ("uwf700", "uwf_clinic"):
        dataset = DatasetConfiguration(name=name, layout="uwf700", folder="ds")
        assert scan_landing_folder(dataset, store).samples[0].dataset == name
