"""One optimizer step of a training: losses of a batch, gradients, clipping, weights and their average.

Gradients in parts when memory is short are ``micro_batches``'s; which batch comes next and when something is written is
decided in ``training``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.data.tile_dataset import Target
from uveitis_assets.detection.training.run import TrainingRun
from uveitis_assets.training.distributed import average_gradients, mean_over_processes
from uveitis_assets.training.ema import update_average
from uveitis_assets.training.gradient_accumulation import NonFiniteLossError, accumulate_gradients
from uveitis_assets.training.learning_rate import learning_rate, set_learning_rate


def take_step(run: TrainingRun, images: Sequence[Tensor], targets: Sequence[Target]) -> None:
    """Move the run's weights, their average and its position on by one batch, and tell the listener.

    Every process of a group has to call this, each with its own part of the batch.

    Args:
        run: its learner is changed.
        images: uint8 (3, S, S) RGB.
        targets: those of ``TileDataset``, on the CPU.

    Raises:
        NonFiniteLossError: loss or gradients became NaN or infinite; names epoch, step and tiles.
        RuntimeError: one tile alone does not fit into the GPU's memory.
    """
    learner, options = run.learner, run.options
    position = learner.position
    rate = learning_rate(
        position.step,
        n_steps=run.n_steps,
        warmup_steps=options.warmup_steps,
        peak=options.learning_rate,
        lowest=options.min_learning_rate,
    )
    set_learning_rate(learner.optimizer, rate)
    names = [_tile_name(run.train, target) for target in targets]
    step = position.step
    where = f"epoch {position.epoch + 1}, step {position.step + 1}"

    def losses_of(images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        pixels = [image.to(run.device, non_blocking=True).float() / 255 for image in images]
        labels = [
            {name: target[name].to(run.device, non_blocking=True) for name in ("boxes", "labels", "corners")}
            for target in targets
        ]
        run.tile_seeds.set([_seed_of(options.seed, step, target) for target in targets])
        with torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=run.amp):
            losses: Mapping[str, Tensor] = learner.model(pixels, labels)
        return losses

    advice = "lower training.learning_rate or training.gradient_clip_norm, or set training.amp to off"
    try:
        result = accumulate_gradients(
            losses_of,
            learner.model,
            images,
            targets,
            names=names,
            micro_batch=position.micro_batch,
            log=run.listener.on_message,
        )
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"{where}: {error}; {advice}") from error
    average_gradients(learner.model.parameters())
    norm = nn.utils.clip_grad_norm_(learner.model.parameters(), options.gradient_clip_norm)
    if not torch.isfinite(norm):
        raise NonFiniteLossError(
            f"{where}: tiles {', '.join(names)}: expected finite gradients, found norm {norm.item():g}; {advice}"
        )
    learner.optimizer.step()
    position.step += 1
    position.batch += 1
    position.micro_batch = result.micro_batch
    update_average(learner.average, learner.model, decay=options.ema_decay, n_updates=position.step)
    losses = mean_over_processes(result.losses, run.device)
    for name, loss in losses.items():
        position.loss_sums[name] = position.loss_sums.get(name, 0.0) + loss
    run.listener.on_step_end(step=position.step, losses=losses, learning_rate=rate)


def _seed_of(seed: int, step: int, target: Mapping[str, Tensor]) -> tuple[int, ...]:
    return seed, step, int(target["image_index"]), int(target["tile_index"])


def _tile_name(split: LabelledSplit, target: Mapping[str, Tensor]) -> str:
    image = split.images[int(target["image_index"])]
    return f"{image.image_id}/{image.tiles[int(target['tile_index'])].tile_id}"
