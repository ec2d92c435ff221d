"""Lesions with holes as run lengths: pycocotools decodes the very mask, in any window."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pycocotools import mask as coco_masks

from uveitis_assets.imaging.geometry import AxisAlignedTransform, Tile
from uveitis_assets.labels.masks.lesion_masks import lesions_of_mask
from uveitis_assets.labels.masks.pixel_regions import decode_run_lengths, encode_run_lengths
from uveitis_assets.labels.placement import place_in_image, place_in_tiles
from uveitis_assets.labels.segmentation import rings_of_segmentation

IDENTITY = AxisAlignedTransform()
masks = arrays(np.bool_, st.tuples(st.integers(1, 16), st.integers(1, 16)))


def ring(size: int, inner: int, outer: int) -> NDArray[np.bool_]:
    y, x = np.mgrid[:size, :size]
    radius = np.hypot(x - size / 2 + 0.5, y - size / 2 + 0.5)
    return (radius < outer) & (radius >= inner)


@settings(max_examples=60)
@given(masks)
def test_pycocotools_decodes_the_mask_that_was_encoded(mask: NDArray[np.bool_]) -> None:
    code = encode_run_lengths(mask)
    np.testing.assert_array_equal(coco_masks.decode(coco_masks.frPyObjects(code, *mask.shape)), mask)
    np.testing.assert_array_equal(decode_run_lengths(code), mask)


@pytest.mark.parametrize("code", [{"size": [2, 3], "counts": [5]}, {"size": [2, 3], "counts": "abc"}])
def test_run_lengths_that_do_not_fit_are_refused(code: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="uncompressed run lengths that add up to 3x2 px"):
        decode_run_lengths(code)


def test_a_ring_is_its_pixels_and_a_disc_stays_a_polygon() -> None:
    mask = ring(60, 10, 20)
    mask[:6, :6] = True
    lesions = lesions_of_mask(mask, 1, 1)
    disc, around = place_in_image(lesions, IDENTITY, (60, 60))
    assert isinstance(disc.segmentation, list)
    assert disc.as_coco()["area"] == 36
    assert isinstance(around.segmentation, dict)
    mask[:6, :6] = False
    np.testing.assert_array_equal(decode_run_lengths(around.segmentation), mask)
    assert around.as_coco()["area"] == mask.sum()


def test_tiles_show_the_part_of_a_ring_that_lies_in_them_and_not_its_inside() -> None:
    mask = ring(100, 40, 48)
    tiles = (Tile("whole", 0, 0, 100, 100), Tile("inside", 40, 40, 60, 60), Tile("side", 0, 40, 12, 60))
    options = {"min_box_ratio": 0.0, "large_cover": 0.0}
    whole, inside, side = place_in_tiles(lesions_of_mask(mask, 1, 1), IDENTITY, (100, 100), tiles, **options)
    assert isinstance(whole[0].segmentation, dict)
    assert inside == []
    # Part of the hole shows there: pixels again.
    assert isinstance(side[0].segmentation, dict)
    np.testing.assert_array_equal(decode_run_lengths(side[0].segmentation), mask[40:60, 0:12])


def test_a_hole_too_small_for_the_window_leaves_a_polygon() -> None:
    mask = np.zeros((40, 40), bool)
    mask[8:32, 8:32] = True
    mask[20, 20] = False
    quarter = AxisAlignedTransform(0.25, 0.25)
    (placed,) = place_in_image(lesions_of_mask(mask, 1, 1), quarter, (10, 10))
    assert isinstance(placed.segmentation, list)
    assert placed.as_coco()["area"] == 36


def test_outlines_for_drawing_include_the_border_of_holes() -> None:
    rings = rings_of_segmentation(encode_run_lengths(ring(60, 10, 20)))
    widths = sorted(float(np.ptp(points[:, 0])) for points in rings)
    assert len(rings) == 2
    assert widths == pytest.approx([20, 38], abs=2)
    assert [points.tolist() for points in rings_of_segmentation([[1, 2, 3, 4, 5, 6]])] == [[[1, 2], [3, 4], [5, 6]]]
