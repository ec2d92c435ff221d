"""Checkpoints: earlier files load by their documented names, foreign ones are refused with examples, none silently."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from uveitis_assets.detection.checkpoints import load_backbone_weights, load_detector_weights, load_trained_detector
from uveitis_assets.detection.configuration import DetectorConfiguration, ModelConfiguration
from uveitis_assets.detection.models.detector import build_detector
from uveitis_assets.detection.models.retfound import resized_position_embedding
from uveitis_assets.detection.weights_files import save_weights
from uveitis_assets.detection.weights_report import WeightsMismatchError
from uveitis_assets_tests.detection.models.tiny_transformer import (
    DEPTH,
    HEADS,
    WIDTH,
    tiny_configuration,
    use_tiny_shapes,
)

CHANNELS, HEAD, CLASSES = 16, 32, 4


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_shapes(monkeypatch)
    torch.manual_seed(0)


def transformer_shapes(grid: int = 4, mlp: int = 4 * WIDTH) -> dict[str, tuple[int, ...]]:
    """The encoder's tensors as the earlier scripts and RETFound name them."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + grid * grid, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 16, 16),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    for block in range(DEPTH):
        for name, shape in (
            ("norm1", (WIDTH,)),
            ("attn.qkv", (3 * WIDTH, WIDTH)),
            ("attn.proj", (WIDTH, WIDTH)),
            ("norm2", (WIDTH,)),
            ("mlp.fc1", (mlp, WIDTH)),
            ("mlp.fc2", (WIDTH, mlp)),
        ):
            shapes[f"blocks.{block}.{name}.weight"] = shape
            shapes[f"blocks.{block}.{name}.bias"] = shape[:1]
    return shapes


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.randn(shape) * 0.05 for name, shape in shapes.items()}


def earlier_transformer_state(n_anchors: int = 3) -> dict[str, Tensor]:
    shapes = {f"backbone.vit.{name}": shape for name, shape in transformer_shapes().items()}
    for name, shape in (
        ("backbone.proj", (CHANNELS, WIDTH, 1, 1)),
        *((f"backbone.smooth.{level}", (CHANNELS, CHANNELS, 3, 3)) for level in ("p2", "p3", "p4", "p5")),
        ("rpn.head.conv.0.0", (CHANNELS, CHANNELS, 3, 3)),
        ("rpn.head.cls_logits", (n_anchors, CHANNELS, 1, 1)),
        ("rpn.head.bbox_pred", (4 * n_anchors, CHANNELS, 1, 1)),
        ("roi_heads.box_head.fc6", (HEAD, CHANNELS * 49)),
        ("roi_heads.box_head.fc7", (HEAD, HEAD)),
        ("roi_heads.box_predictor.cls_score", (CLASSES, HEAD)),
        ("roi_heads.box_predictor.bbox_pred", (4 * CLASSES, HEAD)),
    ):
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]
    return random_tensors(shapes)


def write_earlier(path: Path, state: dict[str, Tensor], config: dict[str, Any] | None = None) -> Path:
    content = {
        "epoch": 4,
        "model": state,
        "config": config or {"data": {"resize": 768}, "model": {"box_score_thresh": 0.2, "rpn_fg_iou_thresh": 0.4}},
        "metrics": {"epoch": 4, "val_mAP_proxy": np.float64(0.0215), "n": np.int64(3)},
        "val_metrics": {"mAP_proxy": np.float32(0.5)},
        "optimizer": {"state": {}, "param_groups": [{"lr": 2e-5}]},
    }
    torch.save(content, path)
    return path


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
    state = earlier_transformer_state()
    model, configuration = load_trained_detector(write_earlier(tmp_path / "best.pth", state))
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
    model, configuration = load_trained_detector(write_earlier(tmp_path / "last.pth", state, config))
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
    path = write_earlier(tmp_path / "best.pth", earlier_transformer_state(n_anchors=9))
    with pytest.raises(ValueError, match=r"9 anchors per place.*anchor_sizes"):
        load_trained_detector(path)
    sizes = ((4.0, 8.0, 16.0), (16.0, 32.0, 64.0), (64.0, 96.0, 128.0), (128.0, 256.0, 512.0))
    model, configuration = load_trained_detector(path, changes={"anchor_sizes": sizes})
    assert configuration.anchor_sizes == sizes
    with torch.no_grad():
        assert set(model([torch.rand(3, 64, 64)])[0]) == {"boxes", "scores", "labels"}


