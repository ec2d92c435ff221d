"""A GPU gives the CPU's results: losses and gradients, detections, rotated boxes, and a whole training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from uveitis_assets.detection.checkpoints.loading import load_trained_detector
from uveitis_assets.detection.inference.tile_inference import detect_tiles
from uveitis_assets.detection.model_configuration import ModelConfiguration
from uveitis_assets.detection.models.detector import build_detector
from uveitis_assets.detection.models.freezing import parameter_groups
from uveitis_assets.detection.models.per_class_nms import per_class_nms
from uveitis_assets.detection.models.rotated_boxes import corners_from_rectangles, rotated_iou, rotated_nms
from uveitis_assets.detection.training.train_detector import train_detector
from uveitis_assets.training.configuration import TrainingConfiguration
from uveitis_assets_tests.detection.models.tiny_transformer import tiny_configuration, use_tiny_shapes
from uveitis_assets_tests.detection.squares import TINY, squares_split, store_at, tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no usable CUDA device"),
]

GPU = "cuda"
# 255 anchors, fewer than the losses sample, and no cut among proposals: nothing is left to the devices' random numbers.
ALL_PROPOSALS = {
    "finest_stride": 8,
    "anchor_sizes": ((12,), (20,), (32,), (48,)),
    "rpn_pre_nms_train": 1000,
    "rpn_post_nms_train": 1000,
    "rpn_pre_nms_test": 1000,
    "rpn_post_nms_test": 1000,
    "detections_per_tile": 1000,
}
BOXES = torch.tensor([[6.0, 8.0, 30.0, 32.0], [40.0, 36.0, 60.0, 52.0]])
DETECTORS = ["convolutional", "cascade", "oriented transformer"]


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    """TensorFloat-32 in convolutions keeps ten bits, which would hide mistakes of that size."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_shapes(monkeypatch)


def configuration(kind: str) -> ModelConfiguration:
    if kind == "convolutional":
        return ModelConfiguration(**{**TINY["model"], **ALL_PROPOSALS})
    if kind == "cascade":
        return ModelConfiguration(**{**TINY["model"], **ALL_PROPOSALS, "head_stages": 3})
    return tiny_configuration(**ALL_PROPOSALS, head="oriented", n_categories=2)


def detector(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return build_detector(configuration(kind))


def tile() -> Tensor:
    """Two coloured rectangles where ``BOXES`` are, uint8 (64, 64, 3)."""
    image = torch.full((64, 64, 3), 90, dtype=torch.uint8)
    for (x0, y0, x1, y1), channel in zip(BOXES.int().tolist(), (0, 2), strict=True):
        image[y0:y1, x0:x1, channel] = 255
    return image


def losses_of(model: nn.Module, device: str) -> dict[str, Tensor]:
    target = {
        "boxes": BOXES,
        "labels": torch.tensor([1, 2]),
        "corners": BOXES[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2),
    }
    image = tile().permute(2, 0, 1).float() / 255
    losses: dict[str, Tensor] = model([image.to(device)], [{name: value.to(device) for name, value in target.items()}])
    return losses


def one_step(model: nn.Module, device: str, *, amp: bool) -> tuple[dict[str, float], Tensor]:
    """Losses and all gradients in one vector, of a copy of the model on the device."""
    own = copy.deepcopy(model).to(device).train()
    with torch.autocast(device, dtype=torch.bfloat16, enabled=amp):
        losses = losses_of(own, device)
    sum(losses.values()).backward()
    gradients = [parameter.grad.cpu().flatten() for parameter in own.parameters()]
    return {name: loss.item() for name, loss in losses.items()}, torch.cat(gradients)


def trained(kind: str) -> nn.Module:
    """A detector that knows the tile, trained on the CPU."""
    model = detector(kind).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, TrainingConfiguration(learning_rate=2e-3)))
    for _ in range(80):
        optimizer.zero_grad()
        sum(losses_of(model, "cpu").values()).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_training_step_has_the_losses_and_gradients_of_the_cpu(kind: str) -> None:
    model = detector(kind)
    expected, expected_gradients = one_step(model, "cpu", amp=False)
    found, gradients = one_step(model, GPU, amp=False)
    assert found == pytest.approx(expected, rel=1e-3)
    assert (gradients - expected_gradients).norm() < 1e-2 * expected_gradients.norm()


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_training_step_in_bfloat16_comes_close(kind: str) -> None:
    model = detector(kind)
    expected, expected_gradients = one_step(model, "cpu", amp=False)
    found, gradients = one_step(model, GPU, amp=True)
    assert sum(found.values()) == pytest.approx(sum(expected.values()), rel=0.05)
    assert torch.cosine_similarity(gradients, expected_gradients, dim=0) > 0.95


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_prediction_has_the_detections_of_the_cpu(kind: str) -> None:
    model = trained(kind)
    tiles = [np.ascontiguousarray(tile().numpy()[::step, ::other]) for step, other in ((1, 1), (-1, 1), (1, -1))]
    expected = detect_tiles(model, tiles, batch_size=1, device="cpu", amp=False)
    found = detect_tiles(model.to(GPU), tiles, batch_size=3, device=GPU, amp=False)
    rounded = detect_tiles(model, tiles, batch_size=3, device=GPU, amp=True)
    assert (expected[0].scores > 0.5).sum() >= 2
    for on_cpu, on_gpu in zip(expected, found, strict=True):
        sure, also = (part.select(part.scores > 0.5) for part in (on_cpu, on_gpu))
        np.testing.assert_array_equal(also.labels, sure.labels)
        np.testing.assert_allclose(also.boxes, sure.boxes, atol=0.05)
        np.testing.assert_allclose(also.scores, sure.scores, atol=2e-3)
        if sure.corners is not None:
            np.testing.assert_allclose(also.corners, sure.corners, atol=0.1)
    best = box_iou(BOXES, torch.from_numpy(rounded[0].select(rounded[0].scores > 0.5).boxes))
    assert (best.amax(1) > 0.6).all()


