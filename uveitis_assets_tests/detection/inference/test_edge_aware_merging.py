import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from uveitis_assets.detection.configuration import InferenceConfiguration
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets_tests.detection.inference.one_image import merged_image
from uveitis_assets_tests.detection.known_detectors import small_frames

EDGE_AWARE = InferenceConfiguration(merge="edge_aware", score_threshold=0.3)
Lesion = tuple[float, float, float, float]


def seen_in_tiles(
    frames: ImageFrames, lesions: list[Lesion], scores: np.ndarray | None = None, label: int = 5
) -> list[Detections]:
    """What a perfect detector finds: of every lesion the part that lies in the tile; ``scores`` (tiles, lesions)."""
    found = []
    for number, tile in enumerate(frames.tiles):
        rows, row_scores = [], []
        for which, lesion in enumerate(lesions):
            part = shapely.intersection(shapely.box(*lesion), shapely.box(tile.x0, tile.y0, tile.x1, tile.y1))
            if part.area > 0:
                x0, y0, x1, y1 = part.bounds
                rows.append((x0 - tile.x0, y0 - tile.y0, x1 - tile.x0, y1 - tile.y0))
                row_scores.append(0.9 if scores is None else scores[number, which])
        boxes = np.array(rows, np.float32).reshape(-1, 4)
        found.append(Detections(boxes, np.array(row_scores, np.float32), np.full(len(rows), label)))
    return found


def in_global(frames: ImageFrames, lesion: Lesion) -> np.ndarray:
    """Tiling px to global px, from the frames' definition."""
    if frames.frame == "global":
        return np.array(lesion)
    scale = frames.global_size / frames.padded_side
    return (np.array(lesion) + np.tile(frames.pad_xy, 2)) * scale


@settings(max_examples=120)
@given(
    tile_size=st.sampled_from([32, 64, 100]),
    overlap=st.sampled_from([0.0, 0.1, 0.25, 0.6]),
    native=st.booleans(),
    place=st.tuples(*[st.floats(0, 1)] * 2),
    extent=st.tuples(*[st.floats(0.01, 1)] * 2),
    seed=st.integers(0, 1000),
)
def test_a_lesion_cut_by_seams_in_any_way_ends_as_one_box_equal_to_the_whole(
    tile_size: int,
    overlap: float,
    native: bool,
    place: tuple[float, float],
    extent: tuple[float, float],
    seed: int,
) -> None:
    frames = (
        small_frames(frame="native", crop=(230, 170), global_size=230, tile_size=tile_size, overlap=overlap)
        if native
        else small_frames(crop=(180, 180), global_size=180, tile_size=tile_size, overlap=overlap)
    )
    width, height = frames.tiling_size
    w, h = max(extent[0] * width, 2.0), max(extent[1] * height, 2.0)
    x, y = place[0] * (width - w), place[1] * (height - h)
    lesion = (x, y, x + w, y + h)
    scores = np.random.default_rng(seed).uniform(0.3, 1.0, (len(frames.tiles), 1)).astype(np.float32)
    merged = merged_image(frames, seen_in_tiles(frames, [lesion], scores), EDGE_AWARE)
    assert len(merged) == 1
    assert np.allclose(merged.boxes[0], in_global(frames, lesion), atol=1e-2)
    meets = [
        number
        for number, tile in enumerate(frames.tiles)
        if min(lesion[2], tile.x1) > max(lesion[0], tile.x0) and min(lesion[3], tile.y1) > max(lesion[1], tile.y0)
    ]
    assert merged.scores[0] == scores[meets].max()


@settings(max_examples=80)
@given(
    overlap=st.sampled_from([0.25, 0.4, 0.6]),
    place=st.tuples(*[st.floats(0, 1)] * 2),
    extent=st.tuples(*[st.floats(2, 24)] * 2),
    seed=st.integers(0, 10_000),
)
def test_a_lesion_that_one_tile_sees_whole_is_that_box_whichever_of_its_pieces_other_tiles_miss(
    overlap: float, place: tuple[float, float], extent: tuple[float, float], seed: int
) -> None:
    frames = small_frames(crop=(180, 180), global_size=180, tile_size=64, overlap=overlap)
    x, y = (share * (180 - length) for share, length in zip(place, extent, strict=True))
    lesion = (x, y, x + extent[0], y + extent[1])
    random = np.random.default_rng(seed)
    scores = random.uniform(0.3, 1.0, (len(frames.tiles), 1)).astype(np.float32)
    whole = [
        tile.x0 <= lesion[0] and tile.y0 <= lesion[1] and tile.x1 >= lesion[2] and tile.y1 >= lesion[3]
        for tile in frames.tiles
    ]
    found = [
        part if sees_all or random.random() < 0.5 else Detections.empty()
        for part, sees_all in zip(seen_in_tiles(frames, [lesion], scores), whole, strict=True)
    ]
    if any(whole):
        merged = merged_image(frames, found, EDGE_AWARE)
        assert len(merged) == 1
        assert np.allclose(merged.boxes[0], lesion, atol=1e-2)


