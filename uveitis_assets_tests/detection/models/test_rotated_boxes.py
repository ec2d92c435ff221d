"""Rotated boxes, held against shapely and torchvision."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import nms

from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.models import rotated_boxes
from uveitis_assets.detection.models.rotated_boxes import (
    canonical_rectangles,
    corners_from_rectangles,
    ordered_corners,
    rectangles_from_corners,
    rotated_iou,
    rotated_nms,
    surrounding_boxes,
)
from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.labels.oriented_boxes import parse_oriented_boxes

Floats = NDArray[np.float64]


def rectangle_rows(sides: st.SearchStrategy[float] | None = None) -> st.SearchStrategy[tuple[float, ...]]:
    centre = st.floats(-60, 60)
    side = st.floats(0.5, 90) if sides is None else sides
    angle = st.floats(-7, 7) | st.sampled_from([0.0, math.pi / 4, math.pi / 2, -math.pi / 2, math.pi])
    return st.tuples(centre, centre, side, side, angle)


def rectangles(least: int = 1, most: int = 6) -> st.SearchStrategy[Tensor]:
    return st.lists(rectangle_rows(), min_size=least, max_size=most).map(
        lambda rows: torch.tensor(rows, dtype=torch.float64)
    )


# Whole pixels and repeated points: collinear corners, triangles, crossing orders and boxes without area are common.
coarse_corners = arrays(np.float64, (3, 4, 2), elements=st.integers(0, 6).map(float))
loose_corners = arrays(np.float64, (3, 4, 2), elements=st.floats(-50, 50, width=32))


def random_rectangles(count: int, seed: int, span: float = 200.0) -> Tensor:
    values = np.random.default_rng(seed).uniform((0, 0, 5, 5, -4), (span, span, 80, 40, 4), (count, 5))
    return torch.from_numpy(values)


def shapely_rectangle(row: Floats) -> shapely.Geometry:
    cx, cy, w, h, angle = row
    outline = shapely.box(-w / 2, -h / 2, w / 2, h / 2)
    turned = shapely.affinity.rotate(outline, angle, origin=(0, 0), use_radians=True)
    return shapely.affinity.translate(turned, cx, cy)


def shapely_iou(first: shapely.Geometry, second: shapely.Geometry) -> float:
    union = first.union(second).area
    return float(first.intersection(second).area / union) if union > 0 else 0.0


def hull_ious(a: Floats, b: Floats) -> Floats:
    hulls_a, hulls_b = ([shapely.MultiPoint(points).convex_hull for points in corners] for corners in (a, b))
    return np.array([[shapely_iou(first, second) for second in hulls_b] for first in hulls_a])


@settings(max_examples=60)
@given(rectangles(), rectangles())
def test_the_overlap_of_rotated_rectangles_is_shapelys(a: Tensor, b: Tensor) -> None:
    expected = [
        [shapely_iou(shapely_rectangle(first), shapely_rectangle(second)) for second in b.numpy()]
        for first in a.numpy()
    ]
    found = rotated_iou(corners_from_rectangles(a), corners_from_rectangles(b))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@settings(max_examples=120)
@given(coarse_corners | loose_corners, coarse_corners | loose_corners)
def test_any_four_points_overlap_as_their_hulls_do(a: Floats, b: Floats) -> None:
    expected = hull_ious(a, b)
    area = np.array([shapely.MultiPoint(points).convex_hull.area for points in a])
    other = np.array([shapely.MultiPoint(points).convex_hull.area for points in b])
    # Between slivers the ratio is one of rounding errors, in shapely too.
    sound = (area[:, None] > 1e-3) & (other > 1e-3)
    found = rotated_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(found[sound], expected[sound], rtol=0, atol=1e-6)
    assert ((found >= 0) & (found <= 1)).all()


@settings(max_examples=50)
@given(rectangles(1, 4), rectangles(1, 4), st.floats(-7, 7), st.floats(-500, 500), st.floats(-500, 500))
def test_overlap_is_symmetric_and_does_not_change_when_both_are_moved_and_turned(
    a: Tensor, b: Tensor, turn: float, shift_x: float, shift_y: float
) -> None:
    corners_a, corners_b = corners_from_rectangles(a), corners_from_rectangles(b)
    overlaps = rotated_iou(corners_a, corners_b)
    torch.testing.assert_close(rotated_iou(corners_b, corners_a).T, overlaps, rtol=0, atol=1e-9)
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]], dtype=torch.float64)
    shift = torch.tensor([shift_x, shift_y], dtype=torch.float64)
    moved = rotated_iou(corners_a @ rotation.T + shift, corners_b @ rotation.T + shift)
    torch.testing.assert_close(moved, overlaps, rtol=0, atol=1e-9)


@settings(max_examples=50)
@given(rectangles(1, 4), st.permutations(range(4)))
def test_a_box_overlaps_itself_fully_whatever_the_order_of_its_corners(a: Tensor, order: list[int]) -> None:
    corners = corners_from_rectangles(a)
    overlaps = rotated_iou(corners, corners[:, order]).diagonal()
    torch.testing.assert_close(overlaps, torch.ones_like(overlaps), rtol=0, atol=1e-9)


@settings(max_examples=50)
@given(rectangle_rows(), st.floats(1e-15, 1e-6), st.floats(0, 6.3))
def test_almost_identical_boxes_overlap_almost_fully(row: tuple[float, ...], amount: float, direction: float) -> None:
    corners = corners_from_rectangles(torch.tensor([row], dtype=torch.float64))
    nudge = torch.tensor([math.cos(direction), math.sin(direction)], dtype=torch.float64) * amount
    turned = torch.tensor([[*row[:4], row[4] + amount]], dtype=torch.float64)
    for other in (corners + nudge, corners_from_rectangles(turned)):
        assert rotated_iou(corners, other).item() == pytest.approx(1, abs=2e-4)


def test_overlap_is_zero_for_boxes_that_are_apart_touch_have_no_area_or_are_nan() -> None:
    square = torch.tensor([[0.0, 0], [10, 0], [10, 10], [0, 10]])
    diamond_beside = torch.tensor([[14.0, 10], [20, 4], [26, 10], [20, 16]])
    others = torch.stack(
        [
            square + 30,
            square + torch.tensor([10.0, 0]),
            # Their axis-aligned boxes overlap, they themselves do not.
            torch.tensor([[9.0, 16], [16, 9], [18, 11], [11, 18]]),
            diamond_beside,
            torch.tensor([[2.0, 2], [8, 8], [8, 8], [2, 2]]),
            torch.full((4, 2), 5.0),
            torch.full((4, 2), torch.nan),
        ]
    )
    assert rotated_iou(square[None], others).tolist() == [[0.0] * 7]
    assert rotated_iou(others[4:], others[4:]).tolist() == [[0.0] * 3] * 3


def test_overlaps_of_nothing_have_the_right_shape() -> None:
    some = corners_from_rectangles(random_rectangles(3, 0))
    assert rotated_iou(some[:0], some).shape == (0, 3)
    assert rotated_iou(some, some[:0]).shape == (3, 0)
    assert rectangles_from_corners(some[:0]).shape == (0, 5)


def test_corners_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected shape \(N, 4, 2\), found \(3, 8\)"):
        rotated_iou(torch.zeros(3, 8), torch.zeros(3, 4, 2))


def test_pairs_beyond_one_portion_are_the_same_as_one_by_one() -> None:
    a, b = (corners_from_rectangles(random_rectangles(count, seed, 100)) for count, seed in ((300, 1), (200, 2)))
    together = rotated_iou(a, b)
    assert int((together > 0).sum()) > 16_384
    torch.testing.assert_close(torch.cat([rotated_iou(row[None], b) for row in a]), together, rtol=0, atol=1e-14)


@settings(max_examples=80)
@given(rectangles(), st.permutations(range(4)))
def test_a_rectangle_survives_the_way_to_corners_and_back(a: Tensor, order: list[int]) -> None:
    rows = rectangles_from_corners(corners_from_rectangles(a)[:, order])
    cx, cy, w, h, angle = rows.unbind(1)
    assert (w >= h).all()
    assert ((angle >= -math.pi / 2) & (angle < math.pi / 2)).all()
    for row, expected in zip(rows.numpy(), a.numpy(), strict=True):
        outline, original = shapely_rectangle(row), shapely_rectangle(expected)
        assert shapely.hausdorff_distance(outline, original) <= 1e-6
    np.testing.assert_allclose(torch.stack([cx, cy], 1), a[:, :2], atol=1e-9)
    np.testing.assert_allclose(w, a[:, 2:4].amax(1), rtol=1e-9)
    np.testing.assert_allclose(h, a[:, 2:4].amin(1), rtol=1e-9)


@pytest.mark.parametrize(
    ("given_row", "canonical"),
    [
        ((1, 2, 10, 4, 0), (1, 2, 10, 4, 0)),
        ((1, 2, 4, 10, 0), (1, 2, 10, 4, -90)),
        ((1, 2, 10, 4, 90), (1, 2, 10, 4, -90)),
        ((1, 2, 10, 4, 100), (1, 2, 10, 4, -80)),
        ((1, 2, 4, 10, 30), (1, 2, 10, 4, -60)),
        ((1, 2, 10, 4, 350), (1, 2, 10, 4, -10)),
        ((1, 2, 5, 5, 60), (1, 2, 5, 5, -30)),
        ((1, 2, 5, 5, 45), (1, 2, 5, 5, -45)),
    ],
)
def test_the_canonical_rectangle_is_led_by_its_longer_side(
    given_row: tuple[float, ...], canonical: tuple[float, ...]
) -> None:
    row = torch.tensor([given_row], dtype=torch.float64)
    row[:, 4] *= math.pi / 180
    found = canonical_rectangles(row)[0]
    found[4] *= 180 / math.pi
    np.testing.assert_allclose(found, canonical, atol=1e-9)


def test_positive_angles_turn_clockwise_on_screen() -> None:
    corners = corners_from_rectangles(torch.tensor([[0.0, 0, 20, 2, math.radians(30)]]))[0]
    right_end = corners[1:3].mean(0)
    np.testing.assert_allclose(right_end, [10 * math.sqrt(3) / 2, 5], atol=1e-6)


@settings(max_examples=80)
@given(coarse_corners | loose_corners, st.permutations(range(4)))
def test_the_rectangle_around_four_points_is_the_smallest_and_contains_them(points: Floats, order: list[int]) -> None:
    rows = rectangles_from_corners(torch.from_numpy(points[:, order]))
    for corners, row in zip(points, rows.numpy(), strict=True):
        hull = shapely.MultiPoint(corners).convex_hull
        around = shapely_rectangle(row)
        assert row[2] * row[3] <= smallest_rectangle_area(corners) + 1e-6
        assert around.buffer(1e-6).contains(hull)


def smallest_rectangle_area(corners: Floats) -> float:
    """The smallest bounding rectangle over a sweep of directions; an upper bound close to the truth."""
    angles = np.linspace(0, math.pi / 2, 721)
    along = corners @ np.stack([np.cos(angles), np.sin(angles)])
    across = corners @ np.stack([-np.sin(angles), np.cos(angles)])
    return float((np.ptp(along, axis=0) * np.ptp(across, axis=0)).min())


def test_the_published_labels_are_hand_drawn_quadrilaterals_and_their_rectangles_are_shapelys(real_data: Path) -> None:
    files = sorted((real_data / "uwf700_labels").rglob("*.txt"))
    space = load_class_map().label_space("obb")
    every = [parse_oriented_boxes(path.read_bytes(), path.name, space, (3900, 3072)).corners for path in files]
    corners = np.concatenate([part for part in every if part is not None])
    outlines = shapely.polygons(corners)
    expected = shapely.area(shapely.minimum_rotated_rectangle(outlines))
    found = rectangles_from_corners(torch.from_numpy(corners))
    np.testing.assert_allclose(found[:, 2] * found[:, 3], expected, rtol=1e-9)
    filled = shapely.area(outlines) / expected
    assert len(corners) == 745
    assert filled.max() < 0.995
    assert np.median(filled) == pytest.approx(0.80, abs=0.01)
    np.testing.assert_allclose(shapely.area(shapely.convex_hull(outlines)), shapely.area(outlines), rtol=1e-9)
    clockwise = ordered_corners(torch.from_numpy(corners))
    np.testing.assert_allclose(shapely.area(shapely.polygons(clockwise.numpy())), shapely.area(outlines), rtol=1e-9)


def naive_nms(corners: Floats, scores: Floats, labels: NDArray[np.int64], threshold: float) -> list[int]:
    overlaps = hull_ious(corners, corners)
    kept: list[int] = []
    for row in np.argsort(-scores, kind="stable"):
        if all(labels[row] != labels[other] or overlaps[row, other] <= threshold for other in kept):
            kept.append(int(row))
    return kept


@pytest.mark.parametrize(("seed", "threshold"), list(itertools.product(range(3), (0.0, 0.3, 0.5, 0.8))))
def test_suppression_is_the_greedy_one_within_each_class(seed: int, threshold: float) -> None:
    generator = np.random.default_rng(seed)
    corners = corners_from_rectangles(random_rectangles(90, seed))
    # Some boxes twice, almost.
    corners[60:] = corners[:30] + torch.linspace(0, 3, 30, dtype=torch.float64)[:, None, None]
    # Few levels of score: ties are common.
    scores = generator.integers(0, 20, 90) / 20
    labels = generator.integers(1, 4, 90)
    kept = rotated_nms(corners, torch.from_numpy(scores), torch.from_numpy(labels), threshold)
    expected = naive_nms(corners.numpy(), scores, labels, threshold)
    assert kept.tolist() == expected
    assert 0 < len(expected) < 90


def test_suppression_in_portions_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    corners = corners_from_rectangles(random_rectangles(400, 7))
    scores = torch.linspace(1, 0, 400)
    labels = torch.arange(400) % 3
    at_once = rotated_nms(corners, scores, labels, 0.2)
    monkeypatch.setattr(rotated_boxes, "COMPARISONS_AT_ONCE", 100)
    monkeypatch.setattr(rotated_boxes, "PAIRS_AT_ONCE", 7)
    assert rotated_nms(corners, scores, labels, 0.2).tolist() == at_once.tolist()
    assert len(at_once) < 300


def test_boxes_that_are_nan_or_without_area_stay_and_suppress_nothing() -> None:
    box = corners_from_rectangles(torch.tensor([[50.0, 50, 40, 8, 0.5]]))
    nothing = torch.full((1, 4, 2), torch.nan, dtype=torch.float64)
    line = corners_from_rectangles(torch.tensor([[50.0, 50, 40, 0, 0.5]]))
    corners = torch.cat([nothing, line, box, nothing, line])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    assert rotated_nms(corners, scores, torch.ones(5, dtype=torch.int64), 0.0).tolist() == [0, 1, 2, 3, 4]


def test_suppression_of_axis_aligned_boxes_is_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(1500, 4, generator=generator) * 100
    boxes[:, 2:] = boxes[:, :2] + 5 + torch.rand(1500, 2, generator=generator) * 40
    scores = torch.rand(1500, generator=generator)
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    kept = rotated_nms(corners, scores, torch.ones(1500, dtype=torch.int64), 0.5)
    assert kept.tolist() == nms(boxes, scores, 0.5).tolist()
    torch.testing.assert_close(surrounding_boxes(corners), boxes)


def test_suppression_follows_long_chains_of_neighbours() -> None:
    steps = torch.arange(200, dtype=torch.float64)
    # Each overlaps only its direct neighbours enough, so every other one stays.
    corners = corners_from_rectangles(
        torch.stack([steps * 4, steps * 2, *torch.tensor([[12.0], [6.0]]).expand(2, 200), steps * 0 + 0.4], dim=1)
    )
    kept = rotated_nms(corners, 1 - steps / 1000, torch.zeros(200, dtype=torch.int64), 0.35)
    assert kept.tolist() == list(range(0, 200, 2))


def test_suppression_reads_detections_as_they_are() -> None:
    corners = corners_from_rectangles(torch.tensor([[50.0, 50, 40, 8, 0.5], [51, 50, 40, 8, 0.5], [50, 50, 40, 8, -1]]))
    found = Detections(
        surrounding_boxes(corners).numpy().astype(np.float32),
        np.array([0.5, 0.9, 0.7], np.float32),
        np.array([3, 3, 3], np.int64),
        corners.numpy().astype(np.float32),
    )
    assert found.corners is not None
    columns = (torch.from_numpy(values) for values in (found.corners, found.scores, found.labels))
    kept = found.select(rotated_nms(*columns, 0.5).numpy())
    np.testing.assert_array_equal(kept.scores, np.array([0.9, 0.7], np.float32))
    empty = Detections.empty(oriented=True)
    assert empty.corners is not None
    nothing = rotated_nms(
        torch.from_numpy(empty.corners), torch.from_numpy(empty.scores), torch.from_numpy(empty.labels), 0.5
    )
    assert nothing.tolist() == []


def test_scores_and_labels_that_do_not_fit_the_boxes_are_refused() -> None:
    with pytest.raises(ValueError, match="each of 2 boxes"):
        rotated_nms(torch.zeros(2, 4, 2), torch.zeros(3), torch.zeros(2, dtype=torch.int64), 0.5)


def test_mixed_precision_around_it_changes_nothing() -> None:
    a, b = (corners_from_rectangles(random_rectangles(20, seed, 60)) for seed in (1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        rows, overlaps = rectangles_from_corners(a.float()), rotated_iou(a.float(), b.float())
    assert torch.equal(rows, rectangles_from_corners(a.float()))
    assert torch.equal(overlaps, rotated_iou(a.float(), b.float()))
