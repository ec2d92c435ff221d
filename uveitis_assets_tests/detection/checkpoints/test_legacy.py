"""Earlier .pth checkpoints are rebuilt as what they were, or refused; what their YAML leaves open is logged."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from uveitis_assets.detection.checkpoints.loading import load_trained_detector
from uveitis_assets.training.weights_loading import WeightsMismatchError
from uveitis_assets_tests.detection.checkpoints.legacy_files import (
    CHANNELS,
    CLASSES,
    HEAD,
    legacy_transformer_state,
    write_legacy,
)
from uveitis_assets_tests.detection.models.tiny_transformer import DEPTH, HEADS, WIDTH, use_tiny_shapes


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_shapes(monkeypatch)
    torch.manual_seed(0)


def earlier_prediction(state: dict[str, Tensor], image: Tensor) -> dict[str, Tensor]:
    """The earlier detector by its description, put together from timm and torchvision without this package."""
    from functools import partial

    from timm.models.vision_transformer import VisionTransformer
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    class Backbone(nn.Module):
        out_channels = CHANNELS

        def __init__(self) -> None:
            super().__init__()
            self.vit = VisionTransformer(
                img_size=64,
                embed_dim=WIDTH,
                depth=DEPTH,
                num_heads=HEADS,
                num_classes=0,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
            )
            self.proj = nn.Conv2d(WIDTH, CHANNELS, 1)
            self.smooth = nn.ModuleDict(
                {name: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for name in ("p2", "p3", "p4", "p5")}
            )

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            tokens = self.vit.forward_features(images)[:, 1:]
            p3 = self.proj(tokens.permute(0, 2, 1).reshape(len(images), WIDTH, 4, 4))
            p4 = nn.MaxPool2d(2)(p3)
            p2 = nn.Upsample(scale_factor=2, mode="bilinear")(p3)
            levels = {"p2": p2, "p3": p3, "p4": p4, "p5": nn.MaxPool2d(2)(p4)}
            return {name: self.smooth[name](level) for name, level in levels.items()}

    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

    model = FasterRCNN(
        Backbone(),
        min_size=64,
        max_size=64,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 4),
        box_roi_pool=MultiScaleRoIAlign(["p2", "p3", "p4", "p5"], 7, 2),
        box_head=TwoMLPHead(CHANNELS * 49, HEAD),
        box_predictor=FastRCNNPredictor(HEAD, CLASSES),
        box_score_thresh=0.2,
        box_nms_thresh=0.5,
        box_detections_per_img=200,
    )
    model.load_state_dict(state)
    with torch.no_grad():
        found: dict[str, Tensor] = model.eval()([image])[0]
    return found


def test_an_earlier_transformer_checkpoint_is_rebuilt_and_predicts_the_same(tmp_path: Path) -> None:
    state = legacy_transformer_state()
    model, configuration = load_trained_detector(write_legacy(tmp_path / "best.pth", state))
    assert not model.training
    assert configuration.neck == "earlier_upsampled"
    assert (configuration.input_size, configuration.n_categories) == (64, 3)
    assert configuration.box_score_threshold == 0.2
    assert configuration.rpn_foreground_iou == 0.4
    image = torch.rand(3, 64, 64)
    expected = earlier_prediction(state, image)
    with torch.no_grad():
        (found,) = model([image])
    assert len(expected["boxes"]) > 10
    for name in ("boxes", "scores", "labels"):
        torch.testing.assert_close(found[name], expected[name])


def test_an_earlier_resnet_checkpoint_is_rebuilt_and_predicts_what_torchvision_does(tmp_path: Path) -> None:
    reference = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=64, box_detections_per_img=200
    ).eval()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    state = {name: value for name, value in reference.state_dict().items() if not name.endswith("tracked")}
    config = {"data": {"resize": 64}, "box_score_thresh": 0.05}
    model, configuration = load_trained_detector(write_legacy(tmp_path / "last.pth", state, config))
    assert (configuration.backbone, configuration.norm, configuration.input_size) == (
        "resnet50_fpn",
        "frozen_batch",
        64,
    )
    image = torch.rand(3, 64, 64)
    with torch.no_grad():
        (found,), (expected,) = model([image]), reference([image])
    assert len(expected["boxes"]) > 10
    torch.testing.assert_close(found["boxes"], expected["boxes"], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found["scores"], expected["scores"])


def test_nine_anchors_per_place_need_their_sizes(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "best.pth", legacy_transformer_state(n_anchors=9))
    with pytest.raises(ValueError, match=r"9 anchors per place.*anchor_sizes"):
        load_trained_detector(path)
    sizes = ((4.0, 8.0, 16.0), (16.0, 32.0, 64.0), (64.0, 96.0, 128.0), (128.0, 256.0, 512.0))
    model, configuration = load_trained_detector(path, changes={"anchor_sizes": sizes})
    assert configuration.anchor_sizes == sizes
    with torch.no_grad():
        assert set(model([torch.rand(3, 64, 64)])[0]) == {"boxes", "scores", "labels"}


def test_empty_anchor_sizes_are_those_of_the_network_itself(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "best.pth", legacy_transformer_state())
    image = torch.rand(3, 64, 64)
    (model, _), (expected, _) = load_trained_detector(path, changes={"anchor_sizes": ()}), load_trained_detector(path)
    with torch.no_grad():
        torch.testing.assert_close(model([image])[0]["boxes"], expected([image])[0]["boxes"])
    resnet = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4).state_dict()
    path = write_legacy(tmp_path / "resnet.pth", resnet)
    with pytest.raises(ValueError, match=r"3 anchors per place, its configuration gives 6"):
        load_trained_detector(path, changes={"anchor_sizes": ()})


def test_an_incomplete_earlier_checkpoint_is_not_rebuilt(tmp_path: Path) -> None:
    state = legacy_transformer_state()
    del state["backbone.smooth.p3.bias"]
    with pytest.raises(WeightsMismatchError, match=r"1 missing \(backbone.smooth.p3.bias\)"):
        load_trained_detector(write_legacy(tmp_path / "best.pth", state))
    state = legacy_transformer_state() | {"backbone.extra.weight": torch.zeros(2)}
    with pytest.raises(WeightsMismatchError, match=r"1 unexpected \(backbone.extra.weight\)"):
        load_trained_detector(write_legacy(tmp_path / "best.pth", state))


THRESHOLDS = {
    "rpn_fg_iou_thresh": ("rpn_foreground_iou", 0.45),
    "rpn_bg_iou_thresh": ("rpn_background_iou", 0.15),
    "box_fg_iou_thresh": ("roi_foreground_iou", 0.55),
    "box_bg_iou_thresh": ("roi_background_iou", 0.35),
    "rpn_pre_nms_top_n_train": ("rpn_pre_nms_train", 60),
    "rpn_post_nms_top_n_train": ("rpn_post_nms_train", 50),
    "rpn_pre_nms_top_n_test": ("rpn_pre_nms_test", 40),
    "rpn_post_nms_top_n_test": ("rpn_post_nms_test", 30),
    "box_score_thresh": ("box_score_threshold", 0.25),
    "box_nms_thresh": ("box_nms_iou", 0.65),
    "box_detections_per_img": ("detections_per_tile", 70),
}


def test_what_the_yaml_does_not_name_is_logged_with_the_value_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_legacy(tmp_path / "best.pth", legacy_transformer_state(), {"model": {"box_score_thresh": 0.2}})
    with caplog.at_level(logging.WARNING):
        _, configuration = load_trained_detector(path, changes={"box_nms_iou": 0.6})
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{path}: ")
    for taken in ("rpn_foreground_iou (taken: 0.7)", "detections_per_tile (taken: 200)", "anchor_ratios (taken: ("):
        assert taken in message
    assert "box_score_threshold" not in message
    assert "box_nms_iou" not in message
    found = configuration.model_dump()
    assert (found["rpn_foreground_iou"], found["detections_per_tile"]) == (0.7, 200)
    assert (found["box_score_threshold"], found["box_nms_iou"]) == (0.2, 0.6)


def test_a_yaml_that_names_everything_is_taken_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model: dict[str, Any] = {name: value for name, (_, value) in THRESHOLDS.items()}
    model |= {"aspect_ratios": [0.5, 1.0, 2.0], "anchor_sizes": [[8], [16], [32], [64]]}
    path = write_legacy(tmp_path / "best.pth", legacy_transformer_state(), {"detector": {"model": model}})
    with caplog.at_level(logging.WARNING):
        _, configuration = load_trained_detector(path)
    assert caplog.records == []
    found = configuration.model_dump()
    assert {field: found[field] for field, _ in THRESHOLDS.values()} == dict(THRESHOLDS.values())
    assert configuration.anchor_sizes == ((8.0,), (16.0,), (32.0,), (64.0,))
