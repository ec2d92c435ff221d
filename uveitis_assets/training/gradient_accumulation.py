"""Gradients of one training step's batch, in as many parts as the memory needs.

When the GPU runs out of memory the batch is cut in half, and the gradients of the parts add up to those of the whole.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from uveitis_assets.training.random_state import random_state, restore_random_state

Item = TypeVar("Item")


class NonFiniteLossError(ArithmeticError):
    """The loss or the gradients are NaN or infinite, so the training cannot continue."""


@dataclass(frozen=True, slots=True)
class StepLosses:
    """Mean losses of one batch by name, and the items per part from here on."""

    losses: dict[str, float]
    micro_batch: int

    @property
    def total(self) -> float:
        """Sum of the mean losses."""
        return sum(self.losses.values())


def accumulate_gradients(
    losses_of: Callable[[Sequence[Item]], Mapping[str, Tensor]],
    model: nn.Module,
    items: Sequence[Item],
    *,
    name_of: Callable[[Item], str],
    micro_batch: int,
    log: Callable[[str], None],
    noun: str = "item",
    advice: str = "take a smaller model or smaller inputs",
) -> StepLosses:
    """Set the gradients of the batch's mean loss, in parts of at most ``micro_batch`` items.

    A part counts by its share of the items, so that the sum over the parts is the loss of the whole batch. Parts that
    do not fit are halved and the batch begins again, with the random numbers it had.

    Args:
        losses_of: the model's losses of some items by name, each the mean over them.
        model: whose ``grad`` is set; former gradients are dropped.
        items: the batch.
        name_of: names an item in messages.
        micro_batch: items per part to begin with.
        log: takes a message when the parts get smaller.
        noun: what messages call an item.
        advice: what to do when one item alone does not fit.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite; names the items.
        RuntimeError: one item alone does not fit into the memory.
    """
    size, halved = min(micro_batch, len(items)), False
    while True:
        before = random_state()
        try:
            losses = _accumulate(losses_of, model, items, name_of=name_of, noun=noun, size=size)
            return StepLosses(losses, size if halved else micro_batch)
        except torch.cuda.OutOfMemoryError as error:
            reason = str(error).partition("\n")[0]
        model.zero_grad(set_to_none=True)
        # Tensors of the failed pass are only free once the exception and its frames are gone.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size == 1:
            raise RuntimeError(f"out of GPU memory with one {noun} at a time ({name_of(items[0])}): {reason}; {advice}")
        restore_random_state(before)
        smaller = (size + 1) // 2
        log(f"out of GPU memory with {size} {noun}s at a time; going on with {smaller}, which gives the same step")
        size, halved = smaller, True


def _accumulate(
    losses_of: Callable[[Sequence[Item]], Mapping[str, Tensor]],
    model: nn.Module,
    items: Sequence[Item],
    *,
    name_of: Callable[[Item], str],
    noun: str,
    size: int,
) -> dict[str, float]:
    model.zero_grad(set_to_none=True)
    means: dict[str, float] = {}
    for start in range(0, len(items), size):
        part = items[start : start + size]
        share = len(part) / len(items)
        losses = losses_of(part)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            names = ", ".join(map(name_of, part))
            found = ", ".join(f"{name} {loss.item():g}" for name, loss in losses.items())
            raise NonFiniteLossError(f"{noun}s {names}: expected a finite loss, found {found}")
        (total * share).backward()  # type: ignore[no-untyped-call]
        for name, loss in losses.items():
            means[name] = means.get(name, 0.0) + loss.item() * share
    return means
