"""Global images and tiles."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uveitis_assets.imaging.configuration import TilingConfiguration
from uveitis_assets.imaging.geometry import Tile
from uveitis_assets.imaging.tiling import (
    cut_tile,
    image_frames,
    padded_canvas,
    reconstruction_error,
    render_global,
    tile_grid,
)


def boxes(tiles: tuple[Tile, ...]) -> list[tuple[int, int, int, int]]:
    return [(tile.x0, tile.y0, tile.x1, tile.y1) for tile in tiles]


def test_a_global_image_of_1024_has_the_four_tiles_of_the_earlier_scripts() -> None:
    tiles = tile_grid(1024, 1024, 768, 0.25)
    assert [tile.tile_id for tile in tiles] == ["tile_000", "tile_001", "tile_002", "tile_003"]
    assert boxes(tiles) == [
        (0, 0, 768, 768),
        (256, 0, 1024, 768),
        (0, 256, 768, 1024),
        (256, 256, 1024, 1024),
    ]


def test_an_image_smaller_than_a_tile_gives_one_tile_of_its_own_size() -> None:
    assert boxes(tile_grid(500, 400, 768, 0.25)) == [(0, 0, 500, 400)]
    assert boxes(tile_grid(768, 768, 768, 0.25)) == [(0, 0, 768, 768)]


def test_an_image_one_tile_high_gives_one_row() -> None:
    assert boxes(tile_grid(1400, 300, 768, 0.25)) == [(0, 0, 768, 300), (576, 0, 1344, 300), (632, 0, 1400, 300)]


@settings(max_examples=100)
@given(st.integers(1, 240), st.integers(1, 240), st.integers(8, 120), st.floats(0.0, 0.9))
def test_tiles_cover_every_pixel_without_leaving_the_image_or_repeating(
    width: int, height: int, tile_size: int, overlap: float
) -> None:
    tiles = tile_grid(width, height, tile_size, overlap)
    covered = np.zeros((height, width), dtype=bool)
    for x0, y0, x1, y1 in boxes(tiles):
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        assert (x1 - x0, y1 - y0) == (min(tile_size, width), min(tile_size, height))
        covered[y0:y1, x0:x1] = True
    assert covered.all()
    assert len(set(boxes(tiles))) == len(tiles)
    assert boxes(tiles) == sorted(boxes(tiles), key=lambda box: (box[1], box[0]))


@settings(max_examples=40)
@given(st.integers(20, 200), st.integers(20, 200), st.integers(32, 90), st.floats(0.0, 0.8), st.integers(0, 9))
def test_tiles_put_together_give_the_image_again(
    width: int, height: int, tile_size: int, overlap: float, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    tiles = tile_grid(width, height, tile_size, overlap)
    assert reconstruction_error(image, tiles, [cut_tile(image, tile) for tile in tiles]) == 0.0


def test_the_reconstruction_error_sees_gaps_and_wrong_pixels() -> None:
    image = np.full((100, 100, 3), 128, dtype=np.uint8)
    tiles = tile_grid(100, 100, 60, 0.0)
    pixels = [cut_tile(image, tile) for tile in tiles]
    # The last tile alone covers 40 x 40 pixels: they count as the inverse, one grey level off at 128.
    assert reconstruction_error(image, tiles[:-1], pixels[:-1]) == pytest.approx(0.16)
    pixels[0] = pixels[0] + np.uint8(5)
    assert reconstruction_error(image, tiles, pixels) == pytest.approx(5 * 40 * 40 / 100**2)


def test_the_global_image_is_the_padded_crop_scaled_by_area() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (150, 301, 3), dtype=np.uint8)
    frames = image_frames((400, 400), (20, 30, 321, 180), TilingConfiguration(global_size=64))
    canvas, inside = padded_canvas(frames)
    inside[:] = crop
    square = np.zeros((301, 301, 3), dtype=np.uint8)
    square[75:225] = crop
    np.testing.assert_array_equal(canvas, square)
    np.testing.assert_array_equal(render_global(canvas, 64), cv2.resize(square, (64, 64), interpolation=cv2.INTER_AREA))
    used_before, inside = padded_canvas(frames, np.full((301, 301, 3), 255, dtype=np.uint8))
    inside[:] = crop
    np.testing.assert_array_equal(used_before, square)


@settings(max_examples=40)
@given(st.integers(33, 400), st.integers(32, 120), st.floats(0.0, 1.0), st.integers(0, 9))
def test_rows_that_are_known_to_be_black_change_nothing(side: int, size: int, share: float, seed: int) -> None:
    canvas = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    black_from = round(share * side)
    canvas[black_from:] = 0
    np.testing.assert_array_equal(render_global(canvas, size, black_from=black_from), render_global(canvas, size))


def test_integer_scales_give_exact_block_means() -> None:
    canvas = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    means = canvas.reshape(128, 4, 128, 4, 3).mean(axis=(1, 3))
    assert np.abs(render_global(canvas, 128) - means).max() <= 0.5


def test_a_crop_smaller_than_the_global_image_is_enlarged_without_ringing() -> None:
    canvas = np.zeros((40, 40, 3), dtype=np.uint8)
    canvas[10:30, 10:30] = 200
    enlarged = render_global(canvas, 64)
    assert enlarged.shape == (64, 64, 3)
    assert enlarged.max() == 200
    assert enlarged[32, 32].tolist() == [200, 200, 200]
    assert enlarged[2, 2].tolist() == [0, 0, 0]


def test_native_tiles_are_laid_out_on_the_crop() -> None:
    frames = image_frames((4000, 3000), (0, 0, 2000, 900), TilingConfiguration(frame="native"))
    assert frames.tiling_size == (2000, 900)
    assert len(frames.tiles) == 4 * 2
    assert max(tile.x1 for tile in frames.tiles) == 2000
    assert max(tile.y1 for tile in frames.tiles) == 900


@pytest.mark.parametrize("side", [300, 301, 512, 600])
def test_the_global_image_is_the_area_average_of_the_square(side: int) -> None:
    canvas = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    # Mean over each target pixel's footprint, pixels at its edges weighted by the covered share.
    edges = np.linspace(0, side, 129)
    cumulated = np.pad(np.cumsum(canvas.astype(np.float64), axis=0), ((1, 0), (0, 0), (0, 0)))
    rows = np.diff(
        [[np.interp(e, np.arange(side + 1), column) for e in edges] for column in cumulated.reshape(side + 1, -1).T]
    )
    by_row = rows.T.reshape(128, side, 3)
    cumulated = np.pad(np.cumsum(by_row, axis=1), ((0, 0), (1, 0), (0, 0)))
    columns = np.apply_along_axis(lambda line: np.diff(np.interp(edges, np.arange(side + 1), line)), 1, cumulated)
    expected = columns / (side / 128) ** 2
    assert np.abs(render_global(canvas, 128) - expected).max() <= 1.01
