import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import nms

from uveitis_assets.detection.configuration import InferenceConfiguration
from uveitis_assets.detection.inference.batched_nms import batched_nms, overlapping_pairs
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.inference.merging import fuse_detectors, merge_images
from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets_tests.detection.inference.one_image import merged_image
from uveitis_assets_tests.detection.known_detectors import detections, small_frames

NMS = InferenceConfiguration(score_threshold=0.3, merge_iou=0.5)


def random_tile_detections(frames: ImageFrames, seed: int, n: int = 25) -> list[Detections]:
    """Clustered boxes, so that many overlap; scores on a coarse grid, so that many are equal."""
    random = np.random.default_rng(seed)
    found = []
    for tile in frames.tiles:
        centres = random.choice(random.uniform(0, tile.width, (6, 2)), n) + random.normal(0, 3, (n, 2))
        half = random.uniform(2, 15, (n, 2))
        boxes = np.clip(np.hstack([centres - half, centres + half]), 0, tile.width).astype(np.float32)
        boxes[:, :2] = np.minimum(boxes[:, :2], tile.width - 1)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        scores = random.integers(0, 40, n) / 40
        found.append(Detections(boxes, scores.astype(np.float32), random.integers(1, 4, n)))
    return found


def earlier_way(
    frames: ImageFrames, tile_detections: list[Detections], score: float, iou: float
) -> set[tuple[float, ...]]:
    """Threshold, shift by x0, y0, torchvision's NMS for one class after the other."""
    kept = set()
    shifted = [
        (*np.add(box, (tile.x0, tile.y0, tile.x0, tile.y0), dtype=np.float64), float(score), int(label))
        for tile, found in zip(frames.tiles, tile_detections, strict=True)
        for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True)
    ]
    # torchvision keeps the first of equal scores in an order of its own; presenting them sorted settles that.
    rows = sorted(row for row in shifted if np.float32(row[4]) >= np.float32(score))
    for label in {row[5] for row in rows}:
        of_label = sorted((row for row in rows if row[5] == label), key=lambda row: -row[4])
        boxes = torch.tensor([row[:4] for row in of_label], dtype=torch.float64)
        # Distinct scores in this order.
        scores = torch.arange(len(of_label), 0, -1, dtype=torch.float64)
        kept |= {of_label[index] for index in nms(boxes, scores, iou).tolist()}
    return kept


def rows_of(found: Detections) -> list[tuple[float, ...]]:
    return [
        (*box, score, label)
        for box, score, label in zip(
            found.boxes.astype(np.float64).tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        )
    ]


@pytest.mark.parametrize("seed", range(8))
def test_nms_merging_equals_the_earlier_way_with_torchvision(seed: int) -> None:
    frames = small_frames()
    of_tiles = random_tile_detections(frames, seed)
    merged = merged_image(frames, of_tiles, NMS)
    expected = earlier_way(frames, of_tiles, 0.3, 0.5)
    assert len(merged) == len(expected) > 50
    assert np.allclose(sorted(rows_of(merged)), sorted(expected), atol=1e-4)


def test_many_images_together_merge_as_each_alone() -> None:
    frames = [small_frames(), small_frames(crop=(300, 200)), small_frames(frame="native", crop=(150, 130))]
    of_images = [random_tile_detections(one, seed) for seed, one in enumerate(frames)]
    together = merge_images(frames, of_images, NMS)
    for one, of_tiles, merged in zip(frames, of_images, together, strict=True):
        assert rows_of(merged_image(one, of_tiles, NMS)) == rows_of(merged)


def test_the_order_of_a_tiles_detections_does_not_matter() -> None:
    frames = small_frames()
    of_tiles = random_tile_detections(frames, 5)
    turned = [found.select(np.random.default_rng(1).permutation(len(found))) for found in of_tiles]
    assert rows_of(merged_image(frames, of_tiles, NMS)) == rows_of(merged_image(frames, turned, NMS))


def test_detections_come_best_first_and_ties_by_category_and_place() -> None:
    frames = small_frames(tile_size=256)
    found = detections(
        [((50, 50, 60, 60), 0.5, 2), ((9, 9, 20, 20), 0.5, 1), ((4, 9, 8, 20), 0.5, 1), ((90, 90, 99, 99), 0.9, 3)]
    )
    merged = merged_image(frames, [found], NMS)
    assert merged.labels.tolist() == [3, 1, 1, 2]
    assert merged.boxes[:, 0].tolist() == [90, 4, 9, 50]


