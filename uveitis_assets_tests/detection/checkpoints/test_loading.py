"""Checkpoints: earlier files load by their documented names, foreign ones are refused with examples, none silently."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet50

from uveitis_assets.detection.checkpoints.loading import (
    load_backbone_weights,
    load_detector_weights,
    load_trained_detector,
)
from uveitis_assets.detection.configuration import DetectorConfiguration
from uveitis_assets.detection.model_configuration import ModelConfiguration
from uveitis_assets.detection.models.detector import build_detector
from uveitis_assets.detection.models.retfound import resized_position_embedding
from uveitis_assets.training.weights_files import save_weights
from uveitis_assets.training.weights_loading import WeightsMismatchError
from uveitis_assets_tests.detection.checkpoints.legacy_files import (
    legacy_transformer_state,
    random_tensors,
    transformer_shapes,
    write_legacy,
)
from uveitis_assets_tests.detection.models.tiny_transformer import DEPTH, WIDTH, tiny_configuration, use_tiny_shapes


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_shapes(monkeypatch)
    torch.manual_seed(0)


def test_a_checkpoint_starts_a_detector_of_another_pyramid_by_its_backbone_alone(tmp_path: Path) -> None:
    state = legacy_transformer_state()
    path = write_legacy(tmp_path / "best.pth", state)
    model = build_detector(tiny_configuration(input_size=128))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_detector_weights(model, path, mode="backbone_only", min_matched=1.0)
    after = model.state_dict()
    assert report.share == 1.0
    assert report.adapted == (f"backbone.vit.pos_embed: (1, 17, {WIDTH}) -> (1, 65, {WIDTH})",)
    assert report.missing == report.shape_mismatch == ()
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
    path = write_legacy(tmp_path / "best.pth", legacy_transformer_state())
    model = build_detector(tiny_configuration(neck="earlier_upsampled", n_categories=5))
    report = load_detector_weights(model, path, min_matched=0.9)
    assert report.shape_mismatch == (
        "roi_heads.box_predictor.bbox_pred.bias: (16,), expected (24,)",
        "roi_heads.box_predictor.bbox_pred.weight: (16, 32), expected (24, 32)",
        "roi_heads.box_predictor.cls_score.bias: (4,), expected (6,)",
        "roi_heads.box_predictor.cls_score.weight: (4, 32), expected (6, 32)",
    )
    n_tensors = len(model.state_dict())
    assert report.share == pytest.approx((n_tensors - 4) / n_tensors)


def test_a_proposal_head_made_for_other_anchors_is_refused_with_its_shapes(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "best.pth", legacy_transformer_state(n_anchors=9))
    model = build_detector(tiny_configuration(neck="earlier_upsampled"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        WeightsMismatchError,
        match=r"at least 90\.0% of the proposal head, found 33\.3% \(rpn\.head\.bbox_pred\.bias: \(36,\), expected "
        r"\(12,\), .*rpn\.head\.cls_logits\.weight: \(9, 16, 1, 1\), expected \(3, 16, 1, 1\)\): set "
        r"model\.anchor_sizes",
    ):
        load_detector_weights(model, path)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    sizes = ((4, 8, 16), (16, 32, 64), (64, 96, 128), (128, 256, 512))
    fitting = build_detector(tiny_configuration(neck="earlier_upsampled", anchor_sizes=sizes))
    assert load_detector_weights(fitting, path, min_matched=1.0).shape_mismatch == ()


def test_a_proposal_head_of_an_own_checkpoint_is_held_to_its_anchors_too(tmp_path: Path) -> None:
    configuration = tiny_configuration()
    lineage = {"configuration": {"model": configuration.model_dump(mode="json")}}
    save_weights(tmp_path / "best.safetensors", build_detector(configuration).state_dict(), lineage)
    model = build_detector(tiny_configuration(anchor_ratios=(1.0,)))
    with pytest.raises(WeightsMismatchError, match=r"of the proposal head, .*model\.anchor_ratios"):
        load_detector_weights(model, tmp_path / "best.safetensors")
    report = load_detector_weights(model, tmp_path / "best.safetensors", min_matched=0.3)
    assert [line.partition(":")[0] for line in report.shape_mismatch] == [
        f"rpn.head.{layer}.{kind}" for layer in ("bbox_pred", "cls_logits") for kind in ("bias", "weight")
    ]


@pytest.mark.parametrize(
    ("changes", "part"),
    [({"head_width": 48}, "box head"), ({"pyramid_channels": 24}, "pyramid"), ({"neck": None}, "pyramid")],
)
def test_no_part_hides_behind_a_large_encoder(tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    path = write_legacy(tmp_path / "best.pth", legacy_transformer_state())
    values = {"neck": "earlier_upsampled"} | changes
    values = {name: value for name, value in values.items() if value is not None}
    with pytest.raises(WeightsMismatchError, match=rf"at least 50\.0% of the {part}, found "):
        load_detector_weights(build_detector(tiny_configuration(**values)), path, min_matched=0.5)


def test_a_refused_file_changes_nothing_and_names_examples(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "best.pth", legacy_transformer_state())
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
    assert report.missing == report.unexpected == report.shape_mismatch == ()
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
    assert report.missing == report.unexpected == report.shape_mismatch == ()
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
    model = build_detector(
        ModelConfiguration(backbone="resnet50_fpn", input_size=64, pyramid_channels=16, head_width=32)
    )
    report = load_backbone_weights(model, tmp_path / "resnet50-11ad3fa6.pth", min_matched=1.0)
    assert report.ignored == ("fc.bias", "fc.weight")
    assert report.missing == report.unexpected == ()
    torch.testing.assert_close(
        model.state_dict()["backbone.body.layer4.2.conv3.weight"], state["layer4.2.conv3.weight"]
    )


def test_batch_norm_weights_are_not_read_into_group_norms(tmp_path: Path) -> None:
    torch.save(resnet50(weights=None).state_dict(), tmp_path / "resnet50.pth")
    model = build_detector(
        ModelConfiguration(backbone="resnet50_fpn", norm="group", input_size=64, pyramid_channels=16, head_width=32)
    )
    with pytest.raises(WeightsMismatchError, match=r"batch norm.*model\.norm"):
        load_backbone_weights(model, tmp_path / "resnet50.pth", min_matched=0.0)


def test_a_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    torch.save(resnet50(weights=None).state_dict(), tmp_path / "resnet50.pth")
    with pytest.raises(WeightsMismatchError, match=r"0\.0% of the wanted parameters"):
        load_backbone_weights(build_detector(tiny_configuration()), tmp_path / "resnet50.pth", min_matched=0.1)
    with pytest.raises(WeightsMismatchError, match="backbone_weights"):
        load_detector_weights(build_detector(tiny_configuration()), tmp_path / "resnet50.pth")


def test_weights_of_a_diverged_training_are_refused(tmp_path: Path) -> None:
    state = legacy_transformer_state()
    state["backbone.proj.bias"][3] = float("nan")
    with pytest.raises(WeightsMismatchError, match=r"NaN or infinity in backbone\.proj\.bias"):
        load_trained_detector(write_legacy(tmp_path / "best.pth", state))


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
