import copy
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from uveitis_assets.detection.data.tile_dataset import TileDataset
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.inference.tile_inference import detect_tiles, tiles_per_pass
from uveitis_assets.detection.model_configuration import ModelConfiguration
from uveitis_assets.detection.models.detector import build_detector
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.detection.known_detectors import PaintedBoxDetector, painted
from uveitis_assets_tests.detection.squares import squares_split

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """A small detector with random weights that finds something everywhere."""
    torch.manual_seed(3)
    configuration = ModelConfiguration(
        backbone="timm_fpn",
        timm_model="resnet18",
        norm="group",
        input_size=96,
        n_categories=3,
        rpn_pre_nms_test=200,
        rpn_post_nms_test=60,
        detections_per_tile=30,
    )
    model = build_detector(configuration)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.normal_(0, 0.5)
    return model.eval()


def noise_tiles(n: int, size: int = 96) -> list[np.ndarray]:
    return [np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8) for seed in range(n)]


def rows(found: Detections) -> list[tuple[float, ...]]:
    return sorted(
        (*box, score, label)
        for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    )


def test_tiles_are_seen_as_rgb_between_0_and_1_and_come_back_in_their_order() -> None:
    class Means(torch.nn.Module):
        def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            return [
                {
                    "boxes": torch.tensor([[0.0, 0.0, 1.0, 1.0]]),
                    "scores": image.mean(dim=(1, 2))[:1],
                    "labels": torch.tensor([1]),
                }
                for image in images
            ]

    tiles = [np.full((8, 8, 3), (red, 7, 9), np.uint8) for red in (255, 51, 0, 102)]
    tiles[1] = np.full((4, 16, 3), (51, 7, 9), np.uint8)
    found = detect_tiles(Means(), tiles, batch_size=3, device=CPU, amp=False)
    assert [round(float(one.scores[0]), 4) for one in found] == [1.0, 0.2, 0.0, 0.4]


def test_tiles_of_all_sizes_are_batched_with_their_like() -> None:
    model = PaintedBoxDetector()
    tiles = [painted(32, 32, {1: (1, 2, 9, 8)})] * 5 + [painted(32, 20, {2: (3, 3, 7, 7)})] * 2
    found = detect_tiles(model, tiles, batch_size=4, device=CPU, amp=False)
    assert model.passes == [4, 1, 2]
    assert [one.boxes.tolist() for one in found] == [[[1, 2, 9, 8]]] * 5 + [[[3, 3, 7, 7]]] * 2


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    model = PaintedBoxDetector(most_tiles=2)
    tiles = [painted(16, 16, {1: (n, 0, n + 3, 4)}) for n in range(9)]
    found = detect_tiles(model, tiles, batch_size=8, device=CPU, amp=False)
    assert model.passes == [2, 2, 2, 2, 1]
    assert [one.boxes[0, 0] for one in found] == list(range(9))


def test_a_single_tile_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        detect_tiles(PaintedBoxDetector(most_tiles=0), [painted(8, 8, {})], batch_size=4, device=CPU, amp=False)


def test_other_errors_of_the_network_are_not_taken_for_a_lack_of_memory() -> None:
    class Broken(torch.nn.Module):
        def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        detect_tiles(Broken(), [painted(8, 8, {})] * 2, batch_size=2, device=CPU, amp=False)


def test_a_network_gives_equal_bits_whatever_the_order_of_tiles_on_the_cpu(network: torch.nn.Module) -> None:
    tiles = noise_tiles(6)
    size = tiles_per_pass(CPU, 8)
    forwards = detect_tiles(network, tiles, batch_size=size, device=CPU, amp=False)
    backwards = detect_tiles(network, tiles[::-1], batch_size=size, device=CPU, amp=False)[::-1]
    assert sum(len(one) for one in forwards) > 20
    for one, other in zip(forwards, backwards, strict=True):
        assert np.array_equal(one.boxes, other.boxes)
        assert np.array_equal(one.scores, other.scores)
        assert np.array_equal(one.labels, other.labels)


@pytest.mark.parametrize("batch_size", [2, 3, 6])
def test_a_network_finds_the_same_in_batches_of_any_size(network: torch.nn.Module, batch_size: int) -> None:
    tiles = noise_tiles(6)
    alone = detect_tiles(network, tiles, batch_size=1, device=CPU, amp=False)
    together = detect_tiles(network, tiles, batch_size=batch_size, device=CPU, amp=False)
    for one, other in zip(alone, together, strict=True):
        assert len(one) == len(other)
        assert np.allclose(rows(one), rows(other), atol=1 / 64 + 1e-6)


def test_values_lie_on_the_documented_grid(network: torch.nn.Module) -> None:
    found = detect_tiles(network, noise_tiles(1), batch_size=1, device=CPU, amp=False)[0]
    assert np.array_equal(found.boxes * 64, np.round(found.boxes * 64))
    assert np.array_equal(found.scores, np.round(found.scores.astype(np.float64), 4).astype(np.float32))


