"""Rank, world size, all-reduced means and broadcast from rank 0, for distributed training.

Without a process group every function is the one of a single process. Gradients are averaged once per optimizer step
instead of by a wrapper around the model: blocks can be unfrozen, and a process whose GPU is short of memory can cut its
batch, without the others noticing. ``processes`` starts them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import distributed, nn

Value = TypeVar("Value")


def process_rank() -> int:
    """Number of this process, from 0; rank 0 writes."""
    return distributed.get_rank() if _grouped() else 0


def n_processes() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if _grouped() else 1


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients of all trained parameters by their mean over the processes.

    A parameter that had no part in this process's loss counts as zero there, and stays without a gradient where no
    process has one.
    """
    if n_processes() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    present = torch.tensor([float(parameter.grad is not None) for parameter in trained], device=trained[0].device)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    # One message: latency, not bandwidth, is what hundreds of small ones cost.
    flat = torch.cat([present, *(gradient.float().flatten() for gradient in gradients)])
    distributed.all_reduce(flat)
    present, flat = flat[: len(trained)], flat[len(trained) :] / n_processes()
    start = 0
    for parameter, gradient, n_present in zip(trained, gradients, present.tolist(), strict=True):
        mean = flat[start : start + gradient.numel()].view_as(gradient)
        parameter.grad = mean.to(parameter.dtype).clone() if n_present else None
        start += gradient.numel()


def mean_over_processes(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Means of named numbers that every process has."""
    if n_processes() == 1:
        return values
    held = torch.tensor([values[name] for name in sorted(values)], dtype=torch.float64, device=device)
    distributed.all_reduce(held)
    return dict(zip(sorted(values), (held / n_processes()).tolist(), strict=True))


def gathered(value: Value) -> list[Value]:
    """Every process's value, by rank, in every process."""
    if n_processes() == 1:
        return [value]
    values: list[Any] = [None] * n_processes()
    distributed.all_gather_object(values, value)
    return values


def from_rank_0(value: Value) -> Value:
    """Rank 0's value, in every process."""
    if n_processes() == 1:
        return value
    held = [value]
    distributed.broadcast_object_list(held, src=0)
    return held[0]


def copy_from_rank_0(model: nn.Module) -> None:
    """Give every process rank 0's weights and buffers."""
    if n_processes() == 1:
        return
    for tensor in model.state_dict().values():
        distributed.broadcast(tensor, src=0)


def _grouped() -> bool:
    return distributed.is_available() and distributed.is_initialized()