def test_plain_suppression_leaves_the_half_boxes_that_edge_aware_merging_joins() -> None:
    frames = small_frames(crop=(112, 64), global_size=112, tile_size=64, frame="native")
    assert [tile.x0 for tile in frames.tiles] == [0, 48]
    cut = seen_in_tiles(frames, [(20, 10, 100, 40)])
    assert len(merged_image(frames, cut, InferenceConfiguration(merge="nms"))) == 2
    joined = merged_image(frames, cut, EDGE_AWARE)
    assert joined.boxes.tolist() == [[20, 34, 100, 64]]


def test_a_whole_box_wins_over_its_pieces_even_when_they_are_surer() -> None:
    frames = small_frames(crop=(112, 64), global_size=112, tile_size=64, frame="native")
    found = seen_in_tiles(frames, [(40, 10, 70, 40)], np.array([[0.95], [0.5]]))
    wobbly = Detections(found[1].boxes + np.float32(0.75), found[1].scores, found[1].labels)
    # The left tile sees x 40..64 of it and is sure; the right one cannot see x 40..48.
    left_only = merged_image(frames, [found[0], Detections.empty()], EDGE_AWARE)
    assert left_only.boxes.tolist() == [[40, 34, 64, 64]]
    both = merged_image(frames, [found[0], wobbly], EDGE_AWARE)
    assert len(both) == 1
    assert both.boxes[0].tolist() == pytest.approx([40, 34, 70.75, 64.75])


def test_neighbouring_lesions_across_one_seam_stay_apart() -> None:
    frames = small_frames(crop=(112, 64), global_size=112, tile_size=64, frame="native")
    lesions = [(30.0, 5.0, 90.0, 20.0), (35.0, 23.0, 80.0, 35.0), (52.0, 40.0, 60.0, 48.0)]
    merged = merged_image(frames, seen_in_tiles(frames, lesions), EDGE_AWARE)
    expected = sorted(in_global(frames, lesion).tolist() for lesion in lesions)
    assert np.allclose(sorted(merged.boxes.tolist()), expected, atol=1e-3)


def test_categories_are_never_joined() -> None:
    frames = small_frames(crop=(112, 64), global_size=112, tile_size=64, frame="native")
    left, right = seen_in_tiles(frames, [(20, 10, 100, 40)])
    other = Detections(right.boxes, right.scores, right.labels + 1)
    assert len(merged_image(frames, [left, other], EDGE_AWARE)) == 2


def test_imprecise_pieces_are_joined_too() -> None:
    frames = small_frames(crop=(112, 64), global_size=112, tile_size=64, frame="native")
    random = np.random.default_rng(0)
    for _ in range(50):
        found = [
            Detections(
                np.clip(part.boxes + random.normal(0, 1.0, part.boxes.shape), 0, 64).astype(np.float32),
                part.scores,
                part.labels,
            )
            for part in seen_in_tiles(frames, [(20, 10, 100, 40)])
        ]
        merged = merged_image(frames, found, EDGE_AWARE)
        assert len(merged) == 1
        assert merged.boxes[0].tolist() == pytest.approx([20, 34, 100, 64], abs=4)


def test_a_weak_piece_completes_a_lesion_but_makes_none() -> None:
    frames = small_frames(crop=(112, 64), global_size=112, tile_size=64, frame="native")
    found = seen_in_tiles(frames, [(20, 10, 100, 40)], np.array([[0.8], [0.2]]))
    merged = merged_image(frames, found, EDGE_AWARE)
    assert merged.boxes.tolist() == [[20, 34, 100, 64]]
    assert merged.scores.tolist() == pytest.approx([0.8])
    assert len(merged_image(frames, [Detections.empty(), found[1]], EDGE_AWARE)) == 0


def test_chance_findings_do_not_stretch_a_sure_one_however_low_the_threshold() -> None:
    frames = small_frames(crop=(112, 64), global_size=112, tile_size=64, frame="native")
    found = seen_in_tiles(frames, [(20, 10, 100, 40)], np.array([[0.9], [0.02]]))
    merged = merged_image(frames, found, InferenceConfiguration(merge="edge_aware", score_threshold=0.0))
    assert merged.boxes[0].tolist() == [20, 34, 64, 64]


