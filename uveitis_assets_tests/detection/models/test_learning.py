"""Detectors learn: a handful of steps on one tile is enough to find its lesions, tiny ones too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from uveitis_assets.detection.models.detector import build_detector
from uveitis_assets.detection.models.freezing import parameter_groups
from uveitis_assets.training.configuration import TrainingConfiguration
from uveitis_assets_tests.detection.models.tiny_transformer import tiny_configuration, use_tiny_shapes

# A lesion of 24 px and, far from it, one of 7 px.
BOXES = torch.tensor([[6.0, 8.0, 30.0, 32.0], [45.0, 44.0, 52.0, 51.0]])
LABELS = torch.tensor([1, 3])


def tile() -> Tensor:
    image = torch.full((3, 64, 64), 0.4)
    for (x0, y0, x1, y1), channel in zip(BOXES.int().tolist(), (0, 2), strict=True):
        image[channel, y0:y1, x0:x1] = 1.0
    return image


def test_a_transformer_detector_learns_a_tile_with_a_large_and_a_tiny_lesion(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_shapes(monkeypatch)
    torch.manual_seed(0)
    model = build_detector(tiny_configuration(head_width=128, box_score_threshold=0.5, rpn_pre_nms_train=200))
    optimizer = torch.optim.AdamW(parameter_groups(model, TrainingConfiguration(learning_rate=2e-3)))
    target = {"boxes": BOXES, "labels": LABELS}
    for step in range(1, 81):
        optimizer.zero_grad()
        sum(model.train()([tile()], [target]).values()).backward()
        optimizer.step()
        if step % 10 == 0 and finds_both(model):
            return
    pytest.fail("expected both lesions to be found after at most 80 steps")


def finds_both(model: nn.Module) -> bool:
    """Whether each lesion has a box of its class with an IoU above 0.6."""
    with torch.no_grad():
        (found,) = model.eval()([tile()])
    same = [found["boxes"][found["labels"] == label] for label in LABELS]
    return all(
        len(boxes) > 0 and bool(box_iou(box[None], boxes).max() > 0.6) for box, boxes in zip(BOXES, same, strict=True)
    )
