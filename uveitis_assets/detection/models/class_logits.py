"""Class logits and box offsets of pooled regions, with untaught classes masked.

A network has an output for every category, so that ids keep their meaning between lanes and weights. A lane may learn
some of them: the others have no lesions in its labels, and what the network says about them is no answer. Their logits
are masked in the layer itself: every loss, score, suppression and limit of detections behind it sees a network that
has the taught classes alone, in training, validation, evaluation and prediction alike.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

# Its softmax is exactly 0 beside any logit of a network, and it is finite: NaN and infinity stay signs of damage.
_NEVER = -1e9


class BoxPredictor(FastRCNNPredictor):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's predictor that computes in float32, with a mask of untaught classes.

    The mask is no part of the state: files keep torchvision's names.
    """

    mask: Tensor | None

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes)
        self.register_buffer("mask", None, persistent=False)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(regions.device.type, enabled=False):
            logits, offsets = super().forward(regions.float())
        return (logits if self.mask is None else logits + self.mask), offsets


def mask_untaught_classes(model: nn.Module, taught: Collection[int]) -> None:
    """Mask every category of a detector but ``taught``, in place; with all of them there is no mask.

    Args:
        model: made by ``build_detector``.
        taught: category ids from 1 on; those that the network does not have are left out.

    Raises:
        TypeError: the model has no ``BoxPredictor``.
        ValueError: the network has none of the categories.
    """
    predictors = [module for module in model.modules() if isinstance(module, BoxPredictor)]
    if not predictors:
        raise TypeError(f"expected a detector made by build_detector, found {type(model).__name__}")
    for predictor in predictors:
        device, n_classes = predictor.cls_score.weight.device, predictor.cls_score.out_features
        known = sorted(set(taught) & set(range(1, n_classes)))
        if not known:
            raise ValueError(
                f"taught classes: expected some of the network's categories 1 to {n_classes - 1}, found "
                f"{sorted(taught)}; check classes and model.n_categories"
            )
        mask = torch.full((n_classes,), _NEVER, device=device)
        mask[[0, *known]] = 0.0
        predictor.mask = mask if bool((mask < 0).any()) else None
