"""Layouts with lesion labels, UWF-700 and FGADR: which label belongs to which image."""

import shutil
from unicodedata import normalize

import pytest

from uveitis_assets_tests.landing.layouts.folders import (
    COMPOSED,
    DECOMPOSED,
    by_path,
    labels_of,
    place,
    reasons,
    scan,
)


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
