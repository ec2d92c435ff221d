"""The registry of layouts: what a family adds is known to configurations, and nothing else is."""

import subprocess
import sys
from dataclasses import replace

import pytest
from pydantic import ValidationError

from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.layouts import (
    find_layout,
    layout_names,
    register_layout,
    scan_landing_folder,
    unregister_layout,
)
from uveitis_assets_tests.landing.landing_samples import land
from uveitis_assets_tests.landing.series_layout import SERIES


@pytest.fixture
def series():
    register_layout(SERIES)
    yield SERIES
    unregister_layout(SERIES.name)


def dataset(layout):
    return DatasetConfiguration(name="lane", layout=layout, folder="ds")


def test_a_layout_is_known_as_soon_as_it_is_registered_and_no_longer_than_that():
    with pytest.raises(ValidationError, match="'eyepacs' or 'image_folder', found 'series'"):
        dataset("series")
    register_layout(SERIES)
    assert dataset("series").dataset_tags == ("lane",)
    assert layout_names()[-1] == "series"
    unregister_layout("series")
    with pytest.raises(ValidationError, match="found 'series'"):
        dataset("series")


def test_two_layouts_of_one_name_are_refused(series):
    register_layout(series)
    with pytest.raises(ValueError, match="found series: another layout has it"):
        register_layout(replace(series, lesion_labels=("mask",)))
    assert find_layout("series") == series


def test_files_that_a_layout_reads_are_not_reported_as_of_an_unknown_type(store, series):
    dicom = replace(series, name="dicom", scan=lambda lane, tree: replace_suffix(series.scan, lane, tree))
    register_layout(dicom)
    try:
        land(store, "a/1.dcm", b"slice")
        land(store, "a/2.slice", b"slice")
        reasons = {layout: scan_landing_folder(dataset(layout), store).problems for layout in ("dicom", "series")}
        assert [problem.reason for problem in reasons["series"]] == ["unsupported_file_type"]
        assert reasons["dicom"] == ()
    finally:
        unregister_layout("dicom")


def replace_suffix(scan, lane, tree):
    """Take the files of DICOM names for slices too."""
    found = scan(lane, tree)
    return replace(
        found,
        samples=tuple(
            replace(sample, files=tuple(file for file in tree.files if file.startswith(sample.relative_path)))
            for sample in found.samples
        ),
    )


def test_the_layouts_of_the_house_load_without_what_decodes_or_tabulates():
    program = (
        "import sys, uveitis_assets.landing.configuration\n"
        "print([name for name in ('numpy', 'cv2', 'PIL', 'polars', 'blake3') if name in sys.modules])\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
