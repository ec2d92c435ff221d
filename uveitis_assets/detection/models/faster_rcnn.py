"""Faster R-CNN around a backbone, with torchvision's parameter names.

Training and evaluation calls are those of torchvision's detection models. Which backbone it is, is decided in
``detector``; oriented boxes are added by ``oriented_head``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from uveitis_assets.detection.model_configuration import FEWEST_DETECTIONS, ModelConfiguration
from uveitis_assets.detection.models.anchors import PyramidAnchors, default_anchor_sizes
from uveitis_assets.detection.models.backbones import Backbone, input_statistics
from uveitis_assets.detection.models.box_similarity import box_similarity
from uveitis_assets.detection.models.class_logits import BoxPredictor
from uveitis_assets.detection.models.per_class_nms import PerClassRoIHeads

_POOLED_SIDE = 7


class _ProposalHead(RPNHead):  # type: ignore[misc]  # torchvision is untyped
    """Proposal head that returns float32.

    torchvision computes the proposals in the type of the offsets: 4 px steps in bfloat16.
    """

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, offsets = super().forward(maps)
        return [level.float() for level in logits], [level.float() for level in offsets]


def faster_rcnn(backbone: Backbone, configuration: ModelConfiguration) -> FasterRCNN:
    """Assemble the detector.

    Images are brought to ``input_size`` and normalized by ``input_statistics``.

    Raises:
        ValueError: ``anchor_sizes`` does not give every pyramid level equally many sizes.
    """
    sizes = configuration.anchor_sizes or backbone.anchor_sizes or default_anchor_sizes(backbone.strides)
    strides = backbone.strides
    if len(sizes) != len(strides) or len({len(level) for level in sizes}) != 1 or not sizes[0]:
        raise ValueError(
            f"anchor_sizes: expected one list for each of the strides {', '.join(map(str, strides))}, all of one "
            f"length, found {[list(level) for level in sizes]}"
        )
    anchors = PyramidAnchors(sizes, configuration.anchor_ratios, strides)
    mean, std = input_statistics(configuration)
    model = FasterRCNN(
        backbone,
        num_classes=None,
        # Equal sizes keep torchvision from enlarging tiles to its default of 800 px.
        min_size=configuration.input_size,
        max_size=configuration.input_size,
        image_mean=list(mean),
        image_std=list(std),
        rpn_anchor_generator=anchors,
        rpn_head=_ProposalHead(backbone.out_channels, len(sizes[0]) * len(configuration.anchor_ratios)),
        rpn_pre_nms_top_n_train=configuration.rpn_pre_nms_train,
        rpn_pre_nms_top_n_test=configuration.rpn_pre_nms_test,
        rpn_post_nms_top_n_train=configuration.rpn_post_nms_train,
        rpn_post_nms_top_n_test=configuration.rpn_post_nms_test,
        rpn_fg_iou_thresh=configuration.rpn_foreground_iou,
        rpn_bg_iou_thresh=configuration.rpn_background_iou,
        rpn_batch_size_per_image=configuration.rpn_anchors_per_tile,
        rpn_positive_fraction=configuration.rpn_positive_share,
        box_roi_pool=_region_pooling(backbone),
        box_head=TwoMLPHead(backbone.out_channels * _POOLED_SIDE**2, configuration.head_width),
        box_predictor=BoxPredictor(configuration.head_width, configuration.n_categories + 1),
        size_divisible=backbone.size_divisible,
    )
    model.rpn.box_similarity = box_similarity(configuration.rpn_similarity, configuration.nwd_constant)
    model.roi_heads = region_heads(PerClassRoIHeads, model.roi_heads, configuration)
    return model


def region_heads(
    kind: Callable[..., RoIHeads],
    heads: RoIHeads,
    configuration: ModelConfiguration,
    *,
    iou: float | None = None,
    box_code: tuple[float, ...] | None = None,
) -> RoIHeads:
    """Heads of another kind around the layers of ``heads``.

    ``iou``, from which regions are positive and below which they are negative, and ``box_code``, the factors of the
    regression's terms, replace those of the configuration and of ``heads``.
    """
    made = kind(
        heads.box_roi_pool,
        heads.box_head,
        heads.box_predictor,
        fg_iou_thresh=configuration.roi_foreground_iou if iou is None else iou,
        bg_iou_thresh=configuration.roi_background_iou if iou is None else iou,
        batch_size_per_image=configuration.roi_regions_per_tile,
        positive_fraction=configuration.roi_positive_share,
        bbox_reg_weights=box_code or heads.box_coder.weights,
        score_thresh=configuration.box_score_threshold,
        nms_thresh=configuration.box_nms_iou,
        detections_per_img=configuration.detections_per_tile or FEWEST_DETECTIONS,
    )
    if configuration.roi_similarity != "iou":
        made.box_similarity = box_similarity(configuration.roi_similarity, configuration.nwd_constant)
    return made


def _region_pooling(backbone: Backbone) -> MultiScaleRoIAlign:
    strides = backbone.roi_strides
    pooling = MultiScaleRoIAlign([str(index) for index in range(len(strides))], _POOLED_SIDE, sampling_ratio=2)
    # torchvision infers the scales from the first batch it meets; they are known.
    pooling.scales = [1 / stride for stride in strides]
    pooling.map_levels = initLevelMapper(int(math.log2(strides[0])), int(math.log2(strides[-1])))
    return pooling