def test_a_piece_without_a_partner_goes_when_a_larger_box_holds_it() -> None:
    frames = small_frames(crop=(112, 64), global_size=112, tile_size=64, frame="native")
    whole = np.array([[2, 5, 50, 45]], np.float32)
    # Of the lesion at x 50..98 the left tile sees a piece much lower than its neighbour thinks it is.
    piece = np.array([[52, 30, 64, 44]], np.float32)
    one = np.ones(1, np.int64)
    merged = merged_image(
        frames,
        [Detections(piece, np.array([0.9], np.float32), one), Detections(whole, np.array([0.6], np.float32), one)],
        EDGE_AWARE,
    )
    assert merged.boxes.tolist() == [[50, 29, 98, 69]]


def test_lesions_clear_of_the_seams_are_merged_as_by_suppression() -> None:
    frames = small_frames(crop=(112, 64), global_size=112, tile_size=64, frame="native")
    lesions = [(5.0, 5.0, 40.0, 20.0), (53.0, 30.0, 59.0, 40.0), (80.0, 5.0, 100.0, 60.0)]
    found = seen_in_tiles(frames, lesions)
    edge_aware = merged_image(frames, found, EDGE_AWARE)
    plain = merged_image(frames, found, InferenceConfiguration(merge="nms"))
    assert len(plain) == 3
    assert np.array_equal(edge_aware.boxes, plain.boxes)


def oriented(corners: list[np.ndarray], scores: list[float]) -> Detections:
    stacked = np.array(corners, np.float32).reshape(-1, 4, 2)
    boxes = np.concatenate([stacked.min(axis=1), stacked.max(axis=1)], axis=1)
    return Detections(boxes, np.array(scores, np.float32), np.ones(len(scores), np.int64), stacked)


def turned_rectangle(x: float, y: float, w: float, h: float, degrees: float) -> np.ndarray:
    from shapely.affinity import rotate

    turned = rotate(shapely.box(x - w / 2, y - h / 2, x + w / 2, y + h / 2), degrees)
    return np.array(turned.exterior.coords)[:4]


def test_oriented_boxes_that_cross_are_kept_where_their_upright_boxes_would_suppress_each_other() -> None:
    frames = small_frames(tile_size=256)
    crossing = oriented([turned_rectangle(100, 100, 80, 8, 45), turned_rectangle(100, 100, 80, 8, -45)], [0.9, 0.8])
    for merge in ("nms", "edge_aware"):
        merged = merged_image(frames, [crossing], InferenceConfiguration(merge=merge))
        assert len(merged) == 2
        assert merged.corners is not None
    alike = oriented([turned_rectangle(100, 100, 80, 8, 45), turned_rectangle(101, 101, 80, 8, 44)], [0.7, 0.8])
    merged = merged_image(frames, [alike], InferenceConfiguration())
    assert merged.scores.tolist() == pytest.approx([0.8])


def test_oriented_pieces_of_a_cut_lesion_become_one_oriented_box() -> None:
    frames = small_frames(crop=(112, 64), global_size=112, tile_size=64, frame="native")
    whole = turned_rectangle(56, 30, 70, 10, 20)
    found = []
    for tile in frames.tiles:
        part = shapely.Polygon(whole).intersection(shapely.box(tile.x0, tile.y0, tile.x1, tile.y1))
        corners = np.array(shapely.minimum_rotated_rectangle(part).exterior.coords)[:4] - (tile.x0, tile.y0)
        x0, y0, x1, y1 = part.bounds
        box = np.array([[x0 - tile.x0, y0, x1 - tile.x0, y1]], np.float32)
        found.append(
            Detections(box, np.full(1, 0.9, np.float32), np.ones(1, np.int64), corners[None].astype(np.float32))
        )
    merged = merged_image(frames, found, EDGE_AWARE)
    assert len(merged) == 1
    assert merged.corners is not None
    polygon, expected = shapely.Polygon(merged.corners[0]), shapely.Polygon(np.add(whole, (0, 24)))
    assert polygon.intersection(expected).area / polygon.union(expected).area > 0.8


def test_oriented_and_upright_detections_are_not_mixed() -> None:
    frames = small_frames(crop=(112, 64), global_size=112, tile_size=64, frame="native")
    turned = oriented([turned_rectangle(20, 20, 10, 5, 30)], [0.9])
    upright = Detections(turned.boxes, turned.scores, turned.labels)
    with pytest.raises(ValueError, match="found 1 of 2"):
        merged_image(frames, [turned, upright], EDGE_AWARE)
