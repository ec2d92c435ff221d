"""File names that look like several images of one person."""

import re

import pytest

from uveitis_assets.landing.layouts.paired_names import paired_names
from uveitis_assets.landing.layouts.patient_rule import patients_in_names


@pytest.mark.parametrize(
    ("names", "kind", "n_persons", "n_images"),
    [
        (["Images/U/10_left.jpg", "Images/H/10_right.jpg", "Images/U/11_left.jpg"], "left/right", 1, 2),
        (["10_LEFT.jpg", "10-Right.png", "10_right2.jpg"], "left/right", 1, 3),
        (["4711_OD.jpg", "4711_OS.jpg", "4712 OD.png", "4712 OG.png"], "OD/OS", 2, 4),
        (["4711-L.jpg", "4711-R.jpg"], "L/R", 1, 2),
        (["0012L.jpg", "0012R.jpg"], "L/R", 1, 2),
        (["4711-L-1.jpg", "4711-L-2.jpg", "4711-R-1.jpg"], "L/R", 1, 3),
        (["4711_1.jpg", "4711_2.jpg", "4712_1.jpg"], "1/2", 1, 2),
        (["x4711 (1).jpg", "x4711 (2).jpg"], "1/2", 1, 2),
        (["ab_1.jpg", "ab_2.jpg", "cd_1.jpg", "cd_2.jpg", "ef_1.jpg", "ef_3.jpg"], "1/2", 3, 6),
    ],
)
def test_pairs_are_counted_and_the_suggested_pattern_finds_them(names, kind, n_persons, n_images):
    (found,) = paired_names(names)
    assert (found.kind, found.n_persons, found.n_images) == (kind, n_persons, n_images)
    patients = patients_in_names(names, found.pattern)
    assert len(set(patients.values())) == n_persons + len(names) - n_images
    assert len(patients) == len(names)


def test_an_eye_alone_belongs_to_the_person_of_its_folder():
    (found,) = paired_names(["a/left.jpg", "a/right.jpg", "b/left.jpg", "b/right.jpg"])
    assert (found.kind, found.n_persons, found.n_images) == ("left/right", 2, 4)


@pytest.mark.parametrize(
    "names",
    [
        [f"Uveitis-{number:03d}.jpg" for number in range(1, 99)],
        [f"Uveitis-{number}.jpg" for number in range(1, 99)],
        [f"{disease}-{number}.jpg" for disease in ("Uveitis", "Healthy") for number in range(1, 4)],
        [f"{number:04d}_{number % 3 + 1}.png" for number in range(40)],
        ["10_left.jpg", "11_right.jpg", "12_left.jpg"],
        ["large.jpg", "orange.jpg", "rod.jpg", "model.jpg"],
        [],
    ],
)
def test_other_names_are_no_pairs(names):
    assert paired_names(names) == []


@pytest.mark.parametrize("kind", [["1_left", "1_right"], ["1_1", "1_2"]])
def test_suggested_patterns_match_no_name_without_the_difference(kind):
    (found,) = paired_names(kind)
    for name in ("pearl", "Doe", "left", "Uveitis"):
        assert re.fullmatch(found.pattern, name) is None
