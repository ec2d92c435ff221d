"""One optimizer step: losses and gradients of a batch, clipping, weights and their average.

Gradients in parts when memory is short are ``gradient_accumulation``'s; which batch comes next and when something is
written is decided in ``loop``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from uveitis_assets.training.distributed import average_gradients, mean_over_processes
from uveitis_assets.training.ema import update_average
from uveitis_assets.training.gradient_accumulation import NonFiniteLossError, StepLosses, accumulate_gradients
from uveitis_assets.training.learning_rate import learning_rate, set_learning_rate
from uveitis_assets.training.progress import TrainingListener
from uveitis_assets.training.state import TrainingState
from uveitis_assets.training.task import Item, Task


@dataclass(frozen=True, slots=True)
class StepOptions:
    """Options of a training step: batch size, learning rate, gradient clipping, decay of the average.

    ``batch_size`` counts items, the learning rate is AdamW's. ``gradient_clip_norm`` None leaves gradients as they are;
    ``ema_decay`` None keeps no average, 0 one that is the model.
    """

    batch_size: int
    learning_rate: float
    min_learning_rate: float
    warmup_steps: int
    gradient_clip_norm: float | None = None
    ema_decay: float | None = None


def take_step(
    task: Task[Item],
    state: TrainingState,
    items: Sequence[Item],
    options: StepOptions,
    *,
    n_steps: int,
    device: torch.device,
    listener: TrainingListener,
) -> None:
    """Move weights, their average and the position on by one batch, and tell the listener.

    Every process of a group has to call this, each with its own part of the batch.

    Args:
        task: whose losses are lowered.
        state: is changed.
        items: the batch.
        options: of the optimizer.
        n_steps: of the whole training.
        device: where means over processes are computed.
        listener: hears of the step.

    Raises:
        NonFiniteLossError: loss or gradients became NaN or infinite; names epoch, step and items.
        RuntimeError: one item alone does not fit into the GPU's memory.
    """
    position = state.position
    rate = learning_rate(
        position.step,
        n_steps=n_steps,
        warmup_steps=options.warmup_steps,
        peak=options.learning_rate,
        lowest=options.min_learning_rate,
    )
    set_learning_rate(state.optimizer, rate)
    result = _set_gradients(task, state, items, clip_norm=options.gradient_clip_norm, log=listener.on_message)
    state.optimizer.step()
    position.step += 1
    position.batch += 1
    position.micro_batch = result.micro_batch
    if state.average is not None and options.ema_decay is not None:
        update_average(state.average, state.model, decay=options.ema_decay, n_updates=position.step)
    losses = mean_over_processes(result.losses, device)
    for name, loss in losses.items():
        position.loss_sums[name] = position.loss_sums.get(name, 0.0) + loss
    listener.on_step_end(step=position.step, losses=losses, learning_rate=rate)


def _set_gradients(
    task: Task[Item],
    state: TrainingState,
    items: Sequence[Item],
    *,
    clip_norm: float | None,
    log: Callable[[str], None],
) -> StepLosses:
    """Set the model's gradients: of all processes' batches, no longer than ``clip_norm``."""
    position, step = state.position, state.position.step
    try:
        result = accumulate_gradients(
            lambda part: task.losses(state.model, part, step=step),
            state.model,
            items,
            name_of=task.item_name,
            noun=task.item_noun,
            advice=task.advice_out_of_memory,
            micro_batch=position.micro_batch,
            log=log,
        )
        average_gradients(state.model.parameters())
        if clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(state.model.parameters(), clip_norm)
            if not torch.isfinite(norm):
                names = ", ".join(map(task.item_name, items))
                raise NonFiniteLossError(
                    f"{task.item_noun}s {names}: expected finite gradients, found norm {norm.item():g}"
                )
    except NonFiniteLossError as error:
        where = f"epoch {position.epoch + 1}, step {step + 1}"
        raise NonFiniteLossError(f"{where}: {error}; {task.advice_not_finite}") from error
    return result
