"""The learning rate of every optimizer step: a linear warm-up, then half a cosine.

A pure function of the step, so that a training that was killed goes on with the same rates.
"""

from __future__ import annotations

import math

import torch


def learning_rate(step: int, *, n_steps: int, warmup_steps: int, peak: float, lowest: float) -> float:
    """Rate of optimizer step ``step``, counted from 0.

    Rises linearly so that step ``warmup_steps`` is the first with ``peak``, then falls as half a cosine and reaches
    ``lowest`` in the last of ``n_steps`` steps. Source: Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, n_steps - 1 - warmup_steps)
    return lowest + (peak - lowest) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets each parameter group's learning rate: the rate times its ``lr_scale``, if any."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
