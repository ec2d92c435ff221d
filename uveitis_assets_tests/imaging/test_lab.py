"""LAB conversion through tables."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from uveitis_assets.imaging.lab import LabConverter


@pytest.fixture(scope="module")
def converters() -> tuple[LabConverter, LabConverter]:
    """With tables and without."""
    with_tables, without = LabConverter(0), LabConverter(10**12)
    with_tables.announce(1)
    return with_tables, without


def test_tables_give_what_opencv_gives_for_every_kind_of_colour(
    converters: tuple[LabConverter, LabConverter],
) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    colors[:16, :16] = np.stack(np.meshgrid(*[np.linspace(0, 255, 16).astype(np.uint8)] * 2), -1)[..., [0, 1, 1]]
    colors[20, 0], colors[20, 1], colors[20, 2] = (0, 0, 0), (255, 255, 255), (0, 0, 255)
    for converter in converters:
        lab = np.empty((300, 400, 4), dtype=np.uint8)
        converter.to_lab(colors, lab)
        np.testing.assert_array_equal(lab[..., :3], cv2.cvtColor(colors, cv2.COLOR_RGB2LAB))
        assert not lab[..., 3].any()
        rgb = np.empty_like(colors)
        converter.to_rgb(np.dstack([colors, np.zeros((300, 400), dtype=np.uint8)]), rgb)
        np.testing.assert_array_equal(rgb, cv2.cvtColor(colors, cv2.COLOR_LAB2RGB))


def test_another_luminance_takes_the_place_of_the_first_channel(
    converters: tuple[LabConverter, LabConverter],
) -> None:
    lab = np.random.default_rng(2).integers(0, 256, (60, 70, 4), dtype=np.uint8)
    lab[..., 3] = 0
    luminance = np.random.default_rng(3).integers(0, 256, (60, 90), dtype=np.uint8)[:, 10:80]
    expected = cv2.cvtColor(np.dstack([luminance, lab[..., 1:3]]), cv2.COLOR_LAB2RGB)
    for converter in converters:
        before, rgb = lab.copy(), np.empty((60, 70, 3), dtype=np.uint8)
        converter.to_rgb(lab, rgb, luminance)
        np.testing.assert_array_equal(rgb, expected)
        np.testing.assert_array_equal(lab, before)


def test_results_are_written_into_views(converters: tuple[LabConverter, LabConverter]) -> None:
    colors = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for converter in converters:
        canvas = np.zeros((40, 50, 3), dtype=np.uint8)
        converter.to_rgb(np.dstack([colors, np.zeros((20, 30), dtype=np.uint8)]), canvas[10:30, 10:40])
        np.testing.assert_array_equal(canvas[10:30, 10:40], cv2.cvtColor(colors, cv2.COLOR_LAB2RGB))
        assert not canvas[:10].any()


def test_tables_are_made_only_after_enough_pixels() -> None:
    converter = LabConverter(1000)
    converter.announce(1000)
    assert not converter.has_tables
    converter.announce(1)
    assert converter.has_tables
