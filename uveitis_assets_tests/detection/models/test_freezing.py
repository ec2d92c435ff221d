"""Frozen blocks never move, unfrozen ones really train, and every parameter is in the optimizer from the start."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from uveitis_assets.detection.model_configuration import ModelConfiguration
from uveitis_assets.detection.models.detector import build_detector
from uveitis_assets.detection.models.freezing import freeze_blocks, parameter_groups
from uveitis_assets.training.configuration import TrainingConfiguration
from uveitis_assets_tests.detection.models.tiny_transformer import tiny_configuration, use_tiny_shapes


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_shapes(monkeypatch)
    torch.manual_seed(0)


def convolutional_configuration(norm: str = "batch") -> ModelConfiguration:
    return ModelConfiguration(
        backbone="timm_fpn",
        norm=norm,
        input_size=64,
        pyramid_channels=16,
        head_width=32,
        n_categories=3,
        rpn_post_nms_train=50,
    )


def train_steps(model: nn.Module, optimizer: torch.optim.Optimizer, averaged: AveragedModel, n_steps: int) -> None:
    target = {"boxes": torch.tensor([[10.0, 12.0, 30.0, 28.0]]), "labels": torch.tensor([2])}
    for _ in range(n_steps):
        optimizer.zero_grad()
        sum(model([torch.rand(3, 64, 64), torch.rand(3, 64, 64)], [target, target]).values()).backward()
        optimizer.step()
        averaged.update_parameters(model)


def moved(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    after = model.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.parametrize(
    ("configuration", "stem", "block"),
    [
        (
            tiny_configuration(),
            ("backbone.vit.patch_embed.", "backbone.vit.cls_token", "backbone.vit.pos_embed"),
            "backbone.vit.blocks.{}.",
        ),
        (convolutional_configuration(), ("backbone.body.conv1.", "backbone.body.bn1."), "backbone.body.layer{}."),
    ],
    ids=["transformer", "convolutional"],
)
def test_frozen_blocks_never_move_and_unfrozen_ones_train(
    configuration: ModelConfiguration, stem: tuple[str, ...], block: str
) -> None:
    first = 0 if "vit" in configuration.backbone else 1
    model = build_detector(configuration)
    training = TrainingConfiguration(learning_rate=1e-3, weight_decay=0.1)
    freeze_blocks(model, 2)
    optimizer = torch.optim.AdamW(parameter_groups(model, training))
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)

    before = copy.deepcopy(model.state_dict())
    train_steps(model, optimizer, averaged, 2)
    frozen = (*stem, *(block.format(first + index) for index in range(2)))
    assert {name for name in moved(before, model) if name.startswith(frozen)} == set()
    assert {name for name in moved(before, averaged.module) if name.startswith(frozen)} == set()
    assert {name for name, value in model.named_parameters() if not name.startswith(frozen)} <= moved(before, model)

    freeze_blocks(model, 1)
    before = copy.deepcopy(model.state_dict())
    train_steps(model, optimizer, averaged, 2)
    thawed = {name for name, _ in model.named_parameters() if name.startswith(block.format(first + 1))}
    still = (*stem, block.format(first))
    assert thawed
    assert thawed <= moved(before, model)
    assert {name for name in moved(before, model) if name.startswith(still)} == set()

    freeze_blocks(model, 0)
    before = copy.deepcopy(model.state_dict())
    train_steps(model, optimizer, averaged, 2)
    assert {name for name, _ in model.named_parameters()} <= moved(before, model)


def test_blocks_frozen_after_training_keep_no_gradient_that_could_move_them() -> None:
    model = build_detector(tiny_configuration())
    optimizer = torch.optim.AdamW(parameter_groups(model, TrainingConfiguration(weight_decay=0.1)))
    averaged = AveragedModel(model)
    train_steps(model, optimizer, averaged, 1)
    freeze_blocks(model, 3)
    before = copy.deepcopy(model.state_dict())
    # A step on the gradients of the time before freezing, as accumulation over batches makes it.
    optimizer.step()
    train_steps(model, optimizer, averaged, 1)
    assert {name for name in moved(before, model) if name.startswith("backbone.vit.blocks")} == set()


def test_running_statistics_of_frozen_stages_stay_also_after_a_return_to_training_mode() -> None:
    model = build_detector(convolutional_configuration())
    freeze_blocks(model, 1)
    model.eval()
    model.train()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.backbone(torch.rand(2, 3, 64, 64))
    changed = moved(before, model)
    assert "backbone.body.layer2.0.bn1.running_mean" in changed
    assert not any(name.startswith(("backbone.body.bn1", "backbone.body.layer1")) for name in changed)


def test_the_number_of_blocks_is_that_of_the_network() -> None:
    for configuration, n_blocks in ((tiny_configuration(), 3), (convolutional_configuration(), 4)):
        model = build_detector(configuration)
        freeze_blocks(model, n_blocks)
        with pytest.raises(ValueError, match=f"expected 0 to {n_blocks} for this backbone"):
            freeze_blocks(model, n_blocks + 1)


def test_frozen_blocks_keep_no_activations_for_a_backward_pass() -> None:
    model = build_detector(tiny_configuration())
    freeze_blocks(model, 2)
    kept: list[bool] = []
    for block in model.backbone.vit.blocks:
        block.register_forward_hook(lambda _module, _arguments, tokens: kept.append(tokens.requires_grad))
    model.backbone(torch.rand(1, 3, 64, 64))
    assert kept == [False, False, True]


@pytest.mark.parametrize("n_frozen", [-1, 4])
def test_more_blocks_than_there_are_cannot_be_frozen(n_frozen: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to 3"):
        freeze_blocks(build_detector(tiny_configuration()), n_frozen)


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_every_parameter_is_in_exactly_one_group(layer_decay: float) -> None:
    model = build_detector(tiny_configuration())
    freeze_blocks(model, 2)
    groups = parameter_groups(model, TrainingConfiguration(layer_decay=layer_decay))
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {id(parameter) for parameter in model.parameters()}


def test_norms_biases_and_embeddings_do_not_decay() -> None:
    model = build_detector(tiny_configuration())
    without = {
        id(parameter)
        for group in parameter_groups(model, TrainingConfiguration())
        if group["weight_decay"] == 0
        for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        exempt = name.endswith(("bias", "cls_token", "pos_embed")) or ".norm" in name or _is_pyramid_norm(model, name)
        assert (id(parameter) in without) == exempt, name


def _is_pyramid_norm(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), nn.LayerNorm) if "pyramid" in name else False


def test_layer_decay_slows_the_layers_near_the_input() -> None:
    model = build_detector(tiny_configuration())
    groups = parameter_groups(model, TrainingConfiguration(learning_rate=0.016, layer_decay=0.5))
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    parameters = dict(model.named_parameters())
    expected = {
        "roi_heads.box_head.fc6.weight": 0.016,
        "backbone.vit.norm.weight": 0.016,
        "backbone.vit.blocks.2.mlp.fc1.weight": 0.008,
        "backbone.vit.blocks.1.mlp.fc1.weight": 0.004,
        "backbone.vit.blocks.0.mlp.fc1.bias": 0.002,
        "backbone.vit.pos_embed": 0.001,
    }
    for name, rate in expected.items():
        assert rates[id(parameters[name])] == pytest.approx(rate), name