def test_the_model_comes_back_in_the_mode_it_came_in(network: torch.nn.Module) -> None:
    network.train()
    network.backbone.eval()
    try:
        detect_tiles(network, noise_tiles(1), batch_size=1, device=CPU, amp=False)
        assert network.training
        assert network.roi_heads.training
        assert not network.backbone.training
    finally:
        network.eval()


def test_oriented_corners_are_passed_on() -> None:
    class Oriented(torch.nn.Module):
        def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            corners = torch.tensor([[[2.0, 0.0], [4.0, 2.0], [2.0, 4.0], [0.0, 2.0]]])
            boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
            return [
                {
                    "boxes": boxes,
                    "scores": torch.ones(1),
                    "labels": torch.ones(1, dtype=torch.int64),
                    "corners": corners,
                }
            ] * len(images)

    found = detect_tiles(Oriented(), [painted(8, 8, {})], batch_size=1, device=CPU, amp=False)[0]
    assert found.corners is not None
    assert found.corners.tolist() == [[[2, 0], [4, 2], [2, 4], [0, 2]]]


def test_nan_from_damaged_weights_is_refused() -> None:
    class Diverged(torch.nn.Module):
        def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            nan = torch.full((1, 4), float("nan"))
            return [{"boxes": nan, "scores": torch.ones(1), "labels": torch.ones(1, dtype=torch.int64)}]

    with pytest.raises(ValueError, match="boxes: expected finite values"):
        detect_tiles(Diverged(), [painted(8, 8, {})], batch_size=1, device=CPU, amp=False)


@pytest.mark.parametrize("part", ["rpn.head.cls_logits", "roi_heads.box_predictor.cls_score"])
def test_damaged_weights_do_not_pass_for_weights_that_find_nothing(network: torch.nn.Module, part: str) -> None:
    damaged = copy.deepcopy(network)
    with torch.no_grad():
        damaged.get_submodule(part).bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="the weights are damaged, or the training diverged"):
        detect_tiles(damaged, noise_tiles(1), batch_size=1, device=CPU, amp=False)


@pytest.mark.parametrize(
    "tile", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8)]
)
def test_what_is_no_tile_is_refused(tile: np.ndarray) -> None:
    with pytest.raises(ValueError, match="tile 0: expected uint8 of shape"):
        detect_tiles(PaintedBoxDetector(), [tile], batch_size=1, device=CPU, amp=False)


@pytest.mark.parametrize("size", [(96, 96), (150, 150), (60, 60), (150, 80), (31, 47)])
def test_the_network_sees_a_tile_in_inference_as_it_saw_it_in_training(
    network: torch.nn.Module, store: ArtefactStore, size: tuple[int, int]
) -> None:
    (height, width) = size
    pixels = np.random.default_rng(1).integers(0, 255, (height, width, 3), np.uint8)
    seen: list[torch.Tensor] = []
    with network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone())):
        detect_tiles(network, [pixels], batch_size=1, device=CPU, amp=False)
        (image,) = squares_split(store, 1).images
        (tile,) = image.tiles
        cv2.imwrite(str(tile.file), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        tiles = (replace(tile, width=width, height=height),)
        item, target = TileDataset([replace(image, tiles=tiles)], None, seed=1, input_size=96)[0]
        network.train()
        try:
            network([item.float() / 255], [{"boxes": target["boxes"], "labels": target["labels"]}])
        finally:
            network.eval()
    assert torch.equal(*seen)


class FixedSizePaintedBoxDetector(PaintedBoxDetector):
    """Works on 64 px and finds a box over the whole input besides, and one in its lower right corner."""

    transform = SimpleNamespace(max_size=64)

    def _found(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        assert tuple(image.shape) == (3, 64, 64)
        found = super()._found(image)
        more = torch.tensor([[0.0, 0.0, 64.0, 64.0], [60.0, 60.0, 64.0, 64.0]])
        return {
            "boxes": torch.cat([found["boxes"], more]),
            "scores": torch.cat([found["scores"], torch.ones(2)]),
            "labels": torch.cat([found["labels"], torch.full((2,), 9)]),
        }


def test_tiles_of_all_sizes_share_a_pass_of_a_network_of_one_size_and_detections_come_back_in_tile_pixels() -> None:
    model = FixedSizePaintedBoxDetector()
    tiles = [painted(128, 96, {1: (10, 20, 40, 90)}), painted(32, 64, {2: (3, 5, 60, 30)}), painted(64, 64, {})]
    found = detect_tiles(model, tiles, batch_size=3, device=CPU, amp=False)
    assert model.passes == [3]
    corner = [60, 60, 64, 64]
    assert found[0].boxes.tolist() == [[10, 20, 40, 90], [0, 0, 96, 128]], "its corner is padding"
    assert found[1].boxes.tolist() == [[3, 5, 60, 30], [0, 0, 64, 32]]
    assert found[2].boxes.tolist() == [[0, 0, 64, 64], corner]
    assert [one.labels.tolist() for one in found] == [[1, 9], [2, 9], [9, 9]]


def test_no_tiles_give_no_detections() -> None:
    assert detect_tiles(PaintedBoxDetector(), [], batch_size=2, device=CPU, amp=False) == []
