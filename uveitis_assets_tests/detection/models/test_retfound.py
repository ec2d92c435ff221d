"""Vision transformer backbones: shapes, position embeddings, pyramids, and timm's own forward pass as reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uveitis_assets.detection.model_configuration import ModelConfiguration
from uveitis_assets.detection.models.detector import build_detector
from uveitis_assets.detection.models.retfound import resized_position_embedding, swiglu_width, vision_transformer
from uveitis_assets_tests.detection.models.tiny_transformer import WIDTH, tiny_configuration, use_tiny_shapes


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_shapes(monkeypatch)
    torch.manual_seed(0)


def levels_of(configuration: ModelConfiguration, height: int, width: int) -> dict[str, Tensor]:
    model = build_detector(configuration)
    with torch.no_grad():
        levels: dict[str, Tensor] = model.backbone(torch.rand(2, 3, height, width))
    return levels


@pytest.mark.parametrize(
    ("finest", "expected"),
    [(4, {"0": 4, "1": 8, "2": 16, "3": 32, "pool": 64}), (8, {"0": 8, "1": 16, "2": 32, "pool": 64})],
)
def test_the_simple_pyramid_has_one_map_per_stride(finest: int, expected: dict[str, int]) -> None:
    levels = levels_of(tiny_configuration(input_size=128, finest_stride=finest), 128, 128)
    assert {name: tuple(level.shape) for name, level in levels.items()} == {
        name: (2, 16, 128 // stride, 128 // stride) for name, stride in expected.items()
    }


def test_every_level_of_the_simple_pyramid_is_normed_over_its_channels() -> None:
    for name, level in levels_of(tiny_configuration(), 64, 64).items():
        torch.testing.assert_close(level.mean(1), torch.zeros_like(level.mean(1)), atol=1e-5, rtol=0, msg=name)
        torch.testing.assert_close(level.var(1, unbiased=False), torch.ones_like(level.mean(1)), atol=2e-2, rtol=0)


def test_the_finest_level_is_learned_and_not_an_enlargement() -> None:
    backbone = build_detector(tiny_configuration()).backbone
    maps = torch.rand(1, WIDTH, 4, 4)
    finest = backbone.pyramid(maps)["0"]
    cells = finest.detach()[0, :, 4:8, 4:8].flatten(1)
    assert torch.linalg.matrix_rank(cells - cells.mean(1, keepdim=True)) > 1


def test_levels_of_an_input_that_halves_to_odd_maps_cover_all_of_it() -> None:
    configuration = tiny_configuration(input_size=80)
    levels = levels_of(configuration, 80, 80)
    assert {name: level.shape[-1] for name, level in levels.items()} == {"0": 20, "1": 10, "2": 5, "3": 3, "pool": 2}
    model = build_detector(configuration).eval()
    with torch.no_grad():
        (found,) = model([torch.rand(3, 80, 80)])
    assert found["boxes"].max() <= 80


def test_position_embeddings_are_interpolated_bicubically_and_the_class_token_keeps_its_own() -> None:
    embedding = torch.randn(1, 1 + 14 * 14, 8)
    found = resized_position_embedding(embedding, 48)
    assert found.shape == (1, 1 + 48 * 48, 8)
    torch.testing.assert_close(found[:, 0], embedding[:, 0])
    # Independent: Keys' cubic with a = -0.75 (torch's and OpenCV's) as one matrix per axis.
    weights = _cubic_matrix(14, 48)
    expected = torch.einsum("yi,xj,ijc->yxc", weights, weights, embedding[0, 1:].reshape(14, 14, 8).double())
    torch.testing.assert_close(found[0, 1:].reshape(48, 48, 8).double(), expected, atol=1e-5, rtol=1e-5)


def _cubic_matrix(n_source: int, n_target: int) -> Tensor:
    def kernel(distance: float) -> float:
        a, d = -0.75, abs(distance)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0

    matrix = torch.zeros(n_target, n_source, dtype=torch.float64)
    for target in range(n_target):
        centre = (target + 0.5) * n_source / n_target - 0.5
        first = int(torch.floor(torch.tensor(centre))) - 1
        for tap in range(first, first + 4):
            matrix[target, min(max(tap, 0), n_source - 1)] += kernel(centre - tap)
    return matrix


@pytest.mark.parametrize("shape", [(1, 15, 8), (197, 8)])
def test_position_embeddings_of_another_layout_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="square grid"):
        resized_position_embedding(torch.zeros(shape), 4)


def test_the_maps_are_those_of_timms_own_forward_pass() -> None:
    backbone = build_detector(tiny_configuration()).backbone.eval()
    nn.init.normal_(backbone.vit.pos_embed)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = backbone.vit.forward_features(images)[:, 1:].transpose(1, 2).reshape(2, WIDTH, 4, 4)
        torch.testing.assert_close(backbone.patch_maps(images), expected)


def test_a_smaller_image_takes_the_upper_left_position_embeddings() -> None:
    backbone = build_detector(tiny_configuration(input_size=128)).backbone.eval()
    nn.init.normal_(backbone.vit.pos_embed)
    small = build_detector(tiny_configuration(input_size=64)).backbone.eval()
    state = {name: value for name, value in backbone.vit.state_dict().items() if name != "pos_embed"}
    grid = backbone.vit.pos_embed[:, 1:].detach().reshape(8, 8, WIDTH)[:4, :4].reshape(1, 16, WIDTH)
    small.vit.load_state_dict(state | {"pos_embed": torch.cat([backbone.vit.pos_embed[:, :1].detach(), grid], 1)})
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone.patch_maps(image), small.patch_maps(image))


def test_recomputing_activations_changes_no_gradient() -> None:
    images = torch.rand(1, 3, 64, 64)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(1)
        backbone = build_detector(tiny_configuration(recompute_activations=recompute)).backbone
        backbone(images)["0"].square().mean().backward()
        gradients.append(backbone.vit.blocks[0].mlp.fc1.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_gated_mlp_computes_what_dinov2s_does() -> None:
    """DINOv2: x1, x2 = split(w12 x); w3 (silu(x1) x2), with two thirds of the width in multiples of 8."""
    mlp = vision_transformer(tiny_configuration(vit_mlp="swiglu")).blocks[0].mlp
    assert swiglu_width(WIDTH) == 88
    assert mlp.fc1.weight.shape == (2 * 88, WIDTH)
    assert mlp.fc2.weight.shape == (WIDTH, 88)
    tokens = torch.rand(5, WIDTH)
    both = tokens @ mlp.fc1.weight.T + mlp.fc1.bias
    expected = (torch.sigmoid(both[:, :88]) * both[:, :88] * both[:, 88:]) @ mlp.fc2.weight.T + mlp.fc2.bias
    torch.testing.assert_close(mlp(tokens), expected)


def test_an_input_size_that_is_no_multiple_of_the_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        build_detector(tiny_configuration(input_size=72))


@pytest.mark.parametrize("neck", ["simple_feature_pyramid", "earlier_upsampled"])
def test_transformer_detectors_train_and_detect(neck: str) -> None:
    model = build_detector(tiny_configuration(neck=neck, box_score_threshold=0.0))
    target = {"boxes": torch.tensor([[10.0, 12.0, 30.0, 28.0]]), "labels": torch.tensor([2])}
    sum(model([torch.rand(3, 64, 64)], [target]).values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    with torch.no_grad():
        (found,) = model.eval()([torch.rand(3, 64, 64)])
    assert len(found["boxes"]) == len(found["scores"]) == len(found["labels"]) > 0


def test_the_legacy_neck_enlarges_and_pools_one_projection() -> None:
    backbone = build_detector(tiny_configuration(neck="earlier_upsampled", input_size=128)).backbone
    for convolution in backbone.smooth.values():
        nn.init.dirac_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    images = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        projected = backbone.proj(backbone.patch_maps(images))
        levels = backbone(images)
    assert [tuple(level.shape[-2:]) for level in levels.values()] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    torch.testing.assert_close(levels["1"], projected)
    torch.testing.assert_close(levels["2"], projected.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2)))
    torch.testing.assert_close(levels["3"], projected.unfold(2, 4, 4).unfold(3, 4, 4).amax((-1, -2)))
    # Bilinear at twice the size: pixel 2i+1 lies a quarter of the way from cell i to cell i+1.
    quarter = 0.75 * projected[..., :-1] + 0.25 * projected[..., 1:]
    rows = 0.75 * quarter[..., :-1, :] + 0.25 * quarter[..., 1:, :]
    torch.testing.assert_close(levels["0"][..., 1:-1:2, 1:-1:2], rows)


def test_the_legacy_neck_has_its_own_anchors() -> None:
    anchors: Any = build_detector(tiny_configuration(neck="earlier_upsampled")).rpn.anchor_generator
    assert anchors.sizes == ((16.0,), (32.0,), (64.0,), (128.0,))
    assert anchors.aspect_ratios == ((0.5, 1.0, 2.0),) * 4
    assert anchors.strides == (8, 16, 32, 64)


def test_the_legacy_neck_is_refused_on_a_convolutional_backbone() -> None:
    with pytest.raises(ValueError, match="retfound_"):
        ModelConfiguration(backbone="resnet50_fpn", neck="earlier_upsampled")


def test_retfounds_base_and_large_have_their_documented_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name, width, depth, n_parameters in (
        ("retfound_vit_b16", 768, 12, 85_798_656),
        ("retfound_vit_l16", 1024, 24, 303_301_632),
    ):
        with torch.device("meta"):
            vit = vision_transformer(ModelConfiguration(backbone=name, input_size=224))
        assert vit.pos_embed.shape == (1, 197, width)
        assert len(vit.blocks) == depth
        # The published sizes of ViT-B/16 and ViT-L/16 without a head: 85.8 and 303.3 million.
        assert sum(parameter.numel() for parameter in vit.parameters()) == n_parameters
