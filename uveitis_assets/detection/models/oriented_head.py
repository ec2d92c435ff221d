"""Oriented head for Faster R-CNN: a rotated rectangle for every proposal, beside class and box.

Proposals, pooling, classification and per-class box regression are torchvision's, with their parameter names; one
more linear layer, shared by all classes (most have fewer than twenty labelled lesions), regresses the rectangle in the
code of ``oriented_regression``. It works around any backbone. Learning:

- ``targets`` carry ``corners`` (N, 4, 2), px, in any order: the rectangle taught is the smallest around the four
  corners, so flips and quarter turns only have to move the points, not to reorder them.
- Lesions whose corners are NaN (labelled by masks) teach class and box and are left out of the oriented loss.

Answering: ``boxes`` stay the regressed axis-aligned boxes and not the boxes around ``corners``. They are trained on
every lesion, with and without corners, and agree with the labels' boxes: those surround the drawn quadrilaterals, while
the smallest rectangle around a quadrilateral usually reaches beyond. Suppression compares the rectangles.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from uveitis_assets.detection.model_configuration import ModelConfiguration
from uveitis_assets.detection.models.faster_rcnn import region_heads
from uveitis_assets.detection.models.oriented_regression import N_TERMS, decode_rectangles, encode_rectangles
from uveitis_assets.detection.models.per_class_nms import candidates
from uveitis_assets.detection.models.region_matching import MatchingRoIHeads
from uveitis_assets.detection.models.rotated_boxes import (
    corners_from_rectangles,
    rectangles_from_corners,
    rotated_nms,
)

Target = dict[str, Tensor]


def with_oriented_head(model: FasterRCNN, configuration: ModelConfiguration) -> FasterRCNN:
    """Give ``model`` the oriented head, in place: it keeps its parameters and their names.

    New are ``roi_heads.oriented_predictor.{weight,bias}``, drawn from torch's global generator. Untrained, they answer
    the proposal itself. Training adds ``loss_oriented_box``; evaluation adds ``corners``, float32 (N, 4, 2), px of the
    input image, clockwise on screen, not clipped to the image.

    Raises:
        TypeError: the model resizes its images in a way of its own, which would leave the corners behind.
    """
    resize = model.transform
    if type(resize) is not GeneralizedRCNNTransform:
        raise TypeError(f"expected torchvision's GeneralizedRCNNTransform to extend, found {type(resize).__name__}")
    model.transform = _CornerTransform(
        min_size=resize.min_size,
        max_size=resize.max_size,
        image_mean=resize.image_mean,
        image_std=resize.image_std,
        size_divisible=resize.size_divisible,
        fixed_size=resize.fixed_size,
    )
    model.roi_heads = region_heads(OrientedRoIHeads, model.roi_heads, configuration)
    return model


class OrientedRoIHeads(MatchingRoIHeads):
    """torchvision's box heads with one more regression; arguments are those of ``RoIHeads`` without masks."""

    def __init__(self, box_roi_pool: nn.Module, box_head: nn.Module, box_predictor: nn.Module, **settings: object):
        super().__init__(box_roi_pool, box_head, box_predictor, **settings)
        classifier = box_predictor.cls_score
        assert isinstance(classifier, nn.Linear)
        self.oriented_predictor = nn.Linear(classifier.in_features, N_TERMS)
        nn.init.normal_(self.oriented_predictor.weight, std=1e-3)
        nn.init.zeros_(self.oriented_predictor.bias)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Target] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As torchvision's: (detections, {}) in evaluation mode, ([], losses) in training mode."""
        if not self.training:
            class_logits, box_terms, oriented_terms = self._answers(features, proposals, image_shapes)
            return self._detections(class_logits, box_terms, oriented_terms, proposals, image_shapes), {}
        checked = _with_corners(targets)
        proposals, matches, labels, box_targets = self.select_training_samples(proposals, checked)
        class_logits, box_terms, oriented_terms = self._answers(features, proposals, image_shapes)
        class_loss, box_loss = fastrcnn_loss(class_logits, box_terms, labels, box_targets)
        oriented_loss = oriented_box_loss(
            oriented_terms, proposals, labels, matches, [target["corners"] for target in checked]
        )
        return [], {"loss_classifier": class_loss, "loss_box_reg": box_loss, "loss_oriented_box": oriented_loss}

    def _answers(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        regions = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        class_logits, box_terms = self.box_predictor(regions)
        # bfloat16 has three digits: too few for an offset in px.
        with torch.autocast(regions.device.type, enabled=False):
            oriented_terms = self.oriented_predictor(regions.float())
        return class_logits, box_terms, oriented_terms

    def _detections(
        self,
        class_logits: Tensor,
        box_terms: Tensor,
        oriented_terms: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        terms_per_image = torch.split(oriented_terms, [len(boxes) for boxes in proposals])
        detections = []
        for image, found in enumerate(candidates(self, class_logits, box_terms, proposals, image_shapes)):
            rectangles = decode_rectangles(terms_per_image[image], proposals[image])
            corners = corners_from_rectangles(rectangles)[found.proposals]
            keep = rotated_nms(corners, found.scores, found.labels, self.nms_thresh)[: self.detections_per_img]
            detections.append(
                {
                    "boxes": found.boxes[keep],
                    "labels": found.labels[keep],
                    "scores": found.scores[keep],
                    "corners": corners[keep].float(),
                }
            )
        return detections


def oriented_box_loss(
    terms: Tensor, proposals: list[Tensor], labels: list[Tensor], matches: list[Tensor], corners: list[Tensor]
) -> Tensor:
    """Smooth L1 over the terms of the foreground proposals whose lesion has corners, per sampled proposal.

    The scale is that of torchvision's box loss. Without any such lesion it is 0 and still depends on ``terms``, so that
    training in several processes finds a gradient for every parameter.

    Args:
        terms: (R, 7), the head's answers for all images' proposals in turn.
        proposals: (R_i, 4) for each image, px.
        labels: (R_i,) for each image, 0 is background.
        matches: (R_i,) for each image, the row of the matched lesion.
        corners: (N_i, 4, 2) for each image, px, any order, NaN where a lesion has none.
    """
    rectangles = []
    for image_labels, image_matches, image_corners in zip(labels, matches, corners, strict=True):
        taught = image_corners.new_full((len(image_labels), 5), torch.nan, dtype=torch.float64)
        foreground = image_labels > 0
        taught[foreground] = rectangles_from_corners(image_corners)[image_matches[foreground]]
        rectangles.append(taught)
    taught_rectangles = torch.cat(rectangles)
    known = torch.isfinite(taught_rectangles).all(dim=1)
    expected, importance = encode_rectangles(taught_rectangles[known], torch.cat(proposals)[known])
    differences = functional.smooth_l1_loss(terms[known], expected.to(terms.dtype), beta=1 / 9, reduction="none")
    return (differences * importance.to(terms.dtype)).sum() / max(len(terms), 1)


class _CornerTransform(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's resizing, which takes the corners along on the way in and on the way out."""

    def resize(self, image: Tensor, target: Target | None = None) -> tuple[Tensor, Target | None]:
        height, width = image.shape[-2:]
        image, target = super().resize(image, target)
        if target is not None and "corners" in target:
            new_height, new_width = image.shape[-2:]
            target["corners"] = _scaled(target["corners"], (height, width), (new_height, new_width))
        return image, target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        result = super().postprocess(result, image_shapes, original_image_sizes)
        if not self.training:
            for detections, resized, original in zip(result, image_shapes, original_image_sizes, strict=True):
                detections["corners"] = _scaled(detections["corners"], resized, original)
        return result


def _scaled(corners: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Corners moved from an image of ``size`` (height, width) to one of ``new_size``."""
    return corners * corners.new_tensor([new_size[1] / size[1], new_size[0] / size[0]])


def _with_corners(targets: list[Target] | None) -> list[Target]:
    if targets is None:
        raise ValueError("expected targets in training mode, found none")
    for number, target in enumerate(targets):
        found = tuple(target["corners"].shape) if "corners" in target else None
        expected = (len(target["boxes"]), 4, 2)
        if found != expected:
            raise ValueError(
                f"targets[{number}]: expected corners of shape {expected} for the oriented head, NaN where a lesion "
                f"has none, found {'no corners' if found is None else found}"
            )
    return targets
