"""Which parts of a detector's backbone train in which epoch, and the optimizer's parameter groups.

Every parameter is in the optimizer from the first step on, frozen ones without a gradient: optimizers skip those,
weight decay included, and a block that is unfrozen later really trains. A model wrapped for distributed training has
to be wrapped again after a change, because the wrapper only synchronizes what required gradients when it was made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from uveitis_assets.detection.models.backbones import backbone_of
from uveitis_assets.training.configuration import TrainingConfiguration

_WITHOUT_DECAY = ("cls_token", "pos_embed")


def freeze_blocks(model: nn.Module, n_frozen: int) -> None:
    """Freeze the stem and the first blocks of the backbone; train all others.

    The stem is the patch and position embedding, or the first convolutions.

    Zero trains everything. Parts that become frozen lose their gradients, so that no optimizer moves them, and go to
    evaluation mode, so that their running statistics stay.

    Raises:
        ValueError: the backbone has fewer blocks.
    """
    backbone = backbone_of(model)
    parts = backbone.freezable_parts()
    if not 0 <= n_frozen < len(parts):
        raise ValueError(f"freeze_blocks: expected 0 to {len(parts) - 1} for this backbone, found {n_frozen}")
    backbone.n_frozen_parts = n_frozen + 1 if n_frozen else 0
    for index, part in enumerate(parts):
        trains = index >= backbone.n_frozen_parts
        for parameter in _parameters(part):
            parameter.requires_grad_(trains)
            if not trains:
                parameter.grad = None
    backbone.train(backbone.training)


def n_frozen_blocks(options: TrainingConfiguration, epoch: int) -> int:
    """Blocks that are frozen in an epoch, counted from 0.

    All of ``freeze_blocks`` before ``freeze_epochs``; from then on ``unfreeze_blocks_per_epoch`` fewer each epoch, or
    none where that is 0.
    """
    if epoch < options.freeze_epochs:
        return options.freeze_blocks
    if options.unfreeze_blocks_per_epoch == 0:
        return 0
    unfrozen = (epoch - options.freeze_epochs + 1) * options.unfreeze_blocks_per_epoch
    return max(0, options.freeze_blocks - unfrozen)


def ever_frozen(options: TrainingConfiguration) -> bool:
    """Whether some epoch of a training has frozen blocks."""
    return any(n_frozen_blocks(options, epoch) for epoch in range(options.epochs))


def parameter_groups(model: nn.Module, configuration: TrainingConfiguration) -> list[dict[str, Any]]:
    """Optimizer groups that hold every parameter of the model, frozen or not, exactly once.

    Each group has ``params``, ``lr``, ``weight_decay``, ``lr_scale`` (its ``lr`` over the configured one) and ``name``.
    Norms, biases, class token and position embeddings do not decay. With ``layer_decay`` below 1 the rate falls by that
    factor per block towards the input.
    """
    parts = backbone_of(model).freezable_parts()
    depth = {id(parameter): index for index, part in enumerate(parts) for parameter in _parameters(part)}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        layer = depth.get(id(parameter), len(parts))
        decays = parameter.ndim > 1 and name.rpartition(".")[2] not in _WITHOUT_DECAY
        scale = configuration.layer_decay ** (len(parts) - layer)
        # Without layer decay two groups are enough.
        key = (layer if configuration.layer_decay < 1 else len(parts), decays)
        group = groups.setdefault(
            key,
            {
                "params": [],
                "lr": configuration.learning_rate * scale,
                "lr_scale": scale,
                "weight_decay": configuration.weight_decay if decays else 0.0,
                "name": f"layer_{key[0]:02d}_{'decay' if decays else 'no_decay'}",
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _parameters(part: list[nn.Module | nn.Parameter]) -> Iterator[nn.Parameter]:
    for member in part:
        if isinstance(member, nn.Parameter):
            yield member
        else:
            yield from member.parameters()
