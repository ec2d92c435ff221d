"""The cascade of box heads: what each stage is given, learns and answers, recomputed from its layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torchvision.ops import box_iou

from uveitis_assets.detection.model_configuration import ModelConfiguration
from uveitis_assets.detection.models.cascade_head import refined, with_area
from uveitis_assets.detection.models.class_logits import mask_untaught_classes
from uveitis_assets.detection.models.detector import build_detector
from uveitis_assets_tests.detection.models.test_detector import one_target, small_detector
from uveitis_assets_tests.detection.squares import squares_split, store_at, tiny

STAGES = 3


def cascade(**changes: Any) -> nn.Module:
    return small_detector(head_stages=STAGES, **changes)


def everything(model: nn.Module) -> nn.Module:
    """In evaluation mode, with every class of every region among its answers."""
    model.eval().roi_heads.detections_per_img = 10_000
    model.roi_heads.nms_thresh, model.roi_heads.score_thresh = 1.0, -1.0
    return model


def image(seed: int = 1) -> Tensor:
    return torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed))


def regions_of_stages(model: nn.Module, images: list[Tensor]) -> tuple[list[list[Tensor]], list[dict[str, Tensor]]]:
    """The boxes that every stage pools, for each image, and the detections."""
    pooled: list[list[Tensor]] = []
    hook = model.roi_heads.box_roi_pool.register_forward_pre_hook(lambda _, given: pooled.append(list(given[1])))
    with torch.no_grad():
        found = model.eval()(images)
    hook.remove()
    return pooled, found


def decoded(offsets: Tensor, regions: Tensor, code: float) -> Tensor:
    """Boxes (N, 4) by the paper's formula."""
    size = regions[:, 2:] - regions[:, :2]
    centre = (regions[:, :2] + regions[:, 2:]) / 2 + offsets[:, :2] / code * size
    half = size * torch.exp(offsets[:, 2:] / (code / 2)) / 2
    return torch.cat([centre - half, centre + half], 1).clamp(0, 64)


def test_losses_are_finite_and_teach_every_stage() -> None:
    model = cascade()
    losses = model([image()], one_target())
    of_stages = {f"loss_{kind}{stage}" for kind in ("classifier", "box_reg") for stage in ("", "_stage_2", "_stage_3")}
    assert set(losses) == of_stages | {"loss_objectness", "loss_rpn_box_reg"}
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(losses[name] > 0 for name in of_stages)
    for name in of_stages:
        model.zero_grad()
        losses[name].backward(retain_graph=True)
        taught = {part for part, value in model.named_parameters() if value.grad is not None and value.grad.any()}
        heads = {part.split(".box_")[0] for part in taught if part.startswith("roi_heads.")}
        number = int(name[-1]) - 2 if "stage" in name else None
        assert heads == {"roi_heads" if number is None else f"roi_heads.later_stages.{number}"}
        assert any(part.startswith("backbone.") for part in taught)
    model.zero_grad()
    sum(losses.values()).backward()
    assert [part for part, value in model.named_parameters() if value.grad is None] == []


def test_the_first_stage_is_the_head_of_a_detector_without_a_cascade() -> None:
    plain, model = small_detector().state_dict(), cascade().state_dict()
    added = {name for name in model if name not in plain}
    assert all(torch.equal(model[name], value) for name, value in plain.items())
    assert all(name.startswith(("roi_heads.later_stages.0.", "roi_heads.later_stages.1.")) for name in added)
    heads = [name.removeprefix("roi_heads.") for name in plain if name.startswith("roi_heads.")]
    assert {name.split(".", 3)[3] for name in added} == set(heads)
    assert model["roi_heads.later_stages.1.box_predictor.bbox_pred.weight"].shape == (4, 32)