def test_a_score_equal_to_the_threshold_is_kept_also_where_float32_lies_below_it() -> None:
    frames = small_frames(tile_size=256)
    for threshold in (0.3, 0.7, 0.1):
        merged = merged_image(
            frames, [detections([((1, 1, 9, 9), threshold, 1)])], InferenceConfiguration(score_threshold=threshold)
        )
        assert len(merged) == 1


def test_native_tiles_land_in_the_global_image() -> None:
    frames = small_frames(frame="native", crop=(100, 50), global_size=200, tile_size=64)
    tile = next(number for number, tile in enumerate(frames.tiles) if tile.x0 == 36)
    of_tiles = [Detections.empty()] * len(frames.tiles)
    of_tiles[tile] = detections([((10, 5, 30, 25), 0.8, 4)])
    # Crop 100x50 is padded by 25 above and below, then doubled.
    assert merged_image(frames, of_tiles, NMS).boxes.tolist() == [[92, 60, 132, 100]]


def test_boxes_are_clipped_to_the_image_and_those_in_the_black_margin_are_left_out() -> None:
    frames = small_frames(crop=(256, 128), tile_size=256)
    found = detections([((-3, 100, 20, 120), 0.9, 1), ((250, 100, 270, 140), 0.9, 2), ((10, 5, 40, 30), 0.9, 3)])
    merged = merged_image(frames, [found], NMS)
    assert merged.boxes.tolist() == [[0, 100, 20, 120], [250, 100, 256, 140]]


def test_another_number_of_tiles_than_the_frames_have_is_refused() -> None:
    with pytest.raises(ValueError, match="image 1: expected detections of 1 tiles, found 2"):
        merge_images([small_frames(tile_size=256)] * 2, [[Detections.empty()], [Detections.empty()] * 2], NMS)


def test_images_without_detections_stay_without() -> None:
    frames = [small_frames(tile_size=256)] * 2
    merged = merge_images(frames, [[Detections.empty()], [detections([((1, 1, 5, 5), 0.9, 1)])]], NMS)
    assert [len(one) for one in merged] == [0, 1]
    assert merge_images([], [], NMS) == []


def test_an_ensemble_keeps_one_of_the_detectors_boxes() -> None:
    frames = small_frames(tile_size=256)
    one = merged_image(frames, [detections([((10, 10, 30, 30), 0.9, 1), ((60, 60, 70, 70), 0.5, 2)])], NMS)
    other = merged_image(frames, [detections([((11, 10, 31, 30), 0.8, 1)])], NMS)
    fused = fuse_detectors([frames], [[one], [other]], NMS)[0]
    assert fused.boxes.tolist() == [[10, 10, 30, 30], [60, 60, 70, 70]]


boxes_strategy = st.lists(
    st.tuples(*[st.integers(0, 40)] * 2, *[st.integers(1, 20)] * 2, st.integers(0, 3)), max_size=40
)


@settings(max_examples=80)
@given(boxes_strategy, st.sampled_from([0.0, 0.3, 0.5, 1 / 3]))
def test_suppression_equals_the_greedy_loop(rows: list[tuple[int, ...]], iou: float) -> None:
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, _ in rows], np.float64).reshape(-1, 4)
    groups = np.array([row[4] for row in rows], np.int64)
    kept = batched_nms(boxes, groups, iou)

    expected: list[int] = []
    for row in range(len(rows)):
        if all(groups[row] != groups[other] or independent_iou(boxes[row], boxes[other]) <= iou for other in expected):
            expected.append(row)
    assert np.flatnonzero(kept).tolist() == expected


def independent_iou(one: np.ndarray, other: np.ndarray) -> float:
    from shapely import box

    a, b = box(*one), box(*other)
    shared = a.intersection(b).area
    return shared / (a.area + b.area - shared)


def test_pairs_found_in_small_chunks_are_the_same() -> None:
    random = np.random.default_rng(0)
    corner = random.uniform(0, 50, (300, 2))
    boxes = np.hstack([corner, corner + random.uniform(1, 12, (300, 2))])
    groups = random.integers(0, 3, 300)
    whole = {
        tuple(sorted(pair))
        for a, b in overlapping_pairs(boxes, groups)
        for pair in zip(a.tolist(), b.tolist(), strict=True)
    }
    parts = list(overlapping_pairs(boxes, groups, pairs_per_chunk=7))
    assert len(parts) > 50
    assert {tuple(sorted(pair)) for a, b in parts for pair in zip(a.tolist(), b.tolist(), strict=True)} == whole
    brute = {
        (a, b)
        for a in range(300)
        for b in range(a + 1, 300)
        if groups[a] == groups[b]
        and (np.minimum(boxes[a, 2:], boxes[b, 2:]) > np.maximum(boxes[a, :2], boxes[b, :2])).all()
    }
    assert whole == brute
