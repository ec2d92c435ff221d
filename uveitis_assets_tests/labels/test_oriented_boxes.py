"""Oriented-box label files: the real ones, harmless variants and those that are set aside."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.labels.lesions import Lesions
from uveitis_assets.labels.oriented_boxes import parse_oriented_boxes
from uveitis_assets.landing.quarantine import QuarantineError

SPACE = load_class_map().label_space("obb")
SIZE = (1000, 500)
LINE = "4 0.1 0.2 0.3 0.2 0.3 0.4 0.1 0.4"


def parse(data: str | bytes) -> Lesions:
    return parse_oriented_boxes(data.encode() if isinstance(data, str) else data, "a.txt", SPACE, SIZE)


def test_the_published_files_hold_745_boxes_of_the_published_counts(real_data: Path) -> None:
    files = sorted((real_data / "uwf700_labels").rglob("*.txt"))
    counts: Counter[int] = Counter()
    for path in files:
        lesions = parse_oriented_boxes(path.read_bytes(), path.name, SPACE, (3900, 3072))
        counts.update(lesions.category_ids.tolist())
        table = np.loadtxt(path, ndmin=2)
        np.testing.assert_array_equal(lesions.category_ids, table[:, 0].astype(int))
        xs, ys = table[:, 1::2] * 3900, table[:, 2::2] * 3072
        expected = np.stack([xs.min(1), ys.min(1), xs.max(1), ys.max(1)], axis=1)
        np.testing.assert_allclose(lesions.boxes, expected, atol=1e-9)
        assert lesions.corners is not None
        np.testing.assert_allclose(lesions.corners, np.stack([xs, ys], axis=2), atol=1e-9)
    assert len(files) == 98
    assert counts == {
        4: 410, 7: 81, 5: 64, 2: 63, 1: 43, 16: 15, 9: 14, 18: 10, 10: 8, 3: 7, 15: 6, 6: 5, 12: 5, 8: 3, 14: 3, 17: 3,
        11: 2, 13: 1, 19: 1, 20: 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        LINE,
        LINE + "\r\n",
        "\ufeff" + LINE + "\n",
        "\n\n  " + LINE.replace(" ", "\t  ") + "  \n\n",
        LINE.replace("0.1", "1e-1").replace("0.2", ".2"),
        LINE.replace("0.1", "+0.10000000"),
        LINE + "\r",
    ],
)
def test_line_ends_marks_and_spacing_do_not_matter(data: str) -> None:
    lesions = parse(data)
    assert lesions.category_ids.tolist() == [4]
    np.testing.assert_allclose(lesions.boxes, [[100, 100, 300, 200]], rtol=0, atol=1e-9)


@pytest.mark.parametrize("data", ["", "\n", "\ufeff", " \r\n\t\n"])
def test_an_empty_file_is_an_image_without_lesions(data: str) -> None:
    assert len(parse(data)) == 0


@pytest.mark.parametrize(
    ("data", "place", "found"),
    [
        (LINE + " 0.5", 1, "found 10 values, expected 9"),
        (LINE + "\n4 0.1 0.2", 2, "found 3 values, expected 9"),
        (LINE.replace(" ", ","), 1, "found 1 values, expected 9"),
        (LINE + "\n\n" + LINE.replace("0.3", "nan"), 3, "found nan, expected a finite number"),
        (LINE.replace("0.3", "-Infinity"), 1, "found -Infinity, expected a finite number"),
        (LINE.replace("0.3", "1e999"), 1, "found the coordinate 1e999, expected a share"),
        (LINE.replace("0.3", "1.001"), 1, "found the coordinate 1.001, expected a share of the image within 0..1"),
        (LINE.replace("0.1", "-0.01"), 1, "found the coordinate -0.01"),
        (LINE.replace("0.3", "300"), 1, "found the coordinate 300"),
        (LINE.replace("0.3", "0,3"), 1, "found '0,3', expected a number"),
        (LINE.replace("0.3", "0_3"), 1, "found '0_3', expected a number"),
        (LINE.replace("0.3", "٠٫٣"), 1, "expected a number"),
        ("21" + LINE[1:], 1, "found class '21', expected one of 1, 2"),
        ("0" + LINE[1:], 1, "found class '0'"),
        ("4.0" + LINE[1:], 1, "found class '4.0'"),
        ("vascularite" + LINE[1:], 1, "found class 'vascularite'"),
        ("4 0.1 0.2 0.1 0.2 0.1 0.2 0.1 0.2", 1, "found a box without area"),
        ("4 0.1 0.1 0.2 0.2 0.3 0.3 0.4 0.4", 1, "found a box without area"),
        (LINE.encode() + b"\n" + LINE.encode("utf-16"), 2, "expected UTF-8 text"),
        (LINE.encode() + b"\n\xe9\n", 2, "found byte 0xe9, expected UTF-8 text"),
        (b"\x00" * 40, 1, "found 1 values"),
    ],
)
def test_one_bad_line_sets_the_file_aside_with_file_line_found_and_expected(
    data: str | bytes, place: int, found: str
) -> None:
    with pytest.raises(QuarantineError) as caught:
        parse(data)
    assert caught.value.reason == "bad_label"
    assert caught.value.detail.startswith(f"a.txt:{place}: ")
    assert found in caught.value.detail


def test_points_on_the_edge_and_one_last_digit_beyond_are_set_to_the_edge() -> None:
    lesions = parse("1 -0.000001 0 1.000001 0 1.0 1.0 0 1")
    assert lesions.boxes.tolist() == [[0, 0, 1000, 500]]
    with pytest.raises(QuarantineError):
        parse("1 -0.000002 0 1 0 1 1 0 1")


REPETITIONS = {
    "the same line": LINE,
    "other spacing and digits": "4  0.10 .2\t0.300 0.20 3e-1 0.4 0.1 0.400",
    "another first point": "4 0.3 0.2 0.3 0.4 0.1 0.4 0.1 0.2",
    "the other way round": "4 0.1 0.2 0.1 0.4 0.3 0.4 0.3 0.2",
    "one last digit": "4 0.1 0.2 0.3 0.2 0.3 0.4 0.1 0.4000001",
}


@pytest.mark.parametrize("name", REPETITIONS)
def test_a_repeated_box_is_one_lesion_and_a_finding(name: str) -> None:
    lesions = parse(LINE + "\n5" + LINE[1:] + "\n\n" + REPETITIONS[name])
    assert lesions.category_ids.tolist() == [4, 5]
    (finding,) = lesions.findings
    assert finding.kind == "duplicate_lesion"
    assert finding.detail.startswith("a.txt: line 4 repeats line 1;")


def test_boxes_that_differ_or_are_of_another_class_are_lesions_of_their_own() -> None:
    lesions = parse(LINE + "\n5" + LINE[1:] + "\n4 0.1 0.2 0.3 0.2 0.3 0.401 0.1 0.401")
    assert lesions.category_ids.tolist() == [4, 5, 4]
    assert not lesions.findings


@pytest.mark.parametrize(
    "points",
    [
        "0.4 0.6 0.6 0.6 0.6 0.60000002 0.4 0.60000002",
        "0.1 0.1 0.1004 0.1 0.1004 0.9 0.1 0.9",
        "0.1 0.1 0.9 0.9 0.90001 0.9 0.10001 0.1",
        "0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5",
        "0.2 0.2 0.4 0.4 0.2 0.2 0.4 0.4",
        "1.000001 0.2 1.000001 0.3 1 0.3 1 0.2",
    ],
)
def test_a_box_thinner_than_half_a_pixel_is_without_area(points: str) -> None:
    with pytest.raises(QuarantineError, match=r"a\.txt:2: found a box without area .* expected at least 0\.5 px"):
        parse(LINE + "\n4 " + points)


def test_a_box_of_one_pixel_is_a_lesion() -> None:
    lesions = parse("4 0.1 0.1 0.101 0.1 0.101 0.102 0.1 0.102")
    np.testing.assert_allclose(lesions.boxes, [[100, 50, 101, 51]])


def test_corners_outside_by_at_most_the_tolerance_are_set_to_the_edge_and_named() -> None:
    data = "4 -0.004 0.2 0.3 0.2 0.3 0.4 -0.004 0.4\n5 0.9 0.9 1.005 0.9 1.005 1.002 0.9 1.002\n" + LINE
    lesions = parse_oriented_boxes(data.encode(), "a.txt", SPACE, SIZE, edge_tolerance=0.005)
    np.testing.assert_allclose(lesions.boxes[:2], [[0, 100, 300, 200], [900, 450, 1000, 500]])
    (finding,) = lesions.findings
    assert finding.kind == "corner_outside"
    assert "a.txt: line 1, line 2: corners up to 0.005 of the side outside" in finding.detail
    with pytest.raises(QuarantineError, match=r"a\.txt:1: found the coordinate -0\.0051, expected a share"):
        parse_oriented_boxes(data.replace("-0.004", "-0.0051").encode(), "a.txt", SPACE, SIZE, edge_tolerance=0.005)


def test_points_out_of_order_give_the_hull_as_outline_and_keep_their_corners() -> None:
    lesions = parse("1 0.1 0.2 0.3 0.4 0.3 0.2 0.1 0.4")
    assert lesions.outlines[0].is_valid
    assert lesions.outlines[0].area == pytest.approx(200 * 100)
    assert lesions.corners is not None
    np.testing.assert_allclose(lesions.corners[0], [[100, 100], [300, 200], [300, 100], [100, 200]])
