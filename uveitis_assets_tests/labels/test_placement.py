"""The tile rules and polygon clipping, by property and by hand-made cases."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from uveitis_assets.imaging.geometry import AxisAlignedTransform, ImageFrames, Tile
from uveitis_assets.labels.lesions import Lesions
from uveitis_assets.labels.placement import PlacedLesion, place_in_image, place_in_tiles
from uveitis_assets_tests.labels.independent import area_of, clip_polygon
from uveitis_assets_tests.labels.lane import frames_of, tile_grid

IDENTITY = AxisAlignedTransform()


def quads(*corners: list[tuple[float, float]]) -> Lesions:
    points = np.array(corners, float).reshape(-1, 4, 2)
    outlines = shapely.polygons(points)
    invalid = ~shapely.is_valid(outlines)
    outlines[invalid] = shapely.convex_hull(outlines[invalid])
    boxes = np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)
    return Lesions(np.ones(len(points), np.int64), boxes, outlines, points)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def polygon_area(placed: PlacedLesion) -> float:
    return sum(area_of(np.reshape(ring, (-1, 2))) for ring in placed.segmentation)


def test_boxes_end_at_the_image_s_edge_not_a_pixel_before() -> None:
    (placed,) = place_in_image(quads(rectangle(-5, 10, 200, 20)), IDENTITY, (100, 50))
    assert placed.box == (0, 10, 100, 20)
    assert placed.obb is None
    assert polygon_area(placed) == pytest.approx(1000)


def test_corners_are_shares_of_the_window_and_edges_count_as_inside() -> None:
    (placed,) = place_in_image(quads(rectangle(0, 10, 100, 50)), IDENTITY, (100, 50))
    assert placed.obb == [0, 0.2, 1, 0.2, 1, 1, 0, 1]


def test_lesions_outside_or_touching_an_edge_from_outside_are_left_out() -> None:
    lesions = quads(rectangle(100, 10, 120, 20), rectangle(-20, -20, -1, -1), rectangle(1, 1, 2, 2))
    assert [placed.lesion for placed in place_in_image(lesions, IDENTITY, (100, 50))] == [2]


def test_a_slanted_lesion_is_clipped_as_a_polygon() -> None:
    diamond = [(50.0, 0.0), (100.0, 50.0), (50.0, 100.0), (0.0, 50.0)]
    tiles = (Tile("a", 0, 0, 50, 50), Tile("b", 0, 0, 10, 10), Tile("c", 50, 0, 100, 100))
    placed = place_in_tiles(quads(diamond), IDENTITY, (100, 100), tiles, min_box_ratio=0.0, large_cover=0.0)
    assert [len(one) for one in placed] == [1, 0, 1]  # b meets the box's corner, not the lesion
    assert sorted(zip(*[iter(placed[0][0].segmentation[0])] * 2, strict=True)) == [(0, 50), (50, 0), (50, 50)]
    assert polygon_area(placed[2][0]) == pytest.approx(2500)


def test_a_lesion_that_a_window_cuts_in_two_has_two_polygons() -> None:
    horseshoe = shapely.Polygon([(0, 0), (10, 0), (10, 10), (8, 10), (8, 2), (2, 2), (2, 10), (0, 10)])
    lesions = Lesions(np.ones(1, np.int64), np.array([[0.0, 0, 10, 10]]), np.array([horseshoe]))
    window = (Tile("a", 0, 5, 20, 25),)
    ((placed,),) = place_in_tiles(lesions, IDENTITY, (20, 30), window, min_box_ratio=0.2, large_cover=0.2)
    assert len(placed.segmentation) == 2
    assert polygon_area(placed) == pytest.approx(20)
    assert placed.box == (0, 0, 10, 5)


GRID = tile_grid(4000, 3000, 768, 576)


@pytest.mark.parametrize(
    ("box", "rule"),
    [
        ((100, 100, 160, 140), {"ratio"}),
        ((10, 10, 3990, 2990), {"cover"}),
        ((5, 1500, 3995, 1512), {"best"}),
        ((20, 20, 3000, 60), {"ratio", "best", "cover"}),
    ],
)
def test_each_rule_keeps_what_the_others_would_lose(box: tuple[int, int, int, int], rule: set[str]) -> None:
    placed = place_in_tiles(quads(rectangle(*box)), IDENTITY, (4000, 3000), GRID, min_box_ratio=0.2, large_cover=0.2)
    kept = [lesion.kept_by for lesions in placed for lesion in lesions]
    assert kept
    assert set(kept) <= rule


def test_a_lesion_larger_than_tiles_is_in_every_tile_it_fills() -> None:
    lesions = quads(rectangle(10, 10, 3990, 2990))
    placed = place_in_tiles(lesions, IDENTITY, (4000, 3000), GRID, min_box_ratio=0.2, large_cover=0.2)
    assert all(len(one) == 1 for one in placed)
    assert placed[8][0].box == (0, 0, 768, 768)


def test_the_last_rule_takes_the_tile_with_the_largest_part() -> None:
    lesions = quads(rectangle(5, 1500, 3995, 1512))
    placed = place_in_tiles(lesions, IDENTITY, (4000, 3000), GRID, min_box_ratio=0.2, large_cover=0.2)
    holders = [tile for tile, one in zip(GRID, placed, strict=True) if one]
    # Rows y 1152..1920 hold it; the first tile holds 763 px of it, the second is the first with all 768.
    assert [(tile.x0, tile.y0) for tile in holders] == [(576, 1152)]


def quad_within(low: float, high: float) -> st.SearchStrategy[list[tuple[float, float]]]:
    """Four points with some area between them, crossing sides and all."""
    value = st.integers(round(low * 4), round(high * 4)).map(lambda quarter: quarter / 4)
    points = st.lists(st.tuples(value, value), min_size=4, max_size=4)
    return points.filter(lambda corners: shapely.MultiPoint(corners).convex_hull.area > 0.01)


@st.composite
def frames(draw: st.DrawFn) -> ImageFrames:
    width, height = draw(st.integers(20, 1400)), draw(st.integers(20, 1400))
    x0, y0 = draw(st.integers(0, width - 10)), draw(st.integers(0, height - 10))
    x1, y1 = draw(st.integers(x0 + 10, width)), draw(st.integers(y0 + 10, height))
    size = draw(st.integers(80, 300))
    return frames_of(
        (width, height),
        (x0, y0, x1, y1),
        frame=draw(st.sampled_from(["global", "native"])),
        global_size=256,
        tile_size=size,
        stride=draw(st.integers(size // 2, size)),
    )


@settings(max_examples=80)
@given(
    st.lists(quad_within(-300, 1500), min_size=1, max_size=4),
    frames(),
    st.sampled_from([(0.2, 0.2), (0.9, 0.9), (1.0, 1.0)]),
)
def test_every_lesion_that_the_tiling_frame_shows_is_in_some_tile(
    corners: list[list[tuple[float, float]]], image: ImageFrames, limits: tuple[float, float]
) -> None:
    lesions = quads(*corners)
    placed = place_in_tiles(
        lesions,
        image.raw_to_tiling,
        image.tiling_size,
        image.tiles,
        min_box_ratio=limits[0],
        large_cover=limits[1],
    )
    kept = {lesion.lesion for one in placed for lesion in one}
    width, height = image.tiling_size
    for index in range(len(lesions)):
        hull = np.asarray(lesions.outlines[index].exterior.coords)[:-1]
        visible = area_of(clip_polygon(image.raw_to_tiling.apply(hull), (0, 0, width, height)))
        if visible > 0.01:
            assert index in kept
        if visible == 0.0:
            assert index not in kept
    for tile, one in zip(image.tiles, placed, strict=True):
        for lesion in one:
            x0, y0, x1, y1 = lesion.box
            assert 0 <= x0 < x1 <= tile.width
            assert 0 <= y0 < y1 <= tile.height


SUBSAMPLES = 4


def covered_share(polygons: list[list[float]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Sample points (4 x 4 in each px) that lie in the polygons, by the crossing-number test."""
    width, height = size
    xs = (np.arange(width * SUBSAMPLES) + 0.5) / SUBSAMPLES
    ys = (np.arange(height * SUBSAMPLES) + 0.5) / SUBSAMPLES
    x, y = np.meshgrid(xs, ys)
    inside = np.zeros(x.shape, bool)
    for ring in polygons:
        points = np.reshape(ring, (-1, 2))
        for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, axis=0), strict=True):
            crosses = (ay > y) != (by > y)
            with np.errstate(divide="ignore", invalid="ignore"):
                inside ^= crosses & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
    return inside


@settings(max_examples=60)
@given(quad_within(-30, 70), st.integers(0, 20), st.integers(0, 20))
def test_a_clipped_polygon_covers_the_same_points_as_the_whole_one_in_the_window(
    corners: list[tuple[float, float]], x0: int, y0: int
) -> None:
    lesions = quads(corners)
    tile = Tile("a", x0, y0, x0 + 20, y0 + 16)
    (placed,) = place_in_tiles(lesions, IDENTITY, (60, 60), (tile,), min_box_ratio=0.0, large_cover=0.0)
    whole = np.asarray(lesions.outlines[0].exterior.coords)[:-1] - (x0, y0)
    expected = covered_share([whole.ravel().tolist()], (tile.width, tile.height))
    found = covered_share(placed[0].segmentation if placed else [], (tile.width, tile.height))
    # Rounding to 0.001 px may move a sample point that lies on the border.
    assert (expected ^ found).sum() <= 0.01 * expected.size
    if placed:
        assert polygon_area(placed[0]) == pytest.approx(area_of(clip_polygon(whole, (0, 0, 20, 16))), abs=0.1)
