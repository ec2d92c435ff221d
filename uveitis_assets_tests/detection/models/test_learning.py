"""Detectors learn: a handful of steps on one tile is enough to find its lesions, tiny ones too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
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
    model = build_detector(tiny_configuration(head_width=128, box_score_threshold=0.5))
    optimizer = torch.optim.AdamW(parameter_groups(model, TrainingConfiguration(learning_rate=2e-3)))
    for _ in range(80):
        optimizer.zero_grad()
        sum(model([tile()], [{"boxes": BOXES, "labels": LABELS}]).values()).backward()
        optimizer.step()
    with torch.no_grad():
        (found,) = model.eval()([tile()])
    for box, label in zip(BOXES, LABELS, strict=True):
        same = found["boxes"][found["labels"] == label]
        assert len(same) > 0
        assert box_iou(box[None], same).max() > 0.6
