"""A batch cut into parts learns from the same anchors and regions as the whole batch."""

from __future__ import annotations

import pytest
import torch

from uveitis_assets.detection.data.tile_seeds import TileSeeds
from uveitis_assets.detection.models.detector import build_detector
from uveitis_assets.training.gradient_accumulation import accumulate_gradients
from uveitis_assets_tests.detection.squares import SIDE, tiny


@pytest.mark.parametrize("stages", [1, 3])
def test_gradients_of_a_real_detector_are_the_same_in_parts_as_in_one(stages: int) -> None:
    torch.manual_seed(0)
    model = build_detector(tiny(model={"head_stages": stages}).model)
    # Samples that every tile can fill: the losses are means over them.
    model.rpn.fg_bg_sampler.batch_size_per_image = 32
    model.roi_heads.fg_bg_sampler.batch_size_per_image = 8
    seeds = TileSeeds(model)
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, SIDE, SIDE, generator=generator) for _ in range(4)]
    targets = [
        {"boxes": torch.tensor([[8.0, 8.0, 24.0 + n, 30.0]]), "labels": torch.tensor([1]), "n": n} for n in range(4)
    ]
    gradients = []
    for size in (4, 1, 3):

        def losses_of(tiles):  # type: ignore[no-untyped-def]
            seeds.set([(7, int(target["n"])) for _, target in tiles])
            labels = [{name: target[name] for name in ("boxes", "labels")} for _, target in tiles]
            return model([image for image, _ in tiles], labels)

        tiles = list(zip(images, targets, strict=True))
        accumulate_gradients(losses_of, model, tiles, name_of=str, micro_batch=size, log=print)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-3, atol=1e-5)
