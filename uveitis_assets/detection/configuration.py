"""Configuration of a lesion detector: model, data, training, evaluation and inference.

Defaults follow the earlier scripts' uveitis_ft configuration where a description does not name others. Imports nothing
heavy: every process that loads the definitions loads this.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from uveitis_assets.configuration import Configuration, Ratio
from uveitis_assets.training.configuration import TrainingConfiguration

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's channels, 0 to 1: torchvision's and RETFound's inputs."""
FEWEST_DETECTIONS = 400
"""Detections per tile, and per image and class, that count however few lesions there are."""

Flip = Literal["none", "horizontal", "vertical", "both"]
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


class InitialisationConfiguration(Configuration):
    """Where the first weights come from; at most one of the sources."""

    experiment: str | None = Field(None, description="Detector lane whose best checkpoint of the same fold starts this")
    checkpoint: str | None = Field(
        None, description="Detector checkpoint, .pth or .safetensors; relative paths start at $UVEITIS_DATA"
    )
    backbone_weights: str | None = Field(
        None, description="RETFound file (root `model` or `teacher`) or ResNet-50 state; relative to $UVEITIS_DATA"
    )
    encoder: str | None = Field(None, description="EncoderPretraining lane whose encoder starts the backbone")
    mode: Literal["full", "features", "backbone_only"] = Field(
        "full",
        description="`checkpoint` and `experiment`: everything that fits; all but the layers that belong to anchors "
        "and categories, as of torchvision's fasterrcnn_resnet50_fpn that learned COCO; or the backbone alone",
    )
    frozen_random_weights: bool = Field(
        False,
        description="Allow `training.freeze_blocks` without a source of weights: random blocks that stay as they are",
    )
    min_matched: Ratio = Field(
        0.9,
        description="Least share of the wanted parameters, in all and in each part of the network, that a file has to "
        "provide",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("experiment", "encoder", "checkpoint", "backbone_weights") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"expected one source of weights at most, found {' and '.join(given)}")
        return self


class AugmentationConfiguration(Configuration):
    """Random changes of training tiles; boxes move along."""

    horizontal_flip: Ratio = Field(0.5, description="Probability of a left-right mirror image")
    vertical_flip: Ratio = Field(0.5, description="Probability of an upside-down mirror image")
    brightness: float = Field(0.15, ge=0, le=1, description="Largest relative change of the grey levels; 0: none")
    contrast: float = Field(0.15, ge=0, le=1, description="Largest relative change around the mean grey; 0: none")
    saturation: float = Field(0.15, ge=0, le=1, description="Largest relative change of the saturation; 0: none")
    gamma: float = Field(0.15, ge=0, le=1, description="Largest change of the exponent's logarithm")
    origin_shift: Ratio = Field(0.0, description="Largest random move of a tile's origin, share of its side")
    scale: float = Field(0.0, ge=0, le=1, description="Largest random change of the logarithm of a tile's scale")
    rotation: float = Field(0.0, ge=0, le=180, description="Largest random angle, degrees; 180: any")
    copy_paste: Ratio = Field(
        0.0, description="Probability that a tile gets lesions of other training images, all classes equally often"
    )
    copy_paste_lesions: int = Field(4, ge=1, le=100, description="Most lesions pasted into a tile")


class SamplingConfiguration(Configuration):
    """Which tiles an epoch shows."""

    class_balanced: bool = Field(True, description="Tiles with rare classes are drawn more often")
    rare_below: Ratio = Field(
        0.3,
        description="Classes in a smaller share f of the images with lesions come sqrt(rare_below / f) times as often",
    )
    empty_share: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="Largest share of an epoch's tiles that have no lesions; none of them comes twice an epoch",
    )
    max_images: int = Field(0, ge=0, description="Random subset of the training images; 0 takes all")


class EvaluationConfiguration(Configuration):
    """How detections are evaluated: at image level, after merging."""

    selection: Literal["axis_aligned", "oriented"] = Field(
        "axis_aligned",
        description="Boxes whose AP chooses the best checkpoint; oriented wants the oriented head and an oriented box "
        "on every lesion of the validation images",
    )
    selection_iou: Ratio = Field(0.5, gt=0, description="IoU of the AP by which the best checkpoint is chosen")
    froc_iou: Ratio = Field(0.3, gt=0, description="Smallest IoU of a hit in FROC and in the confusion matrix")
    froc_fp_per_image: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.25, 0.5, 1.0, 2.0, 4.0, 8.0), min_length=1, description="Rates at which FROC sensitivities are reported"
    )
    operating_score: Ratio = Field(0.1, description="Score from which per-class tp, fp and fn are counted")
    max_detections: int | None = Field(
        None,
        ge=1,
        description="Best-scored detections per image and class that count, as in COCO; null: 400, or twice the most "
        "lesions of a class in an image",
    )
    bootstrap_samples: int = Field(1000, ge=0, description="Resamples of the patients; 0: no intervals")
    bootstrap_seed: int = Field(42, description="Seed of the resamples")