@pytest.mark.parametrize("weights", [(), (2.0, 1.0, 0.25)])
def test_losses_are_weighted_stage_by_stage(weights: tuple[float, ...]) -> None:
    def losses(given: tuple[float, ...]) -> dict[str, float]:
        model = cascade(stage_loss_weights=given)
        torch.manual_seed(3)
        return {name: loss.item() for name, loss in model([image()], one_target()).items()}

    equal, weighted = losses((1.0, 1.0, 1.0)), losses(weights)
    for name, loss in equal.items():
        stage = int(name[-1]) - 1 if "stage" in name else 0
        factor = (weights or (1.0, 0.5, 0.25))[stage] if name in ("loss_classifier", "loss_box_reg") or stage else 1.0
        assert weighted[name] == pytest.approx(factor * loss, rel=1e-5)


def test_scores_are_the_mean_of_all_stages_on_the_last_ones_regions_and_boxes_are_the_last_ones() -> None:
    model = everything(cascade())
    heads = model.roi_heads
    with torch.no_grad():
        # Untrained layers hardly move or tell anything.
        for name, value in heads.named_parameters():
            if "predictor" in name:
                value.mul_(20)
    features: list[Any] = []
    heads.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    stages, (found,) = regions_of_stages(model, [image()])
    assert len(stages) == STAGES
    last = stages[-1][0]
    with torch.no_grad():
        pooled = heads.box_roi_pool(features[0], [last], [(64, 64)])
        layers = [heads, *heads.later_stages]
        answers = [stage.box_predictor(stage.box_head(pooled)) for stage in layers]
    scores = sum(torch.softmax(logits, 1) for logits, _ in answers) / STAGES
    boxes = decoded(answers[-1][1][:, :4], last, 30.0)
    assert len(found["scores"]) == 3 * len(last)
    for label in (1, 2, 3):
        own = found["labels"] == label
        order = torch.sort(scores[:, label], descending=True, stable=True).indices
        torch.testing.assert_close(found["scores"][own], scores[order, label])
        torch.testing.assert_close(found["boxes"][own], boxes[order], rtol=1e-4, atol=1e-3)


def test_a_region_goes_on_with_the_box_of_its_best_class() -> None:
    model = cascade()
    heads = model.roi_heads
    regions = torch.tensor([[10.0, 10, 30, 34], [5, 40, 25, 60], [40, 8, 50, 20]])
    logits = torch.tensor([[9.0, 1, 3, 2], [0, 5, 1, 2], [0, 1, 2, 3]])
    offsets = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    found = refined(heads, logits, offsets, [regions[:1], regions[1:]], [(64, 64), (64, 64)])
    best = offsets.reshape(3, 4, 4)[[0, 1, 2], [2, 1, 3]]
    torch.testing.assert_close(torch.cat(found), decoded(best, regions, 10.0))
    assert [len(boxes) for boxes in found] == [1, 2]


def test_a_region_that_leaves_the_image_is_no_detection_and_teaches_finite_losses() -> None:
    heads = cascade(roi_similarity="nwd", nwd_constant=1000.0).roi_heads
    offsets = torch.zeros(1, 16)
    offsets[:, 4:6], offsets[:, 6:8] = 500.0, -100.0
    (empty,) = refined(heads, torch.tensor([[0.0, 1, 0, 0]]), offsets, [torch.tensor([[50.0, 50, 60, 60]])], [(64, 64)])
    assert empty.tolist() == [[64, 64, 64, 64]]
    gone = with_area(empty)
    assert gone.tolist() == [[64, 64, 65, 65]]
    again = refined(heads.later_stages[0], torch.ones(1, 4), torch.full((1, 16), 9.0), [empty], [(64, 64)])
    assert again[0].tolist() == [[64, 64, 64, 64]]
    stage = heads.later_stages[0]
    lesion = torch.tensor([[55.0, 50.0, 63.0, 60.0]])
    assert stage.assign_targets_to_proposals([gone], [lesion], [torch.tensor([2])])[1][0].tolist() == [2]
    assert torch.isfinite(stage.box_coder.encode([lesion], [gone])[0]).all()


