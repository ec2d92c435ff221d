"""Configuration of a lesion detector: model, data, training, evaluation and inference.

Defaults follow the earlier scripts' uveitis_ft configuration where a description does not name others. Imports nothing
heavy: every process that loads the definitions loads this.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from uveitis_assets.configuration import Configuration, Ratio
from uveitis_assets.detection.model_configuration import ModelConfiguration
from uveitis_assets.training.configuration import TrainingConfiguration

Flip = Literal["none", "horizontal", "vertical", "both"]


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
