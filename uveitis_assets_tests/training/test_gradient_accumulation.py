"""A step in parts gives the gradients of the whole batch; what cannot go on says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from uveitis_assets.training.gradient_accumulation import NonFiniteLossError, accumulate_gradients


class ShortOfMemory:
    """Losses of a linear model; more than ``n_fitting`` images at once raise what CUDA raises."""

    def __init__(self, model: nn.Module, n_fitting: int) -> None:
        self._model = model
        self._n_fitting = n_fitting
        self.sizes: list[int] = []

    def __call__(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        if len(images) > self._n_fitting:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.sizes.append(len(images))
        outputs = self._model(torch.stack(list(images)).flatten(1))
        wanted = torch.stack([target["labels"] for target in targets])
        return {"square": ((outputs - wanted) ** 2).mean(), "absolute": (outputs - wanted).abs().mean()}


def batch(n: int) -> tuple[list[Tensor], list[dict[str, Tensor]], list[str]]:
    generator = torch.Generator().manual_seed(3)
    images = [torch.randn(3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(n)]
    targets = [{"labels": torch.randn(2, generator=generator, dtype=torch.float64)} for _ in range(n)]
    return images, targets, [f"tile{number}" for number in range(n)]


def linear() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(12, 2, dtype=torch.float64)


@pytest.mark.parametrize(("n", "n_fitting"), [(8, 4), (8, 1), (7, 3), (5, 2)])
def test_a_step_that_runs_out_of_memory_ends_with_the_weights_of_one_that_does_not(n: int, n_fitting: int) -> None:
    images, targets, names = batch(n)
    stepped = []
    for fitting in (n, n_fitting):
        model, said = linear(), []
        losses_of = ShortOfMemory(model, fitting)
        result = accumulate_gradients(losses_of, model, images, targets, names=names, micro_batch=n, log=said.append)
        torch.optim.AdamW(model.parameters(), 0.1).step()
        stepped.append((model.weight.detach().clone(), result.total))
        assert sum(losses_of.sizes) == n
        assert bool(said) == (fitting < n)
    assert result.micro_batch <= n_fitting
    torch.testing.assert_close(stepped[0][0], stepped[1][0], rtol=1e-12, atol=1e-12)
    assert stepped[0][1] == pytest.approx(stepped[1][1], rel=1e-12)


def test_a_smaller_last_batch_does_not_shrink_the_parts_of_the_following_ones() -> None:
    model = linear()
    images, targets, names = batch(2)
    losses_of = ShortOfMemory(model, 8)
    result = accumulate_gradients(losses_of, model, images, targets, names=names, micro_batch=8, log=print)
    assert result.micro_batch == 8


def test_random_numbers_of_a_failed_attempt_are_drawn_again() -> None:
    model = linear()
    images, targets, names = batch(2)
    drawn: list[float] = []
    inner = ShortOfMemory(model, 1)

    def losses_of(images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        drawn.append(torch.rand(()).item())
        return inner(images, targets)

    accumulate_gradients(losses_of, model, images, targets, names=names, micro_batch=2, log=lambda _: None)
    failed, first, _ = drawn
    assert failed == first


def test_one_tile_that_does_not_fit_is_an_error_that_says_what_to_do() -> None:
    model = linear()
    images, targets, names = batch(4)
    with pytest.raises(RuntimeError, match=r"one tile at a time.*tile0.*lower model.input_size"):
        accumulate_gradients(
            ShortOfMemory(model, 0), model, images, targets, names=names, micro_batch=4, log=lambda _: None
        )


def test_a_loss_that_is_not_finite_names_the_tiles_of_its_part() -> None:
    model = linear()
    images, targets, names = batch(4)
    images[2] = images[2] * torch.nan
    with pytest.raises(NonFiniteLossError, match="tiles tile2, tile3: expected a finite loss, found square nan"):
        accumulate_gradients(
            ShortOfMemory(model, 4), model, images, targets, names=names, micro_batch=2, log=lambda _: None
        )
