"""Anchors stand where torchvision puts them, in float32, and are small enough for small lesions."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from uveitis_assets.detection.models.anchors import PyramidAnchors, default_anchor_sizes
from uveitis_assets.detection.models.box_similarity import overlaps
from uveitis_assets_tests.detection.models.test_detector import one_target, small_detector

STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1.0, 2.0)


def images(side: int) -> ImageList:
    return ImageList(torch.zeros(2, 3, side, side), [(side, side)] * 2)


def test_anchors_are_torchvisions_where_the_maps_divide_the_image() -> None:
    sizes = default_anchor_sizes(STRIDES)
    maps = [torch.zeros(2, 1, 128 // stride, 128 // stride) for stride in STRIDES]
    expected = AnchorGenerator(sizes, (RATIOS,) * 5)(images(128), maps)
    for found, wanted in zip(PyramidAnchors(sizes, RATIOS, STRIDES)(images(128), maps), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_anchors_of_half_precision_maps_are_not_rounded() -> None:
    maps = [torch.zeros(1, 1, 768 // stride, 768 // stride, dtype=torch.bfloat16) for stride in STRIDES]
    (anchors, _) = PyramidAnchors([(6,)] * 5, (1.0,), STRIDES)(images(768), maps)
    assert anchors.dtype == torch.float32
    assert anchors[:192][-1].tolist() == [761, -3, 767, 3]


def test_the_smallest_default_anchors_fit_lesions_of_five_pixels() -> None:
    maps = [torch.zeros(1, 1, 64 // stride, 64 // stride) for stride in STRIDES]
    anchors = PyramidAnchors(default_anchor_sizes(STRIDES), RATIOS, STRIDES)(images(64), maps)[0]
    corner = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * 50
    best = box_iou(torch.cat([corner, corner + 5], 1), anchors).amax(1)
    assert (best >= 0.4).float().mean() > 0.7
    too_large = PyramidAnchors([(4 * stride,) for stride in STRIDES], RATIOS, STRIDES)(images(64), maps)[0]
    assert box_iou(torch.cat([corner, corner + 5], 1), too_large).max() < 0.4


def test_configured_sizes_and_ratios_decide_how_many_anchors_stand_at_a_place() -> None:
    nine = tuple((float(s), 2.0 * s, 4.0 * s) for s in STRIDES)
    model = small_detector(anchor_sizes=nine)
    assert model.rpn.head.cls_logits.out_channels == 9
    assert model.rpn.head.bbox_pred.out_channels == 36
    assert set(model([torch.rand(3, 64, 64)], one_target())) >= {"loss_objectness"}


@pytest.mark.parametrize("sizes", [((16,),), ((4,), (8,), (16,), (32,), (64, 128))])
def test_anchor_sizes_that_do_not_fit_the_pyramid_are_refused(sizes: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(ValueError, match="strides 4, 8, 16, 32, 64"):
        small_detector(anchor_sizes=sizes)


def test_the_thresholds_of_the_configuration_decide_what_is_positive() -> None:
    model = small_detector(
        anchor_sizes=((16,), (16,), (16,), (16,), (16,)),
        anchor_ratios=(1.0,),
        rpn_foreground_iou=0.3,
        rpn_background_iou=0.1,
    )
    boxes = torch.tensor([[0.0, 0, 16, 16], [0, 0, 8, 12], [40, 40, 44, 44]])
    anchors = torch.tensor([[0.0, 0, 16, 16], [0, 0, 8, 12], [8, 0, 24, 16], [12, 0, 28, 16], [30, 30, 50, 50]])
    labels, _ = model.rpn.assign_targets_to_anchors([anchors], [{"boxes": boxes}])
    # IoU 1, 1, 1/3, 1/7 (neither), and 0.04: the best there is for the third box.
    assert labels[0].tolist() == [1, 1, 1, -1, 1]
    matcher = model.roi_heads.proposal_matcher
    assert (matcher.high_threshold, matcher.low_threshold) == (0.4, 0.4)


def test_boxes_under_autocast_are_as_fine_as_without() -> None:
    model = small_detector(input_size=768, box_score_threshold=0.0, rpn_pre_nms_test=200).eval()
    image = torch.rand(3, 768, 768, generator=torch.Generator().manual_seed(0))
    proposals: list[torch.Tensor] = []
    model.roi_heads.register_forward_pre_hook(lambda _module, arguments: proposals.extend(arguments[1]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (found,) = model([image])
    assert proposals[0].dtype == found["boxes"].dtype == torch.float32
    assert found["scores"].dtype == torch.float32
    # bfloat16 has steps of 2 px above 256 and of 4 px above 512.
    for boxes in (proposals[0], found["boxes"]):
        inside = boxes[(boxes > 400) & (boxes < 768)]
        assert (inside.frac() != 0).float().mean() > 0.5


@pytest.mark.parametrize("n_boxes", [0, 1, 50])
def test_overlaps_of_many_boxes_are_those_of_all_at_once(n_boxes: int) -> None:
    random = torch.Generator().manual_seed(0)
    boxes, anchors = (torch.rand(n, 4, generator=random).sort(1).values for n in (n_boxes, 70))
    assert torch.equal(overlaps(boxes, anchors), box_iou(boxes, anchors))
