"""Detectors that learned COCO with torchvision start a detector of lesions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet50
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.misc import FrozenBatchNorm2d

from uveitis_assets.detection.checkpoints.loading import load_detector_weights
from uveitis_assets.detection.model_configuration import ModelConfiguration
from uveitis_assets.detection.models.detector import build_detector
from uveitis_assets.training.weights_loading import WeightsMismatchError

SMALL = {"backbone": "resnet50_fpn", "pyramid_channels": 16, "head_width": 32, "input_size": 64}


@pytest.fixture(scope="module")
def torchvisions() -> dict[str, torch.Tensor]:
    """The state of torchvision's own Faster R-CNN for 91 categories, narrower than the published one."""
    torch.manual_seed(0)
    layers = {f"layer{number}": str(number - 1) for number in range(1, 5)}
    network = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    backbone = BackboneWithFPN(network, layers, [256, 512, 1024, 2048], 16)
    model = FasterRCNN(backbone, 91)
    state = model.state_dict()
    # fc6 of the width that the small detector has.
    for name, shape in (
        ("fc6.weight", (32, 16 * 49)),
        ("fc6.bias", (32,)),
        ("fc7.weight", (32, 32)),
        ("fc7.bias", (32,)),
    ):
        state[f"roi_heads.box_head.{name}"] = torch.rand(shape)
    return state


def earlier_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As in the published file, which was saved before convolutions became blocks."""
    names = {name: name.replace("rpn.head.conv.0.0.", "rpn.head.conv.") for name in state}
    pattern = re.compile(r"(_blocks\.\d+)\.0\.")
    return {pattern.sub(r"\1.", names[name]): value for name, value in state.items()}


@pytest.mark.parametrize("named", ["as today", "as published"])
def test_all_but_anchors_and_categories_come_from_the_file(
    tmp_path: Path, torchvisions: dict[str, torch.Tensor], named: str
) -> None:
    file = tmp_path / "coco.pth"
    torch.save(earlier_names(torchvisions) if named == "as published" else torchvisions, file)
    model = build_detector(ModelConfiguration.model_validate(SMALL))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_detector_weights(model, file, mode="features")
    assert report.share == 1.0
    for name, value in model.state_dict().items():
        task = name.startswith(("rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.box_predictor"))
        torch.testing.assert_close(value, before[name] if task else torchvisions[name], rtol=0, atol=0)


def test_without_naming_the_mode_other_anchors_are_refused(
    tmp_path: Path, torchvisions: dict[str, torch.Tensor]
) -> None:
    file = tmp_path / "coco.pth"
    torch.save(torchvisions, file)
    model = build_detector(ModelConfiguration.model_validate(SMALL))
    with pytest.raises(WeightsMismatchError, match="proposal head"):
        load_detector_weights(model, file)
