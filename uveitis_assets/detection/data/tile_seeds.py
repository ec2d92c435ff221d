"""Random choices inside a detector's losses that depend on step and tile alone.

torchvision's detectors learn from a random sample of anchors and of regions per image, drawn image after image from one
stream. Here every image draws from a stream of its own, so that a batch that is cut into parts for want of memory, or
shared among other processes, learns from the same samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class TileSeeds:
    """Seeds for the images of the following pass, in their order."""

    def __init__(self, model: nn.Module) -> None:
        """Make the samplers of a torchvision detector draw from these seeds."""
        self._seeds: list[tuple[int, ...]] = []
        parts: Any = model
        for stage, part in enumerate((parts.rpn, parts.roi_heads)):
            part.fg_bg_sampler = _SeededSampler(part.fg_bg_sampler, self, stage)

    def set(self, seeds: Sequence[tuple[int, ...]]) -> None:
        """Choose the seeds of the next pass: tuples of non-negative numbers, one per image."""
        self._seeds = list(seeds)

    def of(self, image: int, stage: int) -> int:
        """One seed for an image's draws in a stage."""
        return int(np.random.SeedSequence([*self._seeds[image], stage]).generate_state(1, np.uint64)[0] >> 1)


class _SeededSampler:
    def __init__(self, sampler: Any, seeds: TileSeeds, stage: int) -> None:
        self._sampler = sampler
        self._seeds = seeds
        self._stage = stage

    def __call__(self, matched: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        chosen: tuple[list[Tensor], list[Tensor]] = ([], [])
        for image, indices in enumerate(matched):
            gpus = [indices.device] if indices.is_cuda else []
            with torch.random.fork_rng(devices=gpus):
                torch.manual_seed(self._seeds.of(image, self._stage))
                found = self._sampler([indices])
            for side, masks in zip(chosen, found, strict=True):
                side.extend(masks)
        return chosen
