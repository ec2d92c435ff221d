"""The eye is read from whole tokens."""

import pytest

from uveitis_assets.landing.layouts.eye import eye_from_name


@pytest.mark.parametrize(
    "name",
    ["10_left", "1_l1", "2_l12", "56_L", "scan-OS", "scan og 2", "LeftEye", "imageOS", "12L", "left_eye", "DR.l.001",
     "L", "os3", "patientL", "left_left"],
)  # fmt: skip
def test_left_tokens(name):
    assert eye_from_name(name) == "L"


@pytest.mark.parametrize(
    "name", ["10_right", "10_r20", "20_R", "scan-OD", "RightEye", "RFundus", "12od", "R_large", "right_reg", "œil_od"]
)
def test_right_tokens(name):
    assert eye_from_name(name) == "R"


@pytest.mark.parametrize(
    "name",
    ["10_large", "image_reg", "Uveitis-001", "IDRiD_01", "UWF-mosaic-101", "uwat-1", "GOOD_model", "photos", "pos",
     "rl", "left_right", "OD_OS", "1_l_r", "", "R00123", "a3l9f", "retina", "lens", "world", "Lroy"],
)  # fmt: skip
def test_no_or_contradictory_tokens(name):
    assert eye_from_name(name) is None
