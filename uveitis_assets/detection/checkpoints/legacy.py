"""Model configuration of an earlier .pth checkpoint, read from the shapes of its weights.

The earlier scripts stored their YAML beside the weights, but the tensors are the safer source for backbone, categories,
anchors and input size. Thresholds, which leave no trace in the weights, come from the YAML, looked up by torchvision's
argument names at any level. What it does not name gets the earlier scripts' default, with a warning.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from uveitis_assets.detection.model_configuration import ModelConfiguration
from uveitis_assets.detection.models import retfound
from uveitis_assets.detection.models.anchors import default_anchor_sizes
from uveitis_assets.detection.models.feature_pyramid import PATCH_STRIDE
from uveitis_assets.detection.models.legacy_neck import LEGACY_ANCHOR_SIZES

_LOG = logging.getLogger(__name__)
# Name in the YAML, for thresholds torchvision's -> (field, the value it had when the YAML did not name it).
_Settings = dict[str, tuple[str, Any]]
_SETTINGS: _Settings = {
    "anchor_ratios": ("anchor_ratios", (0.5, 1.0, 2.0)),
    "rpn_fg_iou_thresh": ("rpn_foreground_iou", 0.7),
    "rpn_bg_iou_thresh": ("rpn_background_iou", 0.3),
    "box_fg_iou_thresh": ("roi_foreground_iou", 0.5),
    "box_bg_iou_thresh": ("roi_background_iou", 0.5),
    "rpn_pre_nms_top_n_train": ("rpn_pre_nms_train", 2000),
    "rpn_post_nms_top_n_train": ("rpn_post_nms_train", 2000),
    "rpn_pre_nms_top_n_test": ("rpn_pre_nms_test", 1000),
    "rpn_post_nms_top_n_test": ("rpn_post_nms_test", 1000),
    "box_score_thresh": ("box_score_threshold", 0.0),
    "box_nms_thresh": ("box_nms_iou", 0.5),
    "box_detections_per_img": ("detections_per_tile", 200),
}
_TRANSFORMER_SETTINGS: _Settings = {"anchor_sizes": ("anchor_sizes", LEGACY_ANCHOR_SIZES)}
_RESNET_SETTINGS: _Settings = {
    "anchor_sizes": ("anchor_sizes", ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))),
    "resize": ("input_size", 768),
}


def legacy_configuration(
    path: Path, tensors: Mapping[str, Tensor], yaml: Mapping[str, Any], changes: Mapping[str, Any]
) -> ModelConfiguration:
    """Configuration that rebuilds an earlier detector; ``changes`` replace fields of it.

    Settings that neither the YAML nor the caller names are logged as a warning, with the values taken.

    Raises:
        ValueError: it is no earlier Faster R-CNN, or it has other anchors that are not given.
    """
    values: dict[str, Any] = {
        "n_categories": len(_wanted(path, tensors, "roi_heads.box_predictor.cls_score.weight")) - 1,
        "head_width": len(_wanted(path, tensors, "roi_heads.box_head.fc6.weight")),
    }
    if "backbone.vit.pos_embed" in tensors:
        values |= _transformer(path, tensors)
        settings = _SETTINGS | _TRANSFORMER_SETTINGS
    elif "backbone.body.conv1.weight" in tensors:
        values |= _resnet(path, tensors)
        settings = _SETTINGS | _RESNET_SETTINGS
    else:
        raise ValueError(
            f"{path}: expected a detector with backbone.vit or backbone.body, found {', '.join(sorted(tensors)[:5])}; "
            "files of a backbone alone go to initialise.backbone_weights"
        )
    named = _named_settings(yaml, settings)
    assumed = {field: value for field, value in settings.values() if field not in named and field not in changes}
    configuration = ModelConfiguration(**{**values, **assumed, **named, **changes})
    _check_anchors(path, tensors, configuration)
    if assumed:
        _LOG.warning(
            "%s: the configuration in the file does not name %s; taken are the earlier scripts' defaults: if it was "
            "trained with others, pass those as changes",
            path,
            ", ".join(f"{field} (taken: {value})" for field, value in assumed.items()),
        )
    return configuration


def _named_settings(yaml: Mapping[str, Any], settings: _Settings) -> dict[str, Any]:
    """Values by field; null and empty lists name nothing."""
    known = dict(_flat(yaml))
    known.setdefault("anchor_ratios", known.get("aspect_ratios"))
    return {field: known[name] for name, (field, _) in settings.items() if known.get(name) not in (None, [], ())}


def _transformer(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    projection = _wanted(path, tensors, "backbone.proj.weight")
    _, n_tokens, width = tensors["backbone.vit.pos_embed"].shape
    depth = len({name.split(".")[3] for name in tensors if name.startswith("backbone.vit.blocks.")})
    for name, shape in retfound.TRANSFORMER_SHAPES.items():
        if (shape.width, shape.depth) == (width, depth):
            return {
                "backbone": name,
                "neck": "earlier_upsampled",
                "pyramid_channels": len(projection),
                "input_size": math.isqrt(n_tokens - 1) * PATCH_STRIDE,
            }
    raise ValueError(f"{path}: expected a RETFound ViT-L/16 or ViT-B/16, found {depth} blocks of width {width}")


def _resnet(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    _wanted(path, tensors, "backbone.body.layer3.5.conv3.weight")
    return {
        "backbone": "resnet50_fpn",
        "norm": "batch" if "backbone.body.bn1.num_batches_tracked" in tensors else "frozen_batch",
        "pyramid_channels": len(_wanted(path, tensors, "backbone.fpn.inner_blocks.0.0.weight")),
    }


def _check_anchors(path: Path, tensors: Mapping[str, Tensor], configuration: ModelConfiguration) -> None:
    n_found = len(_wanted(path, tensors, "rpn.head.cls_logits.weight"))
    # Empty sizes mean those of the network itself, as faster_rcnn takes them.
    legacy_neck = configuration.neck == "earlier_upsampled"
    own = LEGACY_ANCHOR_SIZES if legacy_neck else default_anchor_sizes([configuration.finest_stride])
    n_expected = len((configuration.anchor_sizes or own)[0]) * len(configuration.anchor_ratios)
    if n_found != n_expected:
        raise ValueError(
            f"{path}: its proposal head has {n_found} anchors per place, its configuration gives {n_expected}; pass "
            "anchor_sizes (and anchor_ratios) as it was trained with"
        )


def _wanted(path: Path, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise ValueError(
            f"{path}: expected a Faster R-CNN checkpoint with {name}, found {', '.join(sorted(tensors)[:5])}, ..."
        )
    return tensors[name]


def _flat(yaml: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Leaves by their last key; sections of the YAML do not share names."""
    for name, value in yaml.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield str(name), value
