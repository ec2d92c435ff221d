"""Averaged weights: an exponential moving average (EMA) of a model's weights over the optimizer steps.

The average is a second model, so that it is evaluated and saved like any other.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


def ema_copy(model: nn.Module) -> nn.Module:
    """A copy of the model in evaluation mode that receives the averages; it never trains."""
    average = copy.deepcopy(model).eval()
    for parameter in average.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return average


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, *, decay: float, n_updates: int) -> None:
    """Move the average towards the model, after optimizer step number ``n_updates`` (from 1).

    The decay of update n is ``decay * (1 - decay^(n-1)) / (1 - decay^n)``: the average is then exactly the weighted
    mean of the models after the steps, as Adam corrects its moments for their start, and the random initial weights
    have no part in it. ``decay`` 0 copies the model. Buffers (running statistics, counters) are copied.
    """
    kept = 0.0 if decay == 0 or n_updates <= 1 else decay * (1 - decay ** (n_updates - 1)) / (1 - decay**n_updates)
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, 1 - kept)
    for held, current in zip(average.buffers(), model.buffers(), strict=True):
        held.copy_(current)
