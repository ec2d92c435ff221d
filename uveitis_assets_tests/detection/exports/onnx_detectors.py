"""Small detectors with random weights whose answers differ between tiles, and tiles with generated lesions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from uveitis_assets.detection.model_configuration import ModelConfiguration
from uveitis_assets.detection.models.class_logits import mask_untaught_classes
from uveitis_assets.detection.models.detector import build_detector

SMALL: dict[str, Any] = {
    "pyramid_channels": 16,
    "head_width": 32,
    "n_categories": 4,
    "rpn_pre_nms_test": 150,
    "rpn_post_nms_test": 40,
    "detections_per_tile": 25,
}


def random_detector(*, taught: tuple[int, ...] = (), **changes: Any) -> nn.Module:
    """A detector whose scores, boxes and angles are spread widely, in evaluation mode."""
    torch.manual_seed(0)
    model: Any = build_detector(ModelConfiguration(**{**SMALL, **changes}))
    spread = {"rpn.head.cls_logits": 0.5, "rpn.head.bbox_pred": 0.1, "cls_score": 1.0, "box_predictor.bbox_pred": 0.3}
    spread["oriented_predictor"] = 0.5
    for name, module in model.named_modules():
        for ending, deviation in spread.items():
            if name.endswith(ending):
                nn.init.normal_(module.weight, std=deviation)
    if taught:
        mask_untaught_classes(model, taught)
    detector: nn.Module = model.eval()
    return detector


def lesion_tiles(side: int, n_tiles: int = 10) -> dict[str, NDArray[np.float32]]:
    """Inputs (1, 3, S, S), RGB 0..1: a black tile, then dark ones with more and more bright spots."""
    tiles = {}
    for number in range(n_tiles):
        rng = np.random.default_rng(number)
        pixels = np.zeros((3, side, side)) if number == 0 else rng.uniform(0.1, 0.3, (3, side, side))
        rows, columns = np.mgrid[:side, :side]
        for _ in range(2 * number):
            (y, x), radius = rng.uniform(0, side, 2), rng.uniform(2, side / 8)
            spot = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
            pixels[:, spot] = rng.uniform(0.4, 1.0, (3, 1))
        tiles[f"tile {number}"] = pixels[None].astype(np.float32)
    return tiles


def with_empty_tiles(model: Any, tiles: dict[str, NDArray[np.float32]]) -> float:
    """Set the score threshold so that two of the tiles have no detections, and return it."""
    with torch.inference_mode():
        best = sorted(float(model([torch.from_numpy(tile[0])])[0]["scores"].max()) for tile in tiles.values())
    model.roi_heads.score_thresh = (best[1] + best[2]) / 2
    return float(model.roi_heads.score_thresh)
