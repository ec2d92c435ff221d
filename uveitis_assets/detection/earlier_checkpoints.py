"""What detector an earlier .pth checkpoint holds: the model's configuration, read from the weights' own shapes.

The earlier scripts stored their YAML beside the weights, but what the network is, its tensors say with more certainty:
which backbone, how many categories and anchors, which input size. From the YAML come the thresholds, which leave no
trace in the weights; they are looked up by torchvision's argument names wherever they stand in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from uveitis_assets.detection.configuration import ModelConfiguration
from uveitis_assets.detection.models import retfound
from uveitis_assets.detection.models.feature_pyramid import PATCH_STRIDE

# torchvision's argument name -> (field, the value it had when the YAML did not name it).
_THRESHOLDS: dict[str, tuple[str, float]] = {
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
_RATIOS = (0.5, 1.0, 2.0)
_RESNET_ANCHOR_SIZES = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
_INPUT_SIZE = 768


def configuration_of_earlier(
    path: Path, tensors: Mapping[str, Tensor], yaml: Mapping[str, Any], changes: Mapping[str, Any]
) -> ModelConfiguration:
    """The configuration that rebuilds an earlier detector; ``changes`` are fields that the caller knows better.

    Raises:
        ValueError: it is no earlier Faster R-CNN, or it has other anchors and nothing says which.
    """
    known = dict(_flat(yaml))
    values: dict[str, Any] = {
        "n_categories": len(_wanted(path, tensors, "roi_heads.box_predictor.cls_score.weight")) - 1,
        "head_width": len(_wanted(path, tensors, "roi_heads.box_head.fc6.weight")),
        "anchor_ratios": known.get("anchor_ratios", known.get("aspect_ratios", _RATIOS)),
    }
    for argument, (field, default) in _THRESHOLDS.items():
        value = known.get(argument)
        values[field] = default if value is None else value
    if "backbone.vit.pos_embed" in tensors:
        values |= _transformer(path, tensors)
    elif "backbone.body.conv1.weight" in tensors:
        values |= _resnet(path, tensors, known)
    else:
        raise ValueError(
            f"{path}: expected a detector with backbone.vit or backbone.body, found {', '.join(sorted(tensors)[:5])}; "
            "files of a backbone alone go to initialise.backbone_weights"
        )
    if known.get("anchor_sizes"):
        values["anchor_sizes"] = known["anchor_sizes"]
    values |= changes
    _check_anchors(path, tensors, values)
    return ModelConfiguration(**values)


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


def _resnet(path: Path, tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Any]:
    _wanted(path, tensors, "backbone.body.layer3.5.conv3.weight")
    return {
        "backbone": "resnet50_fpn",
        "norm": "batch" if "backbone.body.bn1.num_batches_tracked" in tensors else "frozen_batch",
        "pyramid_channels": len(_wanted(path, tensors, "backbone.fpn.inner_blocks.0.0.weight")),
        "input_size": known.get("resize") or _INPUT_SIZE,
        "anchor_sizes": _RESNET_ANCHOR_SIZES,
    }


def _check_anchors(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    n_found = len(_wanted(path, tensors, "rpn.head.cls_logits.weight"))
    # Without sizes the earlier neck has one per level.
    n_sizes = len(values["anchor_sizes"][0]) if values.get("anchor_sizes") else 1
    n_expected = n_sizes * len(values["anchor_ratios"])
    if n_found != n_expected:
        raise ValueError(
            f"{path}: its proposal head has {n_found} anchors per place, its configuration says {n_expected}; pass "
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
