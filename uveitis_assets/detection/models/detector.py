"""Builds a detector with random weights from its configuration."""

from __future__ import annotations

from torch import nn

from uveitis_assets.detection.model_configuration import ModelConfiguration
from uveitis_assets.detection.models.backbones import Backbone, resnet50_backbone, timm_backbone
from uveitis_assets.detection.models.cascade_head import with_cascade
from uveitis_assets.detection.models.faster_rcnn import faster_rcnn
from uveitis_assets.detection.models.legacy_neck import LegacyTransformerBackbone
from uveitis_assets.detection.models.oriented_head import with_oriented_head
from uveitis_assets.detection.models.retfound import PyramidTransformerBackbone


def build_detector(configuration: ModelConfiguration) -> nn.Module:
    """A detector with random weights, drawn from torch's global generator, in training mode.

    ``model(images, targets) -> losses`` in training and ``model(images) -> detections`` in evaluation mode, as
    torchvision's: images are a list of float32 (3, H, W), RGB 0..1; boxes (N, 4) are x0 y0 x1 y1 in px of that image.
    Oriented models want and give ``corners`` (N, 4, 2) too, see ``oriented_head``.

    Raises:
        ValueError: the configuration does not fit together (strides, anchors, input size).
    """
    model = faster_rcnn(_backbone(configuration), configuration)
    if configuration.head == "oriented":
        model = with_oriented_head(model, configuration)
    elif configuration.head_stages > 1:
        model = with_cascade(model, configuration)
    detector: nn.Module = model
    return detector


def _backbone(configuration: ModelConfiguration) -> Backbone:
    if configuration.backbone == "resnet50_fpn":
        return resnet50_backbone(configuration)
    if configuration.backbone == "timm_fpn":
        return timm_backbone(configuration)
    if configuration.neck == "earlier_upsampled":
        return LegacyTransformerBackbone(configuration)
    return PyramidTransformerBackbone(configuration)
