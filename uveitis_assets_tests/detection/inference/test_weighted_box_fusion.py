import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from uveitis_assets.detection.configuration import InferenceConfiguration
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.inference.merging import fuse_detectors, merge_images
from uveitis_assets_tests.detection.inference.one_image import merged_image
from uveitis_assets_tests.detection.known_detectors import detections, small_frames

FUSION = InferenceConfiguration(merge="weighted_box_fusion", score_threshold=0.0, merge_iou=0.5)
FRAMES = small_frames(tile_size=256)


def test_two_boxes_become_their_mean_weighted_by_score() -> None:
    found = detections([((10, 10, 50, 50), 0.9, 1), ((14, 10, 54, 50), 0.3, 1)])
    merged = merged_image(FRAMES, [found], FUSION)
    assert merged.boxes[0].tolist() == pytest.approx([11, 10, 51, 50])
    assert merged.scores.tolist() == pytest.approx([0.6])


def test_a_lesion_that_one_of_three_detectors_finds_scores_a_third() -> None:
    found = detections([((10, 10, 50, 50), 0.9, 1)])
    agreed = [[detections([((10, 10, 50, 50), 0.9, 1)])] for _ in range(3)]
    alone = [[found], [Detections.empty()], [Detections.empty()]]
    assert fuse_detectors([FRAMES], agreed, FUSION)[0].scores.tolist() == pytest.approx([0.9])
    assert fuse_detectors([FRAMES], alone, FUSION)[0].scores.tolist() == pytest.approx([0.3])
    strict = FUSION.model_copy(update={"score_threshold": 0.5})
    assert len(fuse_detectors([FRAMES], alone, strict)[0]) == 0


def test_an_ensemble_averages_what_its_detectors_see_in_different_places() -> None:
    one, other = detections([((10, 10, 50, 50), 0.8, 1)]), detections([((12, 10, 52, 50), 0.8, 1)])
    for merge in ("weighted_box_fusion", "edge_aware"):
        configuration = InferenceConfiguration(merge=merge)
        fused = fuse_detectors([FRAMES], [[one], [other]], configuration)[0]
        assert fused.boxes[0].tolist() == pytest.approx([11, 10, 51, 50])


def test_oriented_boxes_are_refused() -> None:
    corners = np.array([[[2, 0], [4, 2], [2, 4], [0, 2]]], np.float32)
    found = Detections(np.array([[0, 0, 4, 4]], np.float32), np.ones(1, np.float32), np.ones(1, np.int64), corners)
    with pytest.raises(ValueError, match="merge them by nms or edge_aware"):
        merged_image(FRAMES, [found], FUSION)


def fused_one_by_one(rows: list[tuple[tuple[int, ...], float, int]], iou: float) -> list[tuple[float, ...]]:
    """The published procedure for one image, a box at a time."""
    result = []
    for label in {row[2] for row in rows}:
        clusters: list[list[tuple[tuple[int, ...], float, int]]] = []
        fused: list[np.ndarray] = []
        for row in sorted((row for row in rows if row[2] == label), key=lambda row: (-row[1], row[0])):
            overlaps = [overlap(np.array(row[0]), box) for box in fused]
            best = int(np.argmax(overlaps)) if overlaps else -1
            if overlaps and overlaps[best] > iou:
                clusters[best].append(row)
                weights = [member[1] for member in clusters[best]]
                fused[best] = np.average([member[0] for member in clusters[best]], axis=0, weights=weights)
            else:
                clusters.append([row])
                fused.append(np.array(row[0], float))
        for members, box in zip(clusters, fused, strict=True):
            result.append((*box, np.mean([member[1] for member in members]), label))
    return sorted(result)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    a, b = shapely.box(*one), shapely.box(*other)
    return a.intersection(b).area / a.union(b).area


rows_strategy = st.lists(
    st.tuples(
        st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(5, 25), st.integers(5, 25)),
        st.sampled_from([0.25, 0.5, 0.75, 1.0]),
        st.integers(1, 2),
    ),
    max_size=25,
)


@settings(max_examples=50)
@given(st.lists(rows_strategy, min_size=1, max_size=3), st.sampled_from([0.35, 0.513]))
def test_many_images_together_are_fused_as_by_the_published_loop(
    images: list[list[tuple[tuple[int, ...], float, int]]], iou: float
) -> None:
    as_boxes = [[((x, y, x + w, y + h), score, label) for (x, y, w, h), score, label in rows] for rows in images]
    configuration = FUSION.model_copy(update={"merge_iou": iou})
    merged = merge_images([FRAMES] * len(images), [[detections(rows)] for rows in as_boxes], configuration)
    for rows, found in zip(as_boxes, merged, strict=True):
        expected = fused_one_by_one(rows, iou)
        got = sorted(
            (*box, score, label)
            for box, score, label in zip(
                found.boxes.astype(float).tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
            )
        )
        assert len(got) == len(expected)
        assert np.allclose(np.reshape(got, (-1, 6)), np.reshape(expected, (-1, 6)), atol=1e-3)
