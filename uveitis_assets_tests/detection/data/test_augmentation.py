"""Augmentation: boxes and corners go where the pixels go, colours change as recomputed, black stays black."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely import LinearRing

from uveitis_assets.detection.configuration import AugmentationConfiguration
from uveitis_assets.detection.data.augmentation import augment, change_colours, mirrored

HEIGHT, WIDTH = 40, 56
NOTHING = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "gamma": 0.0}


@st.composite
def rectangles(draw: st.DrawFn) -> np.ndarray:
    """Boxes in whole px that do not touch each other: one per cell of a grid."""
    boxes = []
    for cell_y in range(0, HEIGHT, 20):
        for cell_x in range(0, WIDTH, 14):
            if draw(st.booleans()):
                x0, y0 = draw(st.integers(0, 5)), draw(st.integers(0, 8))
                x1, y1 = draw(st.integers(x0 + 1, 12)), draw(st.integers(y0 + 1, 18))
                boxes.append((cell_x + x0, cell_y + y0, cell_x + x1, cell_y + y1))
    return np.array(boxes, np.float32).reshape(-1, 4)


def corners_of(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2).copy()


def painted(boxes: np.ndarray) -> np.ndarray:
    """Black with the n-th box in grey level 20 + 10 n."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for number, (x0, y0, x1, y1) in enumerate(boxes.astype(int)):
        pixels[y0:y1, x0:x1] = 20 + 10 * number
    return pixels


def found(pixels: np.ndarray, n: int) -> np.ndarray:
    """Boxes read from the pixels, one per grey level."""
    boxes = []
    for number in range(n):
        rows, columns = np.nonzero(pixels[..., 0] == 20 + 10 * number)
        boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    return np.array(boxes, np.float32).reshape(-1, 4)


@given(boxes=rectangles(), seed=st.integers(0, 2**32), horizontal=st.floats(0, 1), vertical=st.floats(0, 1))
def test_boxes_and_corners_are_where_the_painted_rectangles_are_found(
    boxes: np.ndarray, seed: int, horizontal: float, vertical: float
) -> None:
    configuration = AugmentationConfiguration(horizontal_flip=horizontal, vertical_flip=vertical, **NOTHING)
    pixels, moved, corners = augment(
        painted(boxes), boxes, corners_of(boxes), configuration, np.random.default_rng(seed)
    )
    np.testing.assert_array_equal(moved, found(pixels, len(boxes)))
    np.testing.assert_array_equal(np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1), moved)


@given(boxes=rectangles(), axis=st.sampled_from([0, 1]))
def test_mirroring_twice_changes_nothing_and_keeps_the_direction_of_corners(boxes: np.ndarray, axis: int) -> None:
    corners = corners_of(boxes)
    corners[::2] += 0.25
    length = (WIDTH, HEIGHT)[axis]
    once = mirrored(boxes, corners, length, axis=axis)
    twice = mirrored(*once, length, axis=axis)
    np.testing.assert_array_equal(twice[0], boxes)
    np.testing.assert_array_equal(twice[1], corners)
    for before, after in zip(corners, once[1], strict=True):
        assert LinearRing(before).is_ccw == LinearRing(after).is_ccw


def test_lesions_without_oriented_box_stay_without() -> None:
    corners = np.full((1, 4, 2), np.nan, np.float32)
    _, turned = mirrored(np.array([[1, 2, 3, 4]], np.float32), corners, 10, axis=0)
    assert np.isnan(turned).all()


def test_flips_come_as_often_as_configured_and_both_ways() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 0] = 9
    nothing = np.zeros((0, 4), np.float32), np.zeros((0, 4, 2), np.float32)
    configuration = AugmentationConfiguration(horizontal_flip=0.25, vertical_flip=0.5, **NOTHING)
    rng = np.random.default_rng(0)
    seen = [np.argwhere(augment(pixels, *nothing, configuration, rng)[0][..., 0])[0] for _ in range(2000)]
    vertical, horizontal = np.mean(seen, axis=0)
    assert horizontal == pytest.approx(0.25, abs=0.03)
    assert vertical == pytest.approx(0.5, abs=0.035)


factors = st.floats(0.7, 1.4)


@given(seed=st.integers(0, 1000), brightness=factors, contrast=factors, saturation=factors, gamma=factors)
def test_colours_change_as_by_the_formula_in_double_precision_and_black_stays_black(
    seed: int, brightness: float, contrast: float, saturation: float, gamma: float
) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(30, 200, (16, 12, 3), dtype=np.uint8)
    pixels[:5] = 0
    pixels[5, 0] = (0, 0, 40)
    changed = change_colours(pixels, brightness=brightness, contrast=contrast, saturation=saturation, gamma=gamma)
    assert changed.dtype == np.uint8
    assert not changed[:5].any()

    luminance = np.array([0.299, 0.587, 0.114])
    grey = (pixels * luminance).sum(axis=2, keepdims=True)
    exact = np.clip(grey + saturation * (pixels - grey), 0, 255)
    lit = pixels.any(axis=2)
    mean = (exact[lit] * luminance).sum(axis=1).mean() * brightness
    levels = (exact * brightness - mean) * contrast + mean

    def curve(level: np.ndarray) -> np.ndarray:
        return 255 * (np.clip(level, 0, 255) / 255) ** gamma

    # Saturation rounds its factors to ten bits and its result to whole levels; that error goes on through brightness,
    # contrast, their mean and the curve, at whose end there is another rounding.
    rounded = (0.5 + 3 * 255 / 2**11) * brightness * (contrast + abs(1 - contrast))
    assert (changed[lit] >= curve(levels - rounded)[lit] - 0.51).all()
    assert (changed[lit] <= curve(levels + rounded)[lit] + 0.51).all()
    assert np.abs(changed[lit] - curve(levels)[lit]).mean() < 0.7


def test_no_change_gives_the_same_pixels_and_inputs_are_not_written() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    before = pixels.copy()
    same = change_colours(pixels, brightness=1.0, contrast=1.0, saturation=1.0, gamma=1.0)
    np.testing.assert_array_equal(same, pixels)
    boxes, corners = np.array([[1, 2, 3, 4]], np.float32), corners_of(np.array([[1, 2, 3, 4]], np.float32))
    augment(pixels, boxes, corners, AugmentationConfiguration(horizontal_flip=1), np.random.default_rng(1))
    np.testing.assert_array_equal(pixels, before)
    assert boxes.tolist() == [[1, 2, 3, 4]]


def test_a_black_tile_stays_black() -> None:
    black = np.zeros((8, 8, 3), np.uint8)
    assert not change_colours(black, brightness=1.2, contrast=0.8, saturation=1.1, gamma=0.9).any()