@pytest.mark.parametrize("kind", ["iou", "nwd"])
def test_every_stage_asks_for_more_overlap_than_the_one_before(kind: str) -> None:
    heads = cascade(roi_similarity=kind, roi_foreground_iou=0.5, roi_background_iou=0.5).roi_heads
    lesion = torch.tensor([[10.0, 10.0, 20.0, 20.0]])
    # Moved by d px, W is d, and IoU is (10 - d) / (10 + d).
    moves = -12.7 * torch.log(torch.tensor([0.45, 0.55, 0.65, 0.75]))
    if kind == "iou":
        wanted = torch.tensor([0.45, 0.55, 0.65, 0.75])
        moves = 10 * (1 - wanted) / (1 + wanted)
    regions = lesion + moves[:, None] * torch.tensor([1.0, 0, 1, 0])
    labels = [
        stage.assign_targets_to_proposals([regions], [lesion], [torch.tensor([3])])[1][0].tolist()
        for stage in (heads, *heads.later_stages)
    ]
    assert labels == [[0, 3, 3, 3], [0, 0, 3, 3], [0, 0, 0, 3]]
    named = cascade(roi_similarity=kind, later_stage_ious=(0.4, 0.7)).roi_heads.later_stages
    labels = [
        stage.assign_targets_to_proposals([regions], [lesion], [torch.tensor([3])])[1][0].tolist() for stage in named
    ]
    assert labels == [[3, 3, 3, 3], [0, 0, 0, 3]]


