"""Makes a detector's backbone faster on a GPU without changing what it computes, but for rounding."""

from __future__ import annotations

import torch
from torch import nn

from uveitis_assets.detection.models.backbones import backbone_of


def speed_up(model: nn.Module, *, channels_last: bool, compiled: bool) -> None:
    """Lay out and compile the backbone in place; names of parameters and of the state stay as they are.

    Heads are left alone: their shapes change with the number of proposals, and every new one would be compiled again.

    Args:
        model: a detector of ``build_detector`` on its device.
        channels_last: keep 4-dimensional weights, and so the maps, with the channels last.
        compiled: compile the backbone when it runs first.
    """
    backbone = backbone_of(model)
    if channels_last:
        backbone.to(memory_format=torch.channels_last)
    if compiled:
        backbone.compile()
