"""The oriented head on a small Faster R-CNN: what it learns, answers and leaves alone."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from uveitis_assets.detection.model_configuration import ModelConfiguration
from uveitis_assets.detection.models.detector import build_detector
from uveitis_assets.detection.models.oriented_head import oriented_box_loss, with_oriented_head
from uveitis_assets.detection.models.rotated_boxes import corners_from_rectangles, rotated_iou, surrounding_boxes

SIDE = 64
Target = dict[str, Tensor]


class TinyBackbone(nn.Module):
    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, stride in ((16, 2), (32, 2), (32, 1), (32, 1)):
            layers += [nn.Conv2d(channels, width, 3, stride, 1), nn.GroupNorm(4, width), nn.ReLU()]
            channels = width
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.layers(images)
        return maps


def plain_detector(input_size: int = SIDE) -> FasterRCNN:
    return FasterRCNN(
        TinyBackbone(),
        min_size=input_size,
        max_size=input_size,
        rpn_anchor_generator=AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),)),
        rpn_batch_size_per_image=64,
        rpn_pre_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_train=50,
        rpn_post_nms_top_n_test=30,
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
        box_head=TwoMLPHead(32 * 49, 128),
        box_predictor=FastRCNNPredictor(128, 3),
        box_batch_size_per_image=32,
    )


def configuration(**values: Any) -> ModelConfiguration:
    return ModelConfiguration(
        **{"head": "oriented", "n_categories": 2, "input_size": SIDE, "box_score_threshold": 0.05, **values}
    )


def oriented_detector(seed: int = 0) -> FasterRCNN:
    torch.manual_seed(seed)
    return with_oriented_head(plain_detector(), configuration())


def scene(row: tuple[float, ...], label: int) -> tuple[Tensor, Target]:
    corners = corners_from_rectangles(torch.tensor([row], dtype=torch.float64)).float()
    picture = Image.new("RGB", (SIDE, SIDE), (50, 50, 50))
    colour = ((60, 150, 230), (230, 150, 60))[label - 1]
    ImageDraw.Draw(picture).polygon([(float(x), float(y)) for x, y in corners[0]], fill=colour)
    image = torch.from_numpy(np.asarray(picture, np.float32) / 255).permute(2, 0, 1)
    return image, {"boxes": surrounding_boxes(corners), "labels": torch.tensor([label]), "corners": corners}


def eight_angles() -> tuple[list[Tensor], list[Target]]:
    shapes = ((34.0, 12.0), (28.0, 16.0), (24.0, 23.0), (40.0, 8.0))
    scenes = [
        scene((32 + (k % 3 - 1) * 5, 30 + k % 2 * 4, *shapes[k % 4], math.pi * (k / 8 - 0.5)), 1 + k % 2)
        for k in range(8)
    ]
    return [image for image, _ in scenes], [target for _, target in scenes]


def test_it_learns_rotated_rectangles_of_all_angles_from_scratch() -> None:
    images, targets = eight_angles()
    model = oriented_detector()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=80)
    for _ in range(80):
        optimizer.zero_grad()
        losses = model(images, targets)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        found = model(images)
    assert [int(detections["labels"][0]) for detections in found] == [int(target["labels"][0]) for target in targets]
    overlaps = [
        rotated_iou(detections["corners"][:1], target["corners"]).item()
        for detections, target in zip(found, targets, strict=True)
    ]
    upright = [rotated_iou(as_corners(target["boxes"]), target["corners"]).item() for target in targets]
    assert np.mean(overlaps) > 0.7
    # The best that axis-aligned boxes can do on the same rectangles is far below.
    assert np.mean(overlaps) > np.mean(upright) + 0.1


def as_corners(boxes: Tensor) -> Tensor:
    return boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)


def losses_of(model: FasterRCNN, targets: list[Target], seed: int = 3) -> dict[str, Tensor]:
    images, _ = eight_angles()
    torch.manual_seed(seed)  # the sampler of proposals draws
    losses: dict[str, Tensor] = model(images[: len(targets)], targets)
    return losses


@pytest.mark.parametrize("order", [[1, 2, 3, 0], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_the_order_of_the_corners_does_not_change_the_losses(order: list[int]) -> None:
    _, targets = eight_angles()
    reordered = [{**target, "corners": target["corners"][:, order]} for target in targets]
    first, second = (losses_of(oriented_detector(), given) for given in (targets, reordered))
    assert first["loss_oriented_box"] > 0
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-6)


def test_lesions_without_corners_teach_class_and_box_but_not_the_rectangle() -> None:
    _, targets = eight_angles()
    unknown = [{**target, "corners": torch.full_like(target["corners"], torch.nan)} for target in targets]
    model = oriented_detector()
    with_corners, without = losses_of(model, targets), losses_of(model, unknown)
    assert without["loss_oriented_box"] == 0
    for name in ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"):
        torch.testing.assert_close(without[name], with_corners[name])
    sum(without.values()).backward()
    # No parameter is left without a gradient: training in several processes waits for every one.
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert model.roi_heads.oriented_predictor.weight.grad.abs().sum() == 0


def test_an_image_with_both_kinds_learns_from_those_with_corners_only() -> None:
    known = corners_from_rectangles(torch.tensor([[20.0, 20, 20, 8, 0.5]]))
    corners = torch.cat([known, torch.full((1, 4, 2), torch.nan, dtype=torch.float64)])
    boxes = torch.cat([surrounding_boxes(known), torch.tensor([[40.0, 40, 60, 60]])]).float()
    terms = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    labels, matches = torch.tensor([1, 2, 0]), torch.tensor([0, 1, 0])
    both = oriented_box_loss(terms, [boxes[[0, 1, 0]]], [labels], [matches], [corners])
    alone = oriented_box_loss(terms[:1], [boxes[:1]], [labels[:1]], [matches[:1]], [known])
    torch.testing.assert_close(both * 3, alone)


def test_images_without_lesions_are_trained_on() -> None:
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "corners": torch.zeros(0, 4, 2)}
    _, targets = eight_angles()
    losses = losses_of(oriented_detector(), [empty, targets[1]])
    assert torch.isfinite(torch.stack(list(losses.values()))).all()
    assert losses_of(oriented_detector(), [empty, empty])["loss_oriented_box"] == 0


def test_targets_without_corners_are_refused_with_what_is_missing() -> None:
    _, targets = eight_angles()
    boxes_only = {name: value for name, value in targets[1].items() if name != "corners"}
    with pytest.raises(ValueError, match=r"targets\[1\]: expected corners of shape \(1, 4, 2\).*found no corners"):
        losses_of(oriented_detector(), [targets[0], boxes_only])


def test_corners_are_resized_with_the_image_on_the_way_in_and_out() -> None:
    torch.manual_seed(0)
    model = with_oriented_head(plain_detector(2 * SIDE), configuration(input_size=2 * SIDE))
    images, targets = eight_angles()
    wide = [nn.functional.pad(image, (0, SIDE)) for image in images[:1]]
    resized, resized_targets = model.transform(wide, targets[:1])
    assert resized.image_sizes == [(SIDE, 2 * SIDE)]
    torch.testing.assert_close(resized_targets[0]["corners"], targets[0]["corners"])
    resized, resized_targets = model.transform(images[:1], targets[:1])
    assert resized.image_sizes == [(2 * SIDE, 2 * SIDE)]
    torch.testing.assert_close(resized_targets[0]["corners"], 2 * targets[0]["corners"])
    torch.testing.assert_close(resized_targets[0]["boxes"], surrounding_boxes(resized_targets[0]["corners"]))
    model.eval()
    back = model.transform.postprocess(
        [{"boxes": resized_targets[0]["boxes"], "corners": resized_targets[0]["corners"]}],
        resized.image_sizes,
        [(SIDE, SIDE)],
    )
    torch.testing.assert_close(back[0]["corners"], targets[0]["corners"])


def test_an_untrained_detector_answers_columns_of_one_length_with_upright_rectangles() -> None:
    model = oriented_detector().eval()
    nn.init.zeros_(model.roi_heads.oriented_predictor.weight)
    images, _ = eight_angles()
    with torch.no_grad():
        found = model(images[:2])
    for detections in found:
        count = len(detections["scores"])
        assert count > 0
        assert detections["boxes"].shape == (count, 4)
        assert detections["corners"].shape == (count, 4, 2)
        assert detections["corners"].dtype == torch.float32
        around = as_corners(surrounding_boxes(detections["corners"]))
        overlaps = rotated_iou(detections["corners"], around).diagonal()
        torch.testing.assert_close(overlaps, torch.ones_like(overlaps), rtol=0, atol=1e-4)
        for label in detections["labels"].unique():
            rows = detections["labels"] == label
            remaining = rotated_iou(detections["corners"][rows], detections["corners"][rows]).fill_diagonal_(0)
            assert remaining.max() <= 0.5 + 1e-4
        assert (detections["scores"].diff() <= 0).all()


def test_the_axis_aligned_part_keeps_its_parameters_and_answers() -> None:
    torch.manual_seed(5)
    plain = plain_detector()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    images, _ = eight_angles()
    model = with_oriented_head(plain, configuration(box_nms_iou=1.0, box_score_threshold=0.0, detections_per_tile=1000))
    after = model.state_dict()
    assert set(after) - set(before) == {
        "roi_heads.oriented_predictor.weight",
        "roi_heads.oriented_predictor.bias",
    }
    assert all(torch.equal(after[name], value) for name, value in before.items())

    torch.manual_seed(5)
    reference = plain_detector()
    reference.roi_heads.nms_thresh, reference.roi_heads.score_thresh = 1.0, 0.0
    reference.roi_heads.detections_per_img = 1000
    with torch.no_grad():
        expected, found = reference.eval()(images[:1])[0], model.eval()(images[:1])[0]
    for name in ("boxes", "scores", "labels"):
        torch.testing.assert_close(found[name], expected[name])


def test_a_configured_detector_has_the_oriented_head_when_it_asks_for_it() -> None:
    values = {
        "backbone": "timm_fpn",
        "norm": "group",
        "pyramid_channels": 16,
        "head_width": 32,
        "rpn_post_nms_train": 40,
        "rpn_post_nms_test": 40,
    }
    _, targets = eight_angles()
    torch.manual_seed(0)
    model = build_detector(configuration(**values, box_score_threshold=0.0))
    losses = losses_of(model, targets[:2])
    assert losses["loss_oriented_box"] > 0
    sum(losses.values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    with torch.no_grad():
        (found,) = model.eval()([torch.rand(3, SIDE, SIDE)])
    assert found["corners"].shape == (len(found["boxes"]), 4, 2)
    upright = build_detector(configuration(**values, head="axis_aligned")).eval()
    with torch.no_grad():
        assert "corners" not in upright([torch.rand(3, SIDE, SIDE)])[0]


def test_mixed_precision_learns_and_answers_in_single_precision() -> None:
    _, targets = eight_angles()
    model = oriented_detector()
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(model, targets)
    exact = losses_of(model, targets)
    assert losses["loss_oriented_box"].dtype == torch.float32
    # The features are rounded to three digits, the offsets are not.
    assert losses["loss_oriented_box"].item() == pytest.approx(exact["loss_oriented_box"].item(), rel=0.1)
    images, _ = eight_angles()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (found,) = model.eval()(images[:1])
    assert found["corners"].dtype == torch.float32


def test_a_model_that_resizes_in_its_own_way_is_refused() -> None:
    class OtherResize(GeneralizedRCNNTransform):  # type: ignore[misc]
        pass

    model = plain_detector()
    model.transform = OtherResize(SIDE, SIDE, [0.5] * 3, [0.5] * 3)
    with pytest.raises(TypeError, match="found OtherResize"):
        with_oriented_head(model, configuration())
