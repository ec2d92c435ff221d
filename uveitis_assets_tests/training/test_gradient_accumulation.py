"""A step in parts gives the gradients of the whole batch; what cannot go on says why."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from uveitis_assets.training.gradient_accumulation import NonFiniteLossError, StepLosses, accumulate_gradients

Example = tuple[int, Tensor, Tensor]


class ShortOfMemory:
    """Losses of a linear model; more than ``n_fitting`` examples at once raise what CUDA raises."""

    def __init__(self, model: nn.Module, n_fitting: int) -> None:
        self.model = model
        self._n_fitting = n_fitting
        self.sizes: list[int] = []
        self.drawn: list[float] = []

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        self.drawn.append(torch.rand(()).item())
        if len(examples) > self._n_fitting:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.sizes.append(len(examples))
        outputs = self.model(torch.stack([inputs for _, inputs, _ in examples]))
        wanted = torch.stack([wanted for _, _, wanted in examples])
        return {"square": ((outputs - wanted) ** 2).mean(), "absolute": (outputs - wanted).abs().mean()}


def batch(n: int) -> list[Example]:
    generator = torch.Generator().manual_seed(3)
    numbers = [torch.randn(14, generator=generator, dtype=torch.float64) for _ in range(n)]
    return [(number, values[:12], values[12:]) for number, values in enumerate(numbers)]


def short_of_memory(n_fitting: int) -> ShortOfMemory:
    torch.manual_seed(1)
    return ShortOfMemory(nn.Linear(12, 2, dtype=torch.float64), n_fitting)


def accumulate(
    losses_of: ShortOfMemory, examples: Sequence[Example], micro_batch: int, messages: list[str] | None = None
) -> StepLosses:
    return accumulate_gradients(
        losses_of,
        losses_of.model,
        examples,
        name_of=lambda example: f"row{example[0]}",
        noun="row",
        advice="take shorter rows",
        micro_batch=micro_batch,
        log=([] if messages is None else messages).append,
    )


@pytest.mark.parametrize(("n", "n_fitting"), [(8, 4), (8, 1), (7, 3), (5, 2)])
def test_a_step_that_runs_out_of_memory_ends_with_the_weights_of_one_that_does_not(n: int, n_fitting: int) -> None:
    stepped = []
    for fitting in (n, n_fitting):
        losses_of, messages = short_of_memory(fitting), list[str]()
        result = accumulate(losses_of, batch(n), n, messages)
        torch.optim.AdamW(losses_of.model.parameters(), 0.1).step()
        stepped.append((losses_of.model.weight.detach().clone(), result.total))
        assert sum(losses_of.sizes) == n
        assert bool(messages) == (fitting < n)
    assert result.micro_batch <= n_fitting
    torch.testing.assert_close(stepped[0][0], stepped[1][0], rtol=1e-12, atol=1e-12)
    assert stepped[0][1] == pytest.approx(stepped[1][1], rel=1e-12)


def test_a_smaller_last_batch_does_not_shrink_the_parts_of_the_following_ones() -> None:
    assert accumulate(short_of_memory(8), batch(2), 8).micro_batch == 8


def test_random_numbers_of_a_failed_attempt_are_drawn_again() -> None:
    losses_of = short_of_memory(1)
    accumulate(losses_of, batch(2), 2)
    failed, first, _ = losses_of.drawn
    assert failed == first


def test_one_item_that_does_not_fit_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"one row at a time \(row0\): CUDA out of memory.*; take shorter rows"):
        accumulate(short_of_memory(0), batch(4), 4)


def test_a_loss_that_is_not_finite_names_the_items_of_its_part() -> None:
    examples = [(n, inputs * torch.nan if n == 2 else inputs, wanted) for n, inputs, wanted in batch(4)]
    with pytest.raises(NonFiniteLossError, match="rows row2, row3: expected a finite loss, found square nan"):
        accumulate(short_of_memory(4), examples, 2)
