"""What all layouts do alike: folders that are missing, outside, or hold what is not read."""

import pytest

from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.layouts import scan_landing_folder
from uveitis_assets_tests.landing.layouts.folders import (
    place,
    reasons,
    scan,
)


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
