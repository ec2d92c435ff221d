"""Detectors as a whole: they speak torchvision's detection interface and carry its parameter names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from uveitis_assets.detection.model_configuration import ModelConfiguration
from uveitis_assets.detection.models.detector import build_detector

SMALL: dict[str, Any] = {
    "backbone": "timm_fpn",
    "timm_model": "resnet18",
    "norm": "group",
    "input_size": 64,
    "pyramid_channels": 16,
    "head_width": 32,
    "n_categories": 3,
    "rpn_post_nms_train": 50,
    "rpn_post_nms_test": 50,
}


def small_detector(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_detector(ModelConfiguration(**{**SMALL, **changes}))


def one_target() -> list[dict[str, Tensor]]:
    return [{"boxes": torch.tensor([[10.0, 12.0, 30.0, 28.0]]), "labels": torch.tensor([2])}]


def test_training_gives_finite_losses_that_reach_every_parameter() -> None:
    model = small_detector()
    losses = model([torch.rand(3, 64, 64)], one_target())
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_detections_lie_in_the_pixels_of_the_image_that_was_given() -> None:
    model = small_detector(box_score_threshold=0.0).eval()
    with torch.no_grad():
        (found,) = model([torch.rand(3, 128, 96)])
    assert found["labels"].min() >= 1
    assert found["labels"].max() <= 3
    assert found["boxes"].min() >= 0
    assert found["boxes"][:, 2].max() <= 96
    assert 64 < found["boxes"][:, 3].max() <= 128


@pytest.mark.parametrize("side", [64, 96])
def test_tiles_of_the_input_size_are_not_enlarged(side: int) -> None:
    model = small_detector(input_size=side)
    seen = []
    model.backbone.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
    image = torch.rand(3, side, side)
    with torch.no_grad():
        model.eval()([image])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0], ((image - mean[:, None, None]) / std[:, None, None])[None])


def test_the_longer_side_of_an_oblong_tile_becomes_the_input_size() -> None:
    model = small_detector(input_size=64)
    seen: list[tuple[int, ...]] = []
    model.rpn.register_forward_pre_hook(lambda _module, arguments: seen.extend(arguments[0].image_sizes))
    with torch.no_grad():
        model.eval()([torch.rand(3, 128, 96), torch.rand(3, 32, 64)])
    assert seen == [(64, 48), (32, 64)]


def test_the_resnet50_detector_has_the_parameter_names_and_shapes_of_torchvision() -> None:
    configuration = ModelConfiguration(
        backbone="resnet50_fpn", n_categories=20, anchor_sizes=((32,), (64,), (128,), (256,), (512,))
    )
    expected = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=21).state_dict()
    found = build_detector(configuration).state_dict()
    batches = {name for name in expected if name.endswith("num_batches_tracked")}
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in expected.items() if name not in batches
    }