class InferenceConfiguration(Configuration):
    """From tiles to an image's detections."""

    batch_size: int = Field(8, ge=1, le=1024, description="Tiles per forward pass, across images")
    score_threshold: Ratio = Field(0.3, description="Detections below are not written")
    merge: Literal["nms", "weighted_box_fusion", "edge_aware"] = Field(
        "nms", description="How the tiles' detections are merged; nms is the earlier scripts' way"
    )
    merge_iou: Ratio = Field(0.5, description="IoU from which detections of a class count as one lesion")
    folds: tuple[int, ...] = Field((0,), min_length=1, description="Folds whose checkpoints predict; several: ensemble")
    operating_fp_per_image: float | None = Field(
        None,
        gt=0,
        description="A class's detections count from the score at which validation had this many false positives per "
        "image, instead of score_threshold; one of evaluation.froc_fp_per_image, with one fold",
    )
    flips: tuple[Flip, ...] = Field(
        ("none",),
        min_length=1,
        description="Mirror images in which every tile is shown; several are fused like detectors of an ensemble, and "
        "cost as many times the time",
    )
    overlays: bool = Field(True, description="Write preds_vis/ overlays and heat maps")


class PseudoLabelConfiguration(Configuration):
    """Which detections become labels."""

    min_score: Ratio = Field(0.9, description="Detections below make no labels")
    duplicate_iou: Ratio = Field(0.5, description="IoU with a label or a better detection above which one stays out")
    labelled_images: Literal["complete", "leave"] = Field(
        "complete",
        description="Training images that a person has labelled: get pseudo-labels too, or are left as they are",
    )
    min_tile_box_ratio: Ratio = Field(0.2, description="Share of a box that a tile has to show, as for labels")
    large_lesion_tile_cover: Ratio = Field(0.2, description="Share of a tile that a large lesion covers, as for labels")


class DetectorConfiguration(Configuration):
    """A detector without its place in the asset graph."""

    model: ModelConfiguration = ModelConfiguration()
    initialise: InitialisationConfiguration = InitialisationConfiguration()
    augmentation: AugmentationConfiguration = AugmentationConfiguration()
    sampling: SamplingConfiguration = SamplingConfiguration()
    training: TrainingConfiguration = TrainingConfiguration()
    evaluation: EvaluationConfiguration = EvaluationConfiguration()
    inference: InferenceConfiguration = InferenceConfiguration()
    global_tile: bool = Field(
        True,
        description="Lanes with `tiling.frame: native`: the global image is one more tile, in training, evaluation and "
        "prediction; no effect on tiles that are cut from the global image",
    )
    overfit_images: int = Field(
        0,
        ge=0,
        description="Train and evaluate on this many training images with lesions; 0: train on train, evaluate on val",
    )

    @model_validator(mode="after")
    def _operates_at_a_rate_that_is_measured(self) -> Self:
        rate, rates = self.inference.operating_fp_per_image, self.evaluation.froc_fp_per_image
        if rate is None:
            return self
        if rate not in rates:
            raise ValueError(
                f"inference.operating_fp_per_image: expected one of evaluation.froc_fp_per_image "
                f"({', '.join(map(str, rates))}), found {rate}"
            )
        if len(self.inference.folds) != 1:
            raise ValueError(
                f"inference.operating_fp_per_image: expected one fold in inference.folds, found "
                f"{list(self.inference.folds)}: scores of an ensemble are not those that validation measured"
            )
        return self

    @model_validator(mode="after")
    def _fits_anchors_of_a_new_head(self) -> Self:
        first = self.initialise
        if self.model.fit_anchors and first.mode == "full" and (first.experiment or first.checkpoint):
            raise ValueError(
                "model.fit_anchors: the proposal head of a whole detector knows the anchors that it learned with; set "
                "it to false, or initialise.mode to features or backbone_only"
            )
        return self

    @model_validator(mode="after")
    def _selects_by_boxes_that_it_finds(self) -> Self:
        if self.evaluation.selection == "oriented" and self.model.head != "oriented":
            raise ValueError(
                f"evaluation.selection: oriented boxes cannot choose a checkpoint of model.head {self.model.head}, "
                "which finds none; set model.head to oriented or selection to axis_aligned"
            )
        return self