def test_boxes_fit_better_from_stage_to_stage_after_learning(tmp_path: Path) -> None:
    """Eight tiles with two squares each: mean IoU of the regions that lie on a square, stage by stage."""
    images, targets = [], []
    for labelled in squares_split(store_at(tmp_path), 8).images:
        pixels = cv2.cvtColor(cv2.imread(str(labelled.tiles[0].file)), cv2.COLOR_BGR2RGB)
        images.append(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
        truth = labelled.truth
        targets.append({"boxes": torch.from_numpy(truth.boxes), "labels": torch.from_numpy(truth.labels)})
    torch.manual_seed(0)
    model = build_detector(tiny(model={"head_stages": STAGES}).model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=50)
    for step in range(50):
        half = slice(4 * (step % 2), 4 * (step % 2) + 4)
        optimizer.zero_grad()
        sum(model.train()(images[half], targets[half]).values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    stages, found = regions_of_stages(model, images)
    overlaps = [
        torch.cat([box_iou(own, target["boxes"]).amax(1) for own, target in zip(regions, targets, strict=True)])
        for regions in stages
    ]
    on_a_square = overlaps[0] > 0.4
    start, second, third = (float(overlap[on_a_square].mean()) for overlap in overlaps)
    assert int(on_a_square.sum()) > 16
    assert second > start + 0.05
    assert third > second + 0.01
    sure = [detections["boxes"][detections["scores"] > 0.3] for detections in found]
    best = torch.cat([box_iou(target["boxes"], own).amax(1) for own, target in zip(sure, targets, strict=True)])
    assert float(best.mean()) > 0.8


def test_tiles_without_lesions_teach_background_to_every_stage() -> None:
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = cascade()([image(), image(2)], [empty, *one_target()])
    assert all(torch.isfinite(loss) for loss in losses.values())
    model = cascade()
    losses = model([image()], [empty])
    assert all(losses[name] == 0 for name in losses if "box_reg" in name)
    assert all(losses[name] > 0 for name in losses if "classifier" in name)
    sum(losses.values()).backward()
    # Training in several processes waits for every gradient.
    assert [part for part, value in model.named_parameters() if value.grad is None] == []


def test_a_diverged_training_without_any_region_has_the_loss_that_stops_it() -> None:
    maps = {str(level): torch.rand(1, 16, 16 >> level, 16 >> level) for level in range(4)}
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    for model in (small_detector(), cascade()):
        _, losses = model.roi_heads(maps, [torch.zeros(0, 4)], [(64, 64)], [empty])
        assert all(torch.isnan(losses[name]) for name in losses if "classifier" in name)


def test_untaught_classes_are_masked_in_every_stage() -> None:
    model = everything(cascade())
    mask_untaught_classes(model, [2])
    with torch.no_grad():
        (found,) = model([image()])
    assert found["scores"][found["labels"] != 2].eq(0).all()
    assert found["scores"][found["labels"] == 2].gt(0.2).all()
    losses = model.train()([image()], one_target())
    sum(losses.values()).backward()
    for stage in (model.roi_heads, *model.roi_heads.later_stages):
        assert stage.box_predictor.cls_score.weight.grad[[1, 3]].eq(0).all()
        assert stage.box_predictor.cls_score.weight.grad[[0, 2]].ne(0).any()


def test_a_tile_keeps_its_best_detections_and_none_twice() -> None:
    model = cascade(detections_per_tile=7, box_score_threshold=0.0, box_nms_iou=0.3).eval()
    with torch.no_grad():
        (found,) = model([image()])
    assert len(found["scores"]) == 7
    assert (found["scores"].diff() <= 0).all()
    for label in found["labels"].unique():
        own = found["boxes"][found["labels"] == label]
        assert box_iou(own, own).fill_diagonal_(0).max() <= 0.3


@pytest.mark.parametrize("part", ["box_predictor", "later_stages.0.box_predictor", "later_stages.1.box_head.fc6"])
def test_damaged_weights_of_any_stage_are_no_detector_that_finds_nothing(part: str) -> None:
    model = cascade().eval()
    with torch.no_grad():
        for value in model.roi_heads.get_submodule(part).parameters():
            value.fill_(torch.nan)
        with pytest.raises(ValueError, match="expected finite values for regions of every tile"):
            model([image()])


def test_mixed_precision_learns_and_answers_in_single_precision() -> None:
    def losses(enabled: bool) -> dict[str, Tensor]:
        model = cascade()
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            return model([image()], one_target())  # type: ignore[no-any-return]

    rounded, exact = losses(True), losses(False)
    for name, loss in rounded.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.25, abs=0.01)
    model = cascade().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        stages, (found,) = regions_of_stages(model, [image()])
    assert {boxes.dtype for regions in stages for boxes in regions} == {torch.float32}
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32


def test_images_of_a_batch_have_the_detections_that_they_have_alone() -> None:
    model = cascade(box_score_threshold=0.0).eval()
    with torch.no_grad():
        together = model([image(), image(2)])
        alone = [model([own])[0] for own in (image(), image(2))]
    for one, other in zip(together, alone, strict=True):
        assert one["labels"].tolist() == other["labels"].tolist()
        torch.testing.assert_close(one["boxes"], other["boxes"], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_stages": 3, "head": "oriented"}, r"head_stages: expected 1 with head: oriented, found 3"),
        ({"head_stages": 3, "later_stage_ious": (0.5,)}, r"later_stage_ious: expected 2 numbers or none .*found 1"),
        ({"later_stage_ious": (0.5,)}, r"later_stage_ious: expected none for head_stages 1, found 1"),
        ({"stage_loss_weights": (1.0,)}, r"stage_loss_weights: expected none for head_stages 1"),
        ({"head_stages": 2, "stage_loss_weights": (1.0, 1, 1)}, r"stage_loss_weights: expected 2 numbers or none"),
        ({"head_stages": 3, "later_stage_ious": (0.7, 0.6)}, r"later_stage_ious: expected .* grow .*0\.4, 0\.7, 0\.6"),
        ({"head_stages": 2, "later_stage_ious": (0.3,)}, r"later_stage_ious: expected .* from roi_foreground_iou on"),
        ({"head_stages": 3, "roi_foreground_iou": 0.85}, r"expected IoUs up to 1 .*1\.05; name them, or lower"),
        ({"head_stages": 2, "stage_loss_weights": (1.0, 0.0)}, "greater than 0"),
        ({"head_stages": 6}, "less than or equal to 5"),
    ],
)
def test_stages_that_make_no_sense_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfiguration(**settings)
