"""One training step's gradients, in as many parts as the memory needs.

When the GPU runs out of memory the batch is cut in half and the gradients of the parts add up to those of the whole.
It decides neither the batch nor what the optimizer does with the gradients.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from uveitis_assets.training.random_state import random_state, restore_random_state

Target = Mapping[str, Tensor]


class NonFiniteLossError(ArithmeticError):
    """The loss or the gradients are NaN or infinite: the training has left the range in which it can go on."""


@dataclass(frozen=True, slots=True)
class StepLosses:
    """Mean losses of one batch by name, and the tiles per part from here on."""

    losses: dict[str, float]
    micro_batch: int

    @property
    def total(self) -> float:
        return sum(self.losses.values())


def accumulate_gradients(
    losses_of: Callable[[Sequence[Tensor], Sequence[Target]], Mapping[str, Tensor]],
    model: nn.Module,
    images: Sequence[Tensor],
    targets: Sequence[Target],
    *,
    names: Sequence[str],
    micro_batch: int,
    log: Callable[[str], None],
) -> StepLosses:
    """Set the gradients of the batch's mean loss, in parts of at most ``micro_batch`` tiles.

    A part counts by its share of the tiles, so that the sum over the parts is the loss of the whole batch. Parts that
    do not fit are halved and the batch begins again, with the random numbers it had.

    Args:
        losses_of: the model's losses of some images and targets, each the mean over them.
        model: whose ``grad`` is set; former gradients are dropped.
        images: float (3, H, W) each.
        targets: as torchvision's detectors take them.
        names: of the tiles, for messages.
        micro_batch: tiles per part to begin with.
        log: takes a message when the parts get smaller.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite; names the tiles.
        RuntimeError: one tile alone does not fit into the memory.
    """
    size, halved = min(micro_batch, len(images)), False
    while True:
        before = random_state()
        try:
            losses = _accumulate(losses_of, model, images, targets, names=names, size=size)
            return StepLosses(losses, size if halved else micro_batch)
        except torch.cuda.OutOfMemoryError as error:
            reason = str(error).partition("\n")[0]
        model.zero_grad(set_to_none=True)
        # Tensors of the failed pass are only free once the exception and its frames are gone.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size == 1:
            raise RuntimeError(
                f"out of GPU memory with one tile at a time ({names[0]}): {reason}; lower model.input_size, take a "
                "smaller backbone, or set model.recompute_activations"
            )
        restore_random_state(before)
        log(
            f"out of GPU memory with {size} tiles at a time; going on with {(size + 1) // 2}, which gives the same step"
        )
        size, halved = (size + 1) // 2, True


def _accumulate(
    losses_of: Callable[[Sequence[Tensor], Sequence[Target]], Mapping[str, Tensor]],
    model: nn.Module,
    images: Sequence[Tensor],
    targets: Sequence[Target],
    *,
    names: Sequence[str],
    size: int,
) -> dict[str, float]:
    model.zero_grad(set_to_none=True)
    means: dict[str, float] = {}
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        share = len(images[part]) / len(images)
        losses = losses_of(images[part], targets[part])
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            found = ", ".join(f"{name} {loss.item():g}" for name, loss in losses.items())
            raise NonFiniteLossError(f"tiles {', '.join(names[part])}: expected a finite loss, found {found}")
        (total * share).backward()  # type: ignore[no-untyped-call]
        for name, loss in losses.items():
            means[name] = means.get(name, 0.0) + loss.item() * share
    return means
