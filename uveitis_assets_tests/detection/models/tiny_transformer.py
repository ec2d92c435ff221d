"""Transformers small enough for tests, in place of RETFound's shapes."""

from __future__ import annotations

from typing import Any

import pytest

from uveitis_assets.detection.model_configuration import ModelConfiguration
from uveitis_assets.detection.models import retfound

WIDTH, DEPTH, HEADS = 32, 3, 2


def use_tiny_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make RETFound's names stand for transformers of 3 blocks."""
    tiny = retfound.TransformerShape(WIDTH, DEPTH, HEADS)
    monkeypatch.setattr(retfound, "TRANSFORMER_SHAPES", dict.fromkeys(retfound.TRANSFORMER_SHAPES, tiny))


def tiny_configuration(**changes: Any) -> ModelConfiguration:
    """A transformer detector for inputs of 64 px."""
    values: dict[str, Any] = {
        "backbone": "retfound_vit_l16",
        "input_size": 64,
        "pyramid_channels": 16,
        "head_width": 32,
        "n_categories": 3,
        "rpn_post_nms_train": 50,
        "rpn_post_nms_test": 50,
    }
    return ModelConfiguration(**{**values, **changes})
