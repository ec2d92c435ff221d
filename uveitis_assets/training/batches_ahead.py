"""Makes the items of batches in threads, some batches ahead of the training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Source = TypeVar("Source")
Item = TypeVar("Item")


def batches_ahead(
    batches: Sequence[Sequence[Source]], make: Callable[[Source], Item], *, threads: int, n_ahead: int = 2
) -> Iterator[list[Item]]:
    """Yield the batches with ``make`` applied to each of their elements, in order.

    Args:
        batches: what the items are made of.
        make: makes one item; called in threads, so its random numbers have to depend on its argument alone.
        threads: that call it.
        n_ahead: batches that are made before they are asked for.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting = iter(batches)
        pending = [[pool.submit(make, source) for source in batch] for batch in islice(waiting, n_ahead)]
        while pending:
            items = [future.result() for future in pending.pop(0)]
            pending += [[pool.submit(make, source) for source in batch] for batch in islice(waiting, 1)]
            yield items
