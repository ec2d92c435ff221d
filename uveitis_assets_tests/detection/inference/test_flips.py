"""Flips as test-time augmentation: the same lesions for a detector that cares not for sides."""

import numpy as np
import pytest
import torch

from uveitis_assets.detection.configuration import Flip, InferenceConfiguration
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.inference.flips import flipped, flipped_back
from uveitis_assets.detection.inference.predict_images import predict_images
from uveitis_assets_tests.detection.inference.test_predict_images import PaintedImage, painted_image
from uveitis_assets_tests.detection.known_detectors import PaintedBoxDetector

FLIPS: list[Flip] = ["none", "horizontal", "vertical", "both"]


@pytest.mark.parametrize("flip", FLIPS)
def test_what_is_found_in_a_mirrored_tile_lies_on_the_same_pixels(flip: Flip) -> None:
    tile = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    shown = flipped(tile, flip)
    box = np.array([[12, 5, 30, 41]], np.float32)
    corners = np.array([[[12, 5], [30, 5], [30, 41], [12, 41]]], np.float32)
    found = Detections(box, np.ones(1, np.float32), np.ones(1, np.int64), corners)
    [back] = flipped_back([found], [tile], flip)
    x0, y0, x1, y1 = back.boxes[0].astype(int)
    np.testing.assert_array_equal(np.sort(shown[5:41, 12:30].ravel()), np.sort(tile[y0:y1, x0:x1].ravel()))
    assert back.corners is not None
    np.testing.assert_array_equal(back.corners[0].min(axis=0), [x0, y0])
    np.testing.assert_array_equal(back.corners[0].max(axis=0), [x1, y1])


@pytest.fixture
def images(tmp_path: object) -> list[PaintedImage]:
    return [painted_image(tmp_path, f"{n}", {1: (n, 5, n + 10, 20), 3: (70, 60, 91, 80)}) for n in range(3)]  # type: ignore[arg-type]


@pytest.mark.parametrize("merge", ["nms", "weighted_box_fusion"])
def test_all_flips_of_a_perfect_detector_agree(images: list[PaintedImage], merge: str) -> None:
    model = PaintedBoxDetector()

    def boxes(flips: list[Flip]) -> list[list[tuple[int, list[float]]]]:
        options = InferenceConfiguration.model_validate({"flips": flips, "merge": merge})
        found = [result for _, result in predict_images([model], images, options, device="cpu")]
        return [sorted(zip(part.labels.tolist(), part.boxes.tolist(), strict=True)) for part in found]

    once = boxes(["none"])
    passes = sum(model.passes)
    assert boxes(FLIPS) == once
    assert sum(model.passes) == 5 * passes


class LeftHalfDetector(torch.nn.Module):
    """Sees painted boxes in the left half of a tile only."""

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        masked = [image * (torch.arange(image.shape[2]) < image.shape[2] // 2) for image in images]
        return PaintedBoxDetector()(masked)


def test_a_flip_shows_what_a_lopsided_detector_misses(tmp_path: object) -> None:
    image = painted_image(tmp_path, "eye", {1: (45, 5, 60, 20)})  # type: ignore[arg-type]

    def found(flips: list[Flip]) -> int:
        options = InferenceConfiguration.model_validate({"flips": flips})
        [(_, result)] = predict_images([LeftHalfDetector()], [image], options, device="cpu")
        return int((result.boxes == [45, 5, 60, 20]).all(axis=1).sum())

    one_tile = found(["horizontal"])
    assert found(["none", "horizontal"]) >= one_tile
    assert found(["none", "horizontal"]) == 1