def test_an_incomplete_earlier_checkpoint_is_not_rebuilt(tmp_path: Path) -> None:
    state = earlier_transformer_state()
    del state["backbone.smooth.p3.bias"]
    with pytest.raises(WeightsMismatchError, match=r"1 missing \(backbone.smooth.p3.bias\)"):
        load_trained_detector(write_earlier(tmp_path / "best.pth", state))
    state = earlier_transformer_state() | {"backbone.extra.weight": torch.zeros(2)}
    with pytest.raises(WeightsMismatchError, match=r"1 unexpected \(backbone.extra.weight\)"):
        load_trained_detector(write_earlier(tmp_path / "best.pth", state))


def test_a_checkpoint_starts_a_detector_of_another_pyramid_by_its_backbone_alone(tmp_path: Path) -> None:
    state = earlier_transformer_state()
    path = write_earlier(tmp_path / "best.pth", state)
    model = build_detector(tiny_configuration(input_size=128))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_detector_weights(model, path, mode="backbone_only", min_matched=1.0)
    after = model.state_dict()
    assert report.share == 1.0
    assert report.adapted == (f"backbone.vit.pos_embed: (1, 17, {WIDTH}) -> (1, 65, {WIDTH})",)
    assert report.missing == report.misshapen == ()
    assert all(name.startswith(("backbone.proj", "backbone.smooth")) for name in report.unexpected)
    assert all(name.startswith(("rpn.", "roi_heads.")) for name in report.ignored)
    torch.testing.assert_close(
        after["backbone.vit.blocks.2.mlp.fc1.weight"], state["backbone.vit.blocks.2.mlp.fc1.weight"]
    )
    torch.testing.assert_close(
        after["backbone.vit.pos_embed"], resized_position_embedding(state["backbone.vit.pos_embed"], 8)
    )
    untouched = [name for name in after if name.startswith(("rpn.", "roi_heads.", "backbone.pyramid."))]
    assert all(torch.equal(before[name], after[name]) for name in untouched)


def test_a_full_load_into_another_number_of_categories_tells_what_did_not_fit(tmp_path: Path) -> None:
    path = write_earlier(tmp_path / "best.pth", earlier_transformer_state())
    model = build_detector(tiny_configuration(neck="earlier_upsampled", n_categories=5))
    report = load_detector_weights(model, path, min_matched=0.9)
    assert report.misshapen == (
        "roi_heads.box_predictor.bbox_pred.bias: (16,), expected (24,)",
        "roi_heads.box_predictor.bbox_pred.weight: (16, 32), expected (24, 32)",
        "roi_heads.box_predictor.cls_score.bias: (4,), expected (6,)",
        "roi_heads.box_predictor.cls_score.weight: (4, 32), expected (6, 32)",
    )
    n_tensors = len(model.state_dict())
    assert report.share == pytest.approx((n_tensors - 4) / n_tensors)


def test_a_refused_file_changes_nothing_and_names_examples(tmp_path: Path) -> None:
    path = write_earlier(tmp_path / "best.pth", earlier_transformer_state())
    model = build_detector(tiny_configuration())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        WeightsMismatchError, match=r"best\.pth: .*missing \(backbone\.pyramid\.levels.*expected at least 95"
    ):
        load_detector_weights(model, path, min_matched=0.95)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_few_large_tensors_do_not_hide_that_all_norms_are_missing(tmp_path: Path) -> None:
    shapes = {name: shape for name, shape in transformer_shapes().items() if "norm" not in name}
    torch.save({"model": random_tensors(shapes)}, tmp_path / "renamed.pth")
    with pytest.raises(WeightsMismatchError, match="missing"):
        load_backbone_weights(build_detector(tiny_configuration()), tmp_path / "renamed.pth", min_matched=0.9)


