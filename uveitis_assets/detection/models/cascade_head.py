"""Cascade of box heads for Faster R-CNN: each stage starts from the boxes of the stage before.

A head that is taught with proposals of IoU 0.5 gives boxes of about that quality; one taught with 0.7 gives better
ones, but the proposal network has few such proposals to teach it with. The boxes of a first head are better proposals:
so each stage is taught with a larger IoU than the one before, on the boxes that those left it.

The first stage is the head of a detector without a cascade, with its parameter names and its box per class, so that
weights of such a detector load into it. Later stages have one box for all classes, as all of the paper's: most classes
have too few lesions to teach a regression of their own. A region goes on with the box of its best class.

Source: Cai & Vasconcelos, Cascade R-CNN: Delving Into High Quality Object Detection, CVPR 2018. Box codes are those of
the paper (10, 20 and 30 for places, half of it for sizes). Regions are sampled once, before the first stage, as in
Detectron2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import clip_boxes_to_image

from uveitis_assets.detection.model_configuration import ModelConfiguration
from uveitis_assets.detection.models.class_logits import BoxPredictor
from uveitis_assets.detection.models.faster_rcnn import region_heads
from uveitis_assets.detection.models.per_class_nms import PerClassRoIHeads, check_answers, scored_candidates
from uveitis_assets.detection.models.region_matching import MatchingRoIHeads

Target = dict[str, Tensor]

_SMALLEST_SIDE_PX = 1.0


def with_cascade(model: FasterRCNN, configuration: ModelConfiguration) -> FasterRCNN:
    """Give ``model`` the later stages of ``head_stages``, in place.

    It keeps its parameters and their names. New are ``roi_heads.later_stages.<n>.box_head`` and ``.box_predictor``, n
    from 0 on, drawn from torch's global generator. Training adds ``loss_classifier_stage_<n>`` and
    ``loss_box_reg_stage_<n>``, n from 2 on.
    """
    first = model.roi_heads
    later = []
    for number, iou in enumerate(configuration.foreground_ious()[1:], start=2):
        box_code = tuple(number * weight for weight in first.box_coder.weights)
        stage = region_heads(MatchingRoIHeads, first, configuration, iou=iou, box_code=box_code)
        stage.box_head = TwoMLPHead(first.box_head.fc6.in_features, configuration.head_width)
        stage.box_predictor = ClassAgnosticPredictor(configuration.head_width, configuration.n_categories + 1)
        later.append(stage)
    kind = partial(CascadeRoIHeads, later_stages=later, loss_weights=configuration.loss_weights())
    model.roi_heads = region_heads(kind, first, configuration)
    return model


class ClassAgnosticPredictor(BoxPredictor):
    """A box predictor with one box for all classes.

    It gives the box for each class, so that its answers have torchvision's shapes.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes)
        self.bbox_pred = nn.Linear(in_channels, 4)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, classes) and offsets (R, 4 x classes), float32."""
        logits, offsets = super().forward(regions)
        return logits, offsets.repeat(1, self.cls_score.out_features)


class CascadeRoIHeads(PerClassRoIHeads):
    """torchvision's box heads as the first of several stages.

    Arguments are those of ``RoIHeads`` without masks; ``later_stages`` share the pooling, and ``loss_weights`` has one
    number for every stage, the first included.
    """

    def __init__(
        self,
        box_roi_pool: nn.Module,
        box_head: nn.Module,
        box_predictor: nn.Module,
        *,
        later_stages: Sequence[MatchingRoIHeads],
        loss_weights: Sequence[float],
        **settings: Any,
    ) -> None:
        super().__init__(box_roi_pool, box_head, box_predictor, **settings)
        self.later_stages = nn.ModuleList(later_stages)
        self.loss_weights = tuple(loss_weights)

    @property
    def stages(self) -> list[MatchingRoIHeads]:
        """All stages in their order; the first is this head itself."""
        return [self, *self.later_stages]

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Target] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As torchvision's: (detections, {}) in evaluation mode, ([], losses) in training mode."""
        if self.training:
            return [], self._losses(features, proposals, image_shapes, targets)
        scores, boxes = self.answers(features, proposals, image_shapes)
        found = scored_candidates(self, scores, boxes, [len(of_image) for of_image in proposals], image_shapes)
        columns = zip(*self.best_of_each_class(found), strict=True)
        return [dict(zip(("boxes", "scores", "labels"), image, strict=True)) for image in columns], {}

    def answers(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Scores (R, classes) and boxes (R, classes, 4), px, of the R proposals of all images in turn.

        Boxes are the last stage's. Scores are the mean of all stages' on the regions that the last stage is given, as
        in the paper.

        Raises:
            ValueError: NaN or infinite answers of any stage, or an image without proposals.
        """
        *earlier, last = self.stages
        for stage in earlier:
            logits, offsets = stage.box_predictor(stage.box_head(self.box_roi_pool(features, proposals, image_shapes)))
            # NaN boxes would pool zeros, which hide them from the last stage.
            check_answers(proposals, logits, offsets)
            proposals = refined(stage, logits, offsets, proposals, image_shapes)
        pooled = self.box_roi_pool(features, proposals, image_shapes)
        answers = [stage.box_predictor(stage.box_head(pooled)) for stage in (*earlier, last)]
        check_answers(proposals, *(part for answer in answers for part in answer))
        scores = torch.stack([functional.softmax(logits, -1) for logits, _ in answers]).mean(0)
        return scores, last.box_coder.decode(answers[-1][1], proposals)

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Target] | None,
    ) -> dict[str, Tensor]:
        proposals, _, labels, box_targets = self.select_training_samples(proposals, targets)
        assert targets is not None
        losses = {}
        for number, (stage, weight) in enumerate(zip(self.stages, self.loss_weights, strict=True), start=1):
            if number > 1:
                labels, box_targets = taught(stage, proposals, targets)
            logits, offsets = stage.box_predictor(stage.box_head(self.box_roi_pool(features, proposals, image_shapes)))
            class_loss, box_loss = fastrcnn_loss(logits, offsets, labels, box_targets)
            suffix = f"_stage_{number}" if number > 1 else ""
            losses[f"loss_classifier{suffix}"] = weight * class_loss
            losses[f"loss_box_reg{suffix}"] = weight * box_loss
            if number < len(self.stages):
                proposals = [with_area(own) for own in refined(stage, logits, offsets, proposals, image_shapes)]
        return losses


def refined(
    stage: MatchingRoIHeads,
    class_logits: Tensor,
    box_regression: Tensor,
    proposals: list[Tensor],
    image_shapes: list[tuple[int, int]],
) -> list[Tensor]:
    """The boxes of the proposals' best classes (R_i, 4), inside their image, for the next stage.

    They carry no gradient: the next stage is not to teach this one. All proposals stay, in their order, so that shapes
    do not depend on what was found; a box that is regressed out of the image has no area, neither in later stages, and
    is no detection.
    """
    with torch.no_grad():
        best = class_logits[:, 1:].argmax(1) + 1
        offsets = box_regression.reshape(-1, class_logits.shape[1], 4)
        chosen = torch.gather(offsets, 1, best[:, None, None].expand(-1, 1, 4))[:, 0]
        boxes = stage.box_coder.decode(chosen, proposals).reshape(-1, 4)
        per_image = torch.split(boxes, [len(of_image) for of_image in proposals])
        return [clip_boxes_to_image(own, shape) for own, shape in zip(per_image, image_shapes, strict=True)]


def with_area(boxes: Tensor) -> Tensor:
    """Boxes (N, 4) with sides of at least 1 px, for training.

    Their code is finite, also where a similarity other than IoU matches a box without area.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    return torch.cat([low, torch.maximum(high, low + _SMALLEST_SIDE_PX)], dim=1)


def taught(
    stage: MatchingRoIHeads, proposals: list[Tensor], targets: list[Target]
) -> tuple[list[Tensor], list[Tensor]]:
    """Classes (R_i,) and box codes (R_i, 4) that a stage is taught for each image's proposals."""
    boxes = [target["boxes"].to(proposals[0].dtype) for target in targets]
    rows, labels = stage.assign_targets_to_proposals(proposals, boxes, [target["labels"] for target in targets])
    # A tile without lesions teaches no box; the row that its regions have must exist.
    matched = [(own if len(own) else own.new_zeros(1, 4))[row] for own, row in zip(boxes, rows, strict=True)]
    return labels, stage.box_coder.encode(matched, proposals)
