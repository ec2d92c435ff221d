"""The learning rate warms up linearly and falls as torch's own cosine does."""

from __future__ import annotations

import pytest
import torch

from uveitis_assets.training.learning_rate import learning_rate


def test_the_rate_is_torchs_warm_up_followed_by_its_cosine() -> None:
    n_steps, warmup, peak, lowest = 40, 7, 0.3, 0.01
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    linear = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), 1.0, total_iters=warmup)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps - 1 - warmup, eta_min=lowest)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [linear, cosine], [warmup])
    for step in range(n_steps):
        found = learning_rate(step, n_steps=n_steps, warmup_steps=warmup, peak=peak, lowest=lowest)
        assert found == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        scheduler.step()


def test_a_warm_up_longer_than_the_training_only_rises() -> None:
    rates = [learning_rate(step, n_steps=5, warmup_steps=20, peak=1.0, lowest=0.1) for step in range(5)]
    assert rates == sorted(rates)
    assert rates[-1] < 1.0