def test_overlaps_and_suppression_of_rotated_boxes_are_those_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor([0.0, 0.0, 4.0, 4.0, -1.5]), torch.tensor([200.0, 200.0, 60.0, 30.0, 1.5])
    corners = corners_from_rectangles(low + (high - low) * torch.rand(400, 5, generator=generator))
    scores = torch.rand(400, generator=generator)
    labels = torch.randint(1, 4, (400,), generator=generator)
    expected = rotated_iou(corners, corners)
    assert (expected > 0.5).sum() > 400
    torch.testing.assert_close(rotated_iou(corners.to(GPU), corners.to(GPU)).cpu(), expected, rtol=0, atol=1e-9)
    found = rotated_nms(corners.to(GPU), scores.to(GPU), labels.to(GPU), 0.3)
    assert found.cpu().tolist() == rotated_nms(corners, scores, labels, 0.3).tolist()


def test_per_class_suppression_is_that_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    starts = 200 * torch.rand(500, 2, generator=generator)
    boxes = torch.cat([starts, starts + 4 + 40 * torch.rand(500, 2, generator=generator)], dim=1)
    # Steps make many scores equal.
    scores = torch.randint(1, 50, (500,), generator=generator) / 50
    labels = torch.randint(1, 4, (500,), generator=generator)
    expected = per_class_nms(boxes, scores, labels, 0.4)
    found = per_class_nms(boxes.to(GPU), scores.to(GPU), labels.to(GPU), 0.4)
    assert 0 < len(expected) < 500
    assert found.cpu().tolist() == expected.tolist()


@pytest.mark.parametrize("head", ["axis_aligned", "oriented"])
def test_a_training_on_a_gpu_ends_with_weights_that_the_cpu_reads(tmp_path: Path, head: str) -> None:
    store = store_at(tmp_path)
    train, val = squares_split(store, 4), squares_split(store, 2, split="val", seed=1)
    folder = tmp_path / "runs" / "squares"
    options = tiny(model={"head": head}, training={"epochs": 2, "loader_workers": 2})
    outcome = train_detector(store, options, folder, train, val, device=GPU)
    assert (outcome.n_epochs, outcome.was_finished) == (2, False)
    model, _ = load_trained_detector(outcome.best_weights)
    assert all(value.device.type == "cpu" and torch.isfinite(value).all() for value in model.state_dict().values())
