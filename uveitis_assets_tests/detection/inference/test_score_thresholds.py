"""What is written is what was evaluated, from the score threshold on: merging itself knows no threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from uveitis_assets.detection.configuration import InferenceConfiguration
from uveitis_assets.detection.data.tile_files import Pixels
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.inference.merging import merge_detectors
from uveitis_assets.detection.inference.predict_images import predict_images
from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets_tests.detection.inference.one_image import merged_image
from uveitis_assets_tests.detection.known_detectors import detections, small_frames

METHODS = ("nms", "edge_aware", "weighted_box_fusion")


def crowded(frames: ImageFrames, seed: int, *, oriented: bool = False) -> list[Detections]:
    """Overlapping boxes of two classes in every tile, with scores of all heights and many at the tiles' edges."""
    rng = np.random.default_rng(seed)
    of_tiles = []
    for tile in frames.tiles:
        low = rng.integers(-2, 50, (25, 2))
        high = np.minimum(low + rng.integers(4, 40, (25, 2)), (tile.width, tile.height))
        boxes = np.hstack([np.maximum(low, 0), high]).astype(np.float32)
        scores = np.round(rng.uniform(0, 1, 25) ** 2, 4).astype(np.float32)
        x0, y0, x1, y1 = boxes.T
        corners = np.stack([x0, y0, x1, y0, x1, y1, x0, y1], axis=1).reshape(-1, 4, 2) if oriented else None
        of_tiles.append(Detections(boxes, scores, rng.integers(1, 3, 25), corners))
    return of_tiles


def at_least(found: Detections, score: float) -> tuple[Any, ...]:
    rows = found.scores >= np.float32(score)
    return found.boxes[rows].tolist(), found.scores[rows].tolist(), found.labels[rows].tolist()


@pytest.mark.parametrize("n_detectors", [1, 3])
@pytest.mark.parametrize("merge", METHODS)
@pytest.mark.parametrize("frame", ["global", "native"])
def test_written_detections_are_the_evaluated_ones_above_the_threshold(
    merge: str, n_detectors: int, frame: str
) -> None:
    frames = [small_frames(frame=frame, crop=(200, 180))] * 4
    found = [[crowded(one, 10 * seed + at) for at, one in enumerate(frames)] for seed in range(n_detectors)]
    options = {"merge": merge, "merge_iou": 0.4}
    evaluated = merge_detectors(frames, found, InferenceConfiguration(score_threshold=0.0, **options))
    for threshold in (0.1, 0.3, 0.7):
        written = merge_detectors(frames, found, InferenceConfiguration(score_threshold=threshold, **options))
        for judged, kept in zip(evaluated, written, strict=True):
            assert at_least(judged, threshold) == at_least(kept, 0.0)
            assert threshold > 0.1 or 0 < len(kept) < len(judged)


@pytest.mark.parametrize("merge", ["nms", "edge_aware"])
def test_so_are_oriented_ones(merge: str) -> None:
    frames = [small_frames()]
    found = [[crowded(frames[0], 3, oriented=True)]]
    judged, kept = (
        merge_detectors(frames, found, InferenceConfiguration(score_threshold=threshold, merge=merge))[0]
        for threshold in (0.0, 0.4)
    )
    assert at_least(judged, 0.4) == at_least(kept, 0.0)


@pytest.mark.parametrize("threshold", [0.0, 0.3])
@pytest.mark.parametrize("merge", METHODS)
def test_chance_findings_beside_a_sure_one_leave_its_score(merge: str, threshold: float) -> None:
    box = (10, 10, 50, 50)
    found = detections([(box, 0.9, 1), ((10, 11, 50, 50), 0.03, 1), ((11, 10, 50, 50), 0.02, 1)])
    merged = merged_image(
        small_frames(tile_size=256), [found], InferenceConfiguration(merge=merge, score_threshold=threshold)
    )
    assert merged.scores.tolist() == pytest.approx([0.9])
    assert merged.boxes.tolist() == [list(box)]


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_a_large_chance_finding_does_not_swallow_a_sure_piece_at_a_seam(threshold: float) -> None:
    frames = small_frames()
    of_tiles = [Detections.empty()] * len(frames.tiles)
    of_tiles[0] = detections([((40, 20, 64, 40), 0.9, 1), ((5, 5, 63, 60), 0.02, 1)])
    merged = merged_image(frames, of_tiles, InferenceConfiguration(merge="edge_aware", score_threshold=threshold))
    assert merged.scores[0] == pytest.approx(0.9)


class Scored(torch.nn.Module):
    """Finds one box with a fixed score in every tile."""

    def __init__(self, score: float) -> None:
        super().__init__()
        self.score = score

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        one = {"boxes": torch.tensor([[10.0, 10.0, 30.0, 30.0]]), "labels": torch.tensor([1])}
        return [{**one, "scores": torch.tensor([self.score])} for _ in images]


class Image:
    """One tile of black pixels."""

    image_id = "clinic::one"
    frames = small_frames(tile_size=256)


def test_an_ensemble_counts_its_detectors_doubts_whatever_is_written() -> None:
    def read(image: Image) -> list[Pixels]:
        return [np.zeros((tile.height, tile.width, 3), np.uint8) for tile in image.frames.tiles]

    scores = {}
    for threshold in (0.0, 0.3, 0.5):
        configuration = InferenceConfiguration(merge="weighted_box_fusion", score_threshold=threshold)
        models = [Scored(0.8), Scored(0.7), Scored(0.2)]
        ((_, found),) = predict_images(models, [Image()], configuration, device="cpu", read_tiles=read)
        scores[threshold] = found.scores.tolist()
    # Solovyev et al., 2021: the mean of three detectors' scores.
    assert scores == {threshold: pytest.approx([(0.8 + 0.7 + 0.2) / 3]) for threshold in (0.0, 0.3, 0.5)}
