"""Averaged weights are the weighted mean of the weights after every step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from uveitis_assets.training.ema import ema_copy, update_average


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_the_average_is_the_normalized_weighted_mean_of_all_steps_without_the_start(decay: float) -> None:
    model = nn.Linear(3, 2, dtype=torch.float64)
    average = ema_copy(model)
    history = []
    for step in range(1, 8):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter))
        history.append(model.weight.detach().clone())
        update_average(average, model, decay=decay, n_updates=step)
    shares = torch.tensor([decay ** (len(history) - 1 - number) for number in range(len(history))], dtype=torch.float64)
    expected = sum(share * weights for share, weights in zip(shares / shares.sum(), history, strict=True))
    torch.testing.assert_close(average.weight.detach(), expected)


def test_decay_0_follows_the_model_and_buffers_are_copied() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    average = ema_copy(model)
    model(torch.randn(4, 1, 3, 3))
    with torch.no_grad():
        model[0].weight.fill_(7.0)
    update_average(average, model, decay=0.0, n_updates=5)
    assert torch.equal(average[0].weight, model[0].weight)
    assert torch.equal(average[1].running_mean, model[1].running_mean)
    assert not average.training
    assert not any(parameter.requires_grad for parameter in average.parameters())
