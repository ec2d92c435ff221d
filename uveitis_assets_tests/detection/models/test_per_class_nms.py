"""Class-wise NMS against a plain greedy loop, also where torchvision's batched NMS differs."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from uveitis_assets.detection.models.per_class_nms import PerClassRoIHeads, per_class_nms


def greedy(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> list[int]:
    suppresses = ((box_iou(boxes, boxes) > iou) & (labels[:, None] == labels)).tolist()
    kept: list[int] = []
    for row in sorted(range(len(boxes)), key=lambda row: (-float(scores[row]), row)):
        if not any(suppresses[other][row] for other in kept):
            kept.append(row)
    return kept


@settings(max_examples=60)
@given(seed=st.integers(0, 2**31), n=st.integers(0, 60), offset=st.sampled_from([0.0, -300.0]))
def test_it_keeps_what_a_greedy_loop_within_each_class_keeps(seed: int, n: int, offset: float) -> None:
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=random) * 60 + offset
    boxes = torch.cat([corner, corner + 1 + torch.rand(n, 2, generator=random) * 40], 1)
    scores = (torch.rand(n, generator=random) * 20).round() / 20
    labels = torch.randint(1, 4, (n,), generator=random)
    assert per_class_nms(boxes, scores, labels, 0.5).tolist() == greedy(boxes, scores, labels, 0.5)


def test_torchvisions_offset_loses_a_box_at_the_threshold_and_per_class_nms_does_not() -> None:
    """Two boxes of IoU just below 0.5; an offset of 20 x 769 px rounds their edges to 1/1024 px and the IoU to 0.5."""
    n_different = 0
    for seed in range(3):
        random = torch.Generator().manual_seed(seed)
        x = torch.rand(300, generator=random) * 700
        width = 6 + torch.rand(300, generator=random)
        # Twins shifted by a third of their width: their IoU is 1/2 up to the last bits of float32.
        twins = torch.stack([x + width / 3, x + 4 * width / 3], 1)
        edges = torch.cat([torch.stack([x, x + width], 1), twins])
        boxes = torch.stack([edges[:, 0], torch.zeros(600), edges[:, 1], torch.full((600,), 768.0)], 1)
        scores = torch.rand(600, generator=random)
        labels = torch.randint(1, 21, (300,), generator=random).repeat(2)
        exact = per_class_nms(boxes, scores, labels, 0.5).tolist()
        assert exact == greedy(boxes, scores, labels, 0.5)
        n_different += exact != batched_nms(boxes, scores, labels, 0.5).tolist()
    assert n_different > 0


def test_the_box_heads_keep_the_best_boxes_of_every_class_inside_the_image() -> None:
    heads = PerClassRoIHeads(None, None, None, 0.5, 0.5, 512, 0.25, None, 0.1, 0.5, 3)
    proposals = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [40, 40, 70, 70], [90, 90, 90, 90]])
    logits = torch.tensor([[0.0, 3, 2.9], [0, 2, -9], [1, 2, -9], [0, 9, 0]])
    boxes, scores, labels = heads.postprocess_detections(logits, torch.zeros(4, 12), [proposals], [(64, 64)])
    expected = torch.softmax(logits, -1)
    torch.testing.assert_close(boxes[0], torch.tensor([[0.0, 0, 10, 9], [40, 40, 64, 64], [0, 0, 10, 10]]))
    torch.testing.assert_close(scores[0], torch.stack([expected[1, 1], expected[2, 1], expected[0, 2]]))
    assert labels[0].tolist() == [1, 1, 2]
