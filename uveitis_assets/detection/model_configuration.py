"""Configuration of a detector's network. Imports nothing heavy: the definitions load it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from uveitis_assets.configuration import Configuration, Ratio

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's channels, 0 to 1: torchvision's and RETFound's inputs."""
FEWEST_DETECTIONS = 400
"""Detections per tile, and per image and class, that count however few lesions there are."""

Backbone = Literal["resnet50_fpn", "retfound_vit_l16", "retfound_vit_b16", "timm_fpn"]


class ModelConfiguration(Configuration):
    """What network it is. Its file names and parameter names are those of torchvision's detection models."""

    backbone: Backbone = Field(
        "retfound_vit_l16",
        description="Network under the pyramid: torchvision's ResNet-50, RETFound's ViT-L/16 or ViT-B/16, or any "
        "convolutional network of timm",
    )
    timm_model: str = Field("resnet18", description="timm_fpn: name of the convolutional network in timm")
    neck: Literal["simple_feature_pyramid", "earlier_upsampled"] = Field(
        "simple_feature_pyramid",
        description="ViT backbones: ViTDet's simple feature pyramid; earlier_upsampled only loads earlier checkpoints",
    )
    vit_mlp: Literal["gelu", "swiglu"] = Field(
        "gelu", description="ViT backbones: swiglu for DINOv2 files whose blocks have mlp.w12 and mlp.w3"
    )
    vit_layer_scale: bool = Field(False, description="ViT backbones: for DINOv2 files whose blocks have ls1 and ls2")
    recompute_activations: bool = Field(
        False, description="ViT backbones: trade a third more time for a fraction of the memory in training"
    )
    head: Literal["axis_aligned", "oriented"] = Field(
        "axis_aligned", description="oriented: a rotated box beside the upright one, learned from OBB labels"
    )
    norm: Literal["frozen_batch", "batch", "group"] = Field(
        "frozen_batch", description="Normalization of convolutional backbones; group when nothing is pretrained"
    )
    finest_stride: Literal[4, 8] = Field(4, description="Stride of the finest pyramid level, px")
    input_size: int = Field(
        768, ge=64, le=4096, description="Side that tiles are brought to, px; ViT backbones: a multiple of 16"
    )
    n_categories: int = Field(20, ge=1, le=1000, description="Lesion categories; the network adds background as 0")
    anchor_sizes: tuple[tuple[float, ...], ...] = Field(
        (),
        description="Anchor sides of each pyramid level; empty: two per level, from 6 px (8 px at stride 8) to 256 px",
    )
    anchor_ratios: tuple[float, ...] = Field((0.5, 1.0, 2.0), description="Height over width of the anchors")
    pyramid_channels: int = Field(256, ge=8, le=1024, description="Channels of every pyramid level")
    head_width: int = Field(1024, ge=8, le=4096, description="Width of the two layers that read a pooled region")
    fit_anchors: bool = Field(
        False,
        description="Replace anchor_sizes before a training by sides fitted to its boxes (k-means); the weights' file "
        "names them. Not for trainings that start from a whole detector, whose proposal head knows other anchors",
    )
    rpn_similarity: Literal["iou", "nwd"] = Field(
        "iou",
        description="What the proposal thresholds compare labels and anchors by: IoU or the normalized Wasserstein "
        "distance, which is smooth for tiny boxes",
    )
    roi_similarity: Literal["iou", "nwd"] = Field("iou", description="The same for labels and proposals")
    nwd_constant: float = Field(
        12.7, gt=0, description="nwd: distance at which it is 1/e, about the usual side of a lesion, input px"
    )
    rpn_foreground_iou: Ratio = Field(0.4, description="An anchor is positive from this IoU; low for lax boxes")
    rpn_background_iou: Ratio = Field(
        0.2, description="An anchor is negative below this IoU; between both it is left out"
    )
    roi_foreground_iou: Ratio = Field(0.4, description="A proposal is positive from this IoU")
    roi_background_iou: Ratio = Field(0.4, description="A proposal is negative below this IoU")
    head_stages: int = Field(
        1, ge=1, le=5, description="Box heads in a row, each on the boxes of the one before; 3: Cascade R-CNN"
    )
    later_stage_ious: tuple[Ratio, ...] = Field(
        (),
        description="A region of each later stage is positive from this IoU on and negative below, growing from "
        "roi_foreground_iou on; empty: 0.1 more from stage to stage",
    )
    stage_loss_weights: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="Weight of each stage's losses, the first included; empty: 1, 0.5, 0.25, ..."
    )
    rpn_pre_nms_train: int = Field(6000, ge=1, description="Proposals per level before their NMS, in training")
    rpn_post_nms_train: int = Field(2500, ge=1, description="Proposals per tile after their NMS, in training")
    rpn_pre_nms_test: int = Field(2500, ge=1, description="Proposals per level before their NMS, in prediction")
    rpn_post_nms_test: int = Field(1200, ge=1, description="Proposals per tile after their NMS, in prediction")
    rpn_anchors_per_tile: int = Field(256, ge=2, description="Anchors per tile that the proposal loss samples")
    rpn_positive_share: Ratio = Field(0.5, gt=0, description="Largest share of positive ones among them")
    roi_regions_per_tile: int = Field(512, ge=2, description="Proposals per tile that the box head's losses sample")
    roi_positive_share: Ratio = Field(0.25, gt=0, description="Largest share of positive ones among them")
    detections_per_tile: int | None = Field(
        None,
        ge=1,
        description="Best-scored detections that a tile keeps; null: 400, or twice the most lesions of a training or "
        "validation tile",
    )
    input_mean: tuple[float, float, float] | None = Field(
        None,
        description="Mean of red, green and blue, 0 to 1, that is taken from the pixels; null: that of the first "
        "weights' detector, else of the backbone's own configuration (timm) or ImageNet's",
    )
    input_std: tuple[float, float, float] | None = Field(
        None, description="Standard deviation by which they are divided; null: as input_mean"
    )
    box_score_threshold: Ratio = Field(0.01, description="Detections below are dropped inside the network")
    box_nms_iou: Ratio = Field(
        0.5, description="Overlap from which NMS inside a tile drops the worse box, class by class"
    )

    @model_validator(mode="after")
    def _normalizes_by_both_or_neither(self) -> Self:
        if (self.input_mean is None) != (self.input_std is None):
            raise ValueError(
                "input_mean and input_std: expected both or neither, found one; give both or leave both out"
            )
        if self.input_std is not None and min(self.input_std) <= 0:
            raise ValueError(f"input_std: expected numbers above 0, found {list(self.input_std)}")
        return self

    @model_validator(mode="after")
    def _neck_fits_backbone(self) -> Self:
        if self.neck == "earlier_upsampled" and not self.backbone.startswith("retfound_"):
            raise ValueError(f"neck: expected earlier_upsampled with a retfound_ backbone, found {self.backbone}")
        return self

    @model_validator(mode="after")
    def _thresholds_are_ordered(self) -> Self:
        for stage in ("rpn", "roi"):
            low, high = getattr(self, f"{stage}_background_iou"), getattr(self, f"{stage}_foreground_iou")
            if low > high:
                raise ValueError(f"{stage}_background_iou: expected at most {stage}_foreground_iou {high}, found {low}")
        return self

    @model_validator(mode="after")
    def _stages_grow(self) -> Self:
        if self.head_stages > 1 and self.head == "oriented":
            raise ValueError(
                f"head_stages: expected 1 with head: oriented, found {self.head_stages}; a cascade finds upright boxes "
                "only: set head to axis_aligned, or head_stages to 1"
            )
        wanted = {"later_stage_ious": self.head_stages - 1, "stage_loss_weights": self.head_stages}
        for name, number in wanted.items():
            given = getattr(self, name)
            if given and (len(given) != number or self.head_stages == 1):
                expected = f"{number} numbers or none" if self.head_stages > 1 else "none"
                raise ValueError(f"{name}: expected {expected} for head_stages {self.head_stages}, found {len(given)}")
        ious = self.foreground_ious()
        if list(ious) != sorted(ious) or ious[-1] > 1:
            raise ValueError(
                f"later_stage_ious: expected IoUs up to 1 that grow from roi_foreground_iou on, found "
                f"{', '.join(map(str, ious))}; name them, or lower roi_foreground_iou"
            )
        return self

    def foreground_ious(self) -> tuple[float, ...]:
        """IoU from which a region is positive, for each stage of the box heads."""
        first = self.roi_foreground_iou
        later = self.later_stage_ious or (round(first + stage / 10, 6) for stage in range(1, self.head_stages))
        return (first, *later)

    def loss_weights(self) -> tuple[float, ...]:
        """Weight of the losses of each stage of the box heads."""
        return self.stage_loss_weights or tuple(0.5**stage for stage in range(self.head_stages))
