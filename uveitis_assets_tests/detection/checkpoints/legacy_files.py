"""Files as the earlier scripts and RETFound wrote them, with random weights of tiny transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uveitis_assets_tests.detection.models.tiny_transformer import DEPTH, WIDTH

CHANNELS, HEAD, CLASSES = 16, 32, 4


def transformer_shapes(grid: int = 4, mlp: int = 4 * WIDTH) -> dict[str, tuple[int, ...]]:
    """The encoder's tensors as the earlier scripts and RETFound name them."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + grid * grid, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 16, 16),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    for block in range(DEPTH):
        for name, shape in (
            ("norm1", (WIDTH,)),
            ("attn.qkv", (3 * WIDTH, WIDTH)),
            ("attn.proj", (WIDTH, WIDTH)),
            ("norm2", (WIDTH,)),
            ("mlp.fc1", (mlp, WIDTH)),
            ("mlp.fc2", (WIDTH, mlp)),
        ):
            shapes[f"blocks.{block}.{name}.weight"] = shape
            shapes[f"blocks.{block}.{name}.bias"] = shape[:1]
    return shapes


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.randn(shape) * 0.05 for name, shape in shapes.items()}


def legacy_transformer_state(n_anchors: int = 3) -> dict[str, Tensor]:
    shapes = {f"backbone.vit.{name}": shape for name, shape in transformer_shapes().items()}
    for name, shape in (
        ("backbone.proj", (CHANNELS, WIDTH, 1, 1)),
        *((f"backbone.smooth.{level}", (CHANNELS, CHANNELS, 3, 3)) for level in ("p2", "p3", "p4", "p5")),
        ("rpn.head.conv.0.0", (CHANNELS, CHANNELS, 3, 3)),
        ("rpn.head.cls_logits", (n_anchors, CHANNELS, 1, 1)),
        ("rpn.head.bbox_pred", (4 * n_anchors, CHANNELS, 1, 1)),
        ("roi_heads.box_head.fc6", (HEAD, CHANNELS * 49)),
        ("roi_heads.box_head.fc7", (HEAD, HEAD)),
        ("roi_heads.box_predictor.cls_score", (CLASSES, HEAD)),
        ("roi_heads.box_predictor.bbox_pred", (4 * CLASSES, HEAD)),
    ):
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]
    return random_tensors(shapes)


def write_legacy(path: Path, state: dict[str, Tensor], config: dict[str, Any] | None = None) -> Path:
    content = {
        "epoch": 4,
        "model": state,
        "config": config or {"data": {"resize": 768}, "model": {"box_score_thresh": 0.2, "rpn_fg_iou_thresh": 0.4}},
        "metrics": {"epoch": 4, "val_mAP_proxy": np.float64(0.0215), "n": np.int64(3)},
        "val_metrics": {"mAP_proxy": np.float32(0.5)},
        "optimizer": {"state": {}, "param_groups": [{"lr": 2e-5}]},
    }
    torch.save(content, path)
    return path
