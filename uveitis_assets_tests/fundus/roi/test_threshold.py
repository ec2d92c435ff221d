"""Threshold ROI."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from uveitis_assets.fundus.roi.mask_shapes import largest_component
from uveitis_assets.fundus.roi.threshold import threshold_retina_mask
from uveitis_assets_tests.fundus.preprocess_inputs import fundus_picture


def test_the_mask_is_one_blob_of_zero_and_255_around_the_disc() -> None:
    picture = fundus_picture(0)
    picture[2:12, 2:12] = (200, 120, 60)
    mask = threshold_retina_mask(picture)
    assert set(np.unique(mask)) == {0, 255}
    assert ndimage.label(mask, np.ones((3, 3)))[1] == 1
    truth = np.zeros_like(mask)
    cv2.ellipse(truth, (120, 100), (100, 90), 0, 0, 360, 255, -1)
    overlap = np.count_nonzero(mask & truth) / np.count_nonzero(mask | truth)
    assert overlap > 0.97


def test_coloured_noise_in_a_black_surround_is_no_retina() -> None:
    picture = fundus_picture(1)
    noise = np.random.default_rng(0).integers(0, 15, picture.shape, dtype=np.uint8)
    dark = picture.sum(axis=2) == 0
    clean = threshold_retina_mask(picture)
    picture[dark] = noise[dark]
    noisy = threshold_retina_mask(picture)
    assert np.count_nonzero(noisy != clean) < 0.01 * clean.size


def test_a_higher_saturation_threshold_never_adds_pixels_of_a_dim_image() -> None:
    picture = (fundus_picture(2) * 0.6).astype(np.uint8)
    areas = [np.count_nonzero(threshold_retina_mask(picture, threshold)) for threshold in (0, 18, 120, 255)]
    assert areas == sorted(areas, reverse=True)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([1.0, 3.0, 6.0, 12.0]), st.floats(0.1, 0.9))
def test_blobs_of_any_shape_are_opened_closed_reduced_to_the_largest_and_closed(
    seed: int, sigma: float, share: float
) -> None:
    field = cv2.GaussianBlur(np.random.default_rng(seed).random((90, 110)), (0, 0), sigma)
    blobs = np.where(field > np.quantile(field, share), np.uint8(255), np.uint8(0))
    picture = np.zeros((90, 110, 3), dtype=np.uint8)
    picture[blobs > 0] = (200, 90, 60)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (11, 11))
    opened = cv2.morphologyEx(blobs, cv2.MORPH_OPEN, kernel)
    closed = cv2.morphologyEx(opened, cv2.MORPH_CLOSE, kernel)
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(closed, connectivity=8)
    areas = statistics[:, cv2.CC_STAT_AREA] * (np.arange(len(statistics)) > 0)
    largest = np.where(labels == np.argmax(areas), closed, np.uint8(0))
    expected = cv2.morphologyEx(largest, cv2.MORPH_CLOSE, kernel)
    np.testing.assert_array_equal(threshold_retina_mask(picture), expected)


def test_a_black_image_gives_an_empty_mask() -> None:
    assert not threshold_retina_mask(np.zeros((60, 80, 3), dtype=np.uint8)).any()


def test_the_largest_of_many_components_is_kept_also_inside_holes_and_at_borders() -> None:
    generator = np.random.default_rng(0)
    for sigma in (0.5, 1.0, 2.0, 4.0):
        for _ in range(25):
            field = cv2.GaussianBlur(generator.random((40, 50)), (0, 0), sigma)
            mask = np.where(field > np.quantile(field, generator.uniform(0.2, 0.9)), np.uint8(255), np.uint8(0))
            labels, _ = ndimage.label(mask, np.ones((3, 3)))
            sizes = np.bincount(labels.ravel())[1:]
            kept = largest_component(mask) > 0
            assert np.count_nonzero(kept) == sizes.max()
            assert len(np.unique(labels[kept])) == 1
    ring = np.zeros((60, 60), dtype=np.uint8)
    cv2.rectangle(ring, (5, 5), (54, 54), 255, 1)
    cv2.rectangle(ring, (15, 15), (44, 44), 255, -1)
    assert np.count_nonzero(largest_component(ring)) == 30 * 30
