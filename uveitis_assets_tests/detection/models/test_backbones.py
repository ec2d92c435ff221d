"""Convolutional backbones: any of timm's networks gives the pyramid's strides, with the norm that was asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from uveitis_assets.detection.models.backbones import Backbone
from uveitis_assets.detection.models.freezing import freeze_blocks
from uveitis_assets_tests.detection.models.test_detector import one_target, small_detector


@pytest.mark.parametrize(
    ("name", "n_stages"),
    [("resnet18", 4), ("regnetx_002", 4), ("convnext_atto", 4), ("mobilenetv3_small_050", 6), ("densenet121", 4)],
)
@pytest.mark.parametrize(("finest", "strides"), [(4, (4, 8, 16, 32, 64)), (8, (8, 16, 32, 64))])
def test_networks_of_timm_give_maps_of_every_stride(
    name: str, n_stages: int, finest: int, strides: tuple[int, ...]
) -> None:
    model = small_detector(timm_model=name, finest_stride=finest).eval()
    with torch.no_grad():
        levels = model.backbone(torch.rand(1, 3, 64, 64))
    assert [tuple(level.shape) for level in levels.values()] == [
        (1, 16, 64 // stride, 64 // stride) for stride in strides
    ]
    assert model.backbone.strides == strides
    assert len(model.backbone.freezable_parts()) == 1 + n_stages


@pytest.mark.parametrize("finest", [4, 8])
def test_resnet50_gives_maps_of_every_stride(finest: int) -> None:
    model = small_detector(backbone="resnet50_fpn", finest_stride=finest)
    with torch.no_grad():
        levels = model.backbone(torch.rand(1, 3, 64, 64))
    assert [level.shape[-1] for level in levels.values()] == [
        64 // stride for stride in (4, 8, 16, 32, 64) if stride >= finest
    ]
    assert len(model.backbone.freezable_parts()) == 1 + 4


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_the_norm_is_the_configured_one(name: str) -> None:
    models = {norm: small_detector(timm_model=name, norm=norm) for norm in ("frozen_batch", "batch", "group")}
    for norm, model in models.items():
        model.train()
        moving = {key: value.clone() for key, value in model.state_dict().items() if key.endswith("running_mean")}
        with torch.no_grad():
            model.backbone(torch.rand(2, 3, 64, 64))
        after = model.state_dict()
        moved = [key for key, value in moving.items() if not torch.equal(value, after[key])]
        assert (len(moving) > 0) == (norm != "group")
        assert (len(moved) == len(moving) > 0) == (norm == "batch")
    assert any(isinstance(module, nn.GroupNorm) for module in models["group"].modules())
    trained = {key for key, _ in models["frozen_batch"].named_parameters()}
    assert not any(".bn1." in key for key in trained)


def test_activations_that_stood_in_a_norm_stay_when_it_is_replaced() -> None:
    """In timm's MobileNet the batch norms hold the activation: without it a block would be linear."""
    batch, group = (small_detector(timm_model="mobilenetv3_small_050", norm=norm) for norm in ("batch", "group"))

    def n_activations(model: nn.Module) -> int:
        return sum(isinstance(module, nn.ReLU | nn.Hardswish) for module in model.backbone.body.modules())

    assert n_activations(group) == n_activations(batch) > 5


def test_a_transformer_is_no_convolutional_network() -> None:
    with pytest.raises(ValueError, match=r"strides 4, 8, 16, 32.*convolutional"):
        small_detector(timm_model="vit_tiny_patch16_224")


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(ValueError, match="resnet_18"):
        small_detector(timm_model="resnet_18")


@pytest.mark.parametrize("name", ["regnetx_002", "mobilenetv3_small_050"])
def test_freezing_all_stages_leaves_the_pyramid_and_the_heads(name: str) -> None:
    model = small_detector(timm_model=name)
    freeze_blocks(model, len(model.backbone.freezable_parts()) - 1)
    sum(model([torch.rand(3, 64, 64)], one_target()).values()).backward()
    trained = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained
    assert all(key.startswith(("backbone.fpn.", "rpn.", "roi_heads.")) for key in trained)


def test_a_backbone_that_does_not_tell_its_parts_cannot_be_made() -> None:
    class Unfinished(Backbone):
        pass

    with pytest.raises(TypeError, match="freezable_parts"):
        Unfinished()