@pytest.mark.parametrize("backbone", ["retfound_vit_l16", "retfound_vit_b16"])
@pytest.mark.parametrize("neck", ["simple_feature_pyramid", "earlier_upsampled"])
def test_retfounds_autoencoder_file_fills_the_encoder(
    tmp_path: Path, backbone: str, neck: str, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = random_tensors(transformer_shapes(grid=14))
    rest = {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_embed.weight": torch.zeros(8, WIDTH),
        "decoder_norm.bias": torch.zeros(8),
    }
    content = {"model": tensors | rest, "epoch": 800, "args": argparse.Namespace(batch_size=16, output_dir="x")}
    torch.save(content, tmp_path / "RETFound_cfp_weights.pth")
    model = build_detector(tiny_configuration(backbone=backbone, neck=neck))
    with caplog.at_level(logging.INFO):
        report = load_backbone_weights(model, tmp_path / "RETFound_cfp_weights.pth", min_matched=1.0)
    assert report.share == 1.0
    assert report.missing == report.unexpected == report.misshapen == ()
    assert report.ignored == ("decoder_embed.weight", "decoder_norm.bias", "mask_token")
    assert report.adapted == (f"backbone.vit.pos_embed: (1, 197, {WIDTH}) -> (1, 17, {WIDTH})",)
    assert "100.0% of the wanted parameters" in caplog.text
    state = model.state_dict()
    for name, value in tensors.items():
        if name != "pos_embed":
            assert torch.equal(state[f"backbone.vit.{name}"], value), name


def dinov2_file(path: Path, *, patch: int = 16, layer_scale: bool = False, gated: bool = True) -> dict[str, Tensor]:
    """A DINOv2 teacher: gate and value of the MLP are fused in w12, of twice the inner width."""
    shapes = {name: shape for name, shape in transformer_shapes(grid=14).items() if not gated or ".mlp." not in name}
    shapes["patch_embed.proj.weight"] = (WIDTH, 3, patch, patch)
    for block in range(DEPTH):
        if gated:
            for name, shape in (("w12", (2 * 88, WIDTH)), ("w3", (WIDTH, 88))):
                shapes[f"blocks.{block}.mlp.{name}.weight"] = shape
                shapes[f"blocks.{block}.mlp.{name}.bias"] = shape[:1]
        if layer_scale:
            shapes[f"blocks.{block}.ls1.gamma"] = shapes[f"blocks.{block}.ls2.gamma"] = (WIDTH,)
    tensors = random_tensors(shapes)
    head = {"head.mlp.0.weight": torch.zeros(4, WIDTH), "dino_head.mlp.0.weight": torch.zeros(4, WIDTH)}
    torch.save({"teacher": {f"backbone.{name}": value for name, value in tensors.items()} | head}, path)
    return tensors


def test_a_dinov2_teacher_fills_gated_blocks_and_computes_the_same(tmp_path: Path) -> None:
    tensors = dinov2_file(tmp_path / "teacher.pth", layer_scale=True)
    model = build_detector(tiny_configuration(vit_mlp="swiglu", vit_layer_scale=True))
    report = load_backbone_weights(model, tmp_path / "teacher.pth", min_matched=1.0)
    assert report.missing == report.unexpected == report.misshapen == ()
    assert report.ignored == ("dino_head.mlp.0.weight", "head.mlp.0.weight")
    tokens = torch.rand(5, WIDTH)
    gate, value = (tokens @ tensors["blocks.1.mlp.w12.weight"].T + tensors["blocks.1.mlp.w12.bias"]).chunk(2, -1)
    expected = nn.SiLU()(gate) * value @ tensors["blocks.1.mlp.w3.weight"].T + tensors["blocks.1.mlp.w3.bias"]
    torch.testing.assert_close(model.backbone.vit.blocks[1].mlp(tokens), expected)


def test_a_gated_file_is_not_squeezed_into_a_plain_mlp(tmp_path: Path) -> None:
    dinov2_file(tmp_path / "teacher.pth")
    with pytest.raises(WeightsMismatchError, match=r"gated MLP.*model\.vit_mlp"):
        load_backbone_weights(build_detector(tiny_configuration()), tmp_path / "teacher.pth", min_matched=0.0)
    dinov2_file(tmp_path / "plain.pth", gated=False)
    with pytest.raises(WeightsMismatchError, match=r"no blocks with a gated MLP"):
        load_backbone_weights(
            build_detector(tiny_configuration(vit_mlp="swiglu")), tmp_path / "plain.pth", min_matched=0.0
        )


def test_layer_scale_of_a_file_is_not_dropped(tmp_path: Path) -> None:
    dinov2_file(tmp_path / "teacher.pth", layer_scale=True, gated=False)
    with pytest.raises(WeightsMismatchError, match=r"layer scale.*model\.vit_layer_scale"):
        load_backbone_weights(build_detector(tiny_configuration()), tmp_path / "teacher.pth", min_matched=0.0)


def test_patches_of_14_px_become_patches_of_16_that_see_the_same(tmp_path: Path) -> None:
    tensors = dinov2_file(tmp_path / "teacher.pth", patch=14, gated=False)
    model = build_detector(tiny_configuration())
    report = load_backbone_weights(model, tmp_path / "teacher.pth", min_matched=1.0)
    assert any("patch_embed.proj.weight" in line for line in report.adapted)
    small = torch.rand(1, 3, 14, 14)
    large = nn.functional.interpolate(small, size=16, mode="bicubic", antialias=True)
    expected = nn.functional.conv2d(small, tensors["patch_embed.proj.weight"])
    found = nn.functional.conv2d(large, model.backbone.vit.patch_embed.proj.weight)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_torchvisions_resnet50_state_fills_the_body(tmp_path: Path) -> None:
    state = resnet50(weights=None).state_dict()
    torch.save(state, tmp_path / "resnet50-11ad3fa6.pth")
    model = build_detector(ModelConfiguration(backbone="resnet50_fpn", input_size=64))
    report = load_backbone_weights(model, tmp_path / "resnet50-11ad3fa6.pth", min_matched=1.0)
    assert report.ignored == ("fc.bias", "fc.weight")
    assert report.missing == report.unexpected == ()
    torch.testing.assert_close(
        model.state_dict()["backbone.body.layer4.2.conv3.weight"], state["layer4.2.conv3.weight"]
    )


def test_batch_norm_weights_are_not_read_into_group_norms(tmp_path: Path) -> None:
    torch.save(resnet50(weights=None).state_dict(), tmp_path / "resnet50.pth")
    model = build_detector(ModelConfiguration(backbone="resnet50_fpn", norm="group", input_size=64))
    with pytest.raises(WeightsMismatchError, match=r"batch norm.*model\.norm"):
        load_backbone_weights(model, tmp_path / "resnet50.pth", min_matched=0.0)


def test_a_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    torch.save(resnet50(weights=None).state_dict(), tmp_path / "resnet50.pth")
    with pytest.raises(WeightsMismatchError, match=r"0\.0% of the wanted parameters"):
        load_backbone_weights(build_detector(tiny_configuration()), tmp_path / "resnet50.pth", min_matched=0.1)
    with pytest.raises(WeightsMismatchError, match="backbone_weights"):
        load_detector_weights(build_detector(tiny_configuration()), tmp_path / "resnet50.pth")


def test_weights_of_a_diverged_training_are_refused(tmp_path: Path) -> None:
    state = earlier_transformer_state()
    state["backbone.proj.bias"][3] = float("nan")
    with pytest.raises(WeightsMismatchError, match=r"NaN or infinity in backbone\.proj\.bias"):
        load_trained_detector(write_earlier(tmp_path / "best.pth", state))


@pytest.mark.parametrize("head", ["axis_aligned", "oriented"])
@pytest.mark.parametrize("backbone", ["timm_fpn", "retfound_vit_b16"])
def test_a_new_checkpoint_is_rebuilt_from_its_file_alone_and_predicts_the_same(
    tmp_path: Path, backbone: str, head: str
) -> None:
    configuration = tiny_configuration(backbone=backbone, head=head, norm="group", box_score_threshold=0.0)
    model = build_detector(configuration).eval()
    detector = DetectorConfiguration(model=configuration)
    save_weights(tmp_path / "best.safetensors", model.state_dict(), {"configuration": detector.model_dump(mode="json")})
    (tmp_path / "best.json").unlink()
    rebuilt, found = load_trained_detector(tmp_path / "best.safetensors")
    assert found == configuration
    assert not rebuilt.training
    image = torch.rand(3, 64, 64)
    with torch.no_grad():
        (before,), (after,) = model([image]), rebuilt([image])
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_checkpoint_is_rebuilt_from_its_sidecar_when_the_file_does_not_tell(tmp_path: Path) -> None:
    configuration = tiny_configuration()
    save_file(build_detector(configuration).state_dict(), tmp_path / "best.safetensors")
    with pytest.raises(ValueError, match=r"configuration\.model.*best\.json"):
        load_trained_detector(tmp_path / "best.safetensors")
    lineage = {"configuration": {"model": configuration.model_dump(mode="json")}}
    (tmp_path / "best.json").write_text(json.dumps(lineage))
    assert load_trained_detector(tmp_path / "best.safetensors")[1] == configuration


def test_gated_blocks_survive_saving_and_loading(tmp_path: Path) -> None:
    configuration = tiny_configuration(vit_mlp="swiglu", vit_layer_scale=True)
    model = build_detector(configuration)
    lineage = {"configuration": {"model": configuration.model_dump(mode="json")}}
    save_weights(tmp_path / "best.safetensors", model.state_dict(), lineage)
    report = load_detector_weights(build_detector(configuration), tmp_path / "best.safetensors", min_matched=1.0)
    assert (report.share, report.missing, report.unexpected) == (1.0, (), ())


def test_an_unfinished_training_is_rebuilt_with_its_averaged_weights(tmp_path: Path) -> None:
    configuration = tiny_configuration(head="oriented")
    trained, average = build_detector(configuration), build_detector(configuration)
    content = {
        "epoch": 3,
        "model": trained.state_dict(),
        "config": DetectorConfiguration(model=configuration).model_dump(mode="json"),
        "metrics": {"epoch": 3},
        "optimizer": {"state": {}, "param_groups": []},
        "average": average.state_dict(),
        "position": {"epoch": 3},
    }
    torch.save(content, tmp_path / "last.pth")
    model, found = load_trained_detector(tmp_path / "last.pth")
    assert found == configuration
    assert all(torch.equal(value, average.state_dict()[name]) for name, value in model.state_dict().items())
