"""Whole draws for fractional repeat factors, whose remainders are carried from epoch to epoch."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# A stream of its own beside those of the sampling.
_TIES = 3


class CarriedRemainders:
    """How often each item is drawn in an epoch, so that the counts add up to the factors over the epochs.

    An item is drawn as often as the whole part of its factor. The fractions add up in an account of each item; the
    items with the fullest accounts are drawn once more, which costs them 1.
    """

    def __init__(self, factors: NDArray[np.float64], seed: int) -> None:
        """Take one factor per item, at least 1."""
        self._whole = np.floor(factors).astype(np.int64)
        self._fractions = factors - self._whole
        # Thirds add up to whole numbers.
        self._sum_of_fractions = round(math.fsum(self._fractions.tolist()), 9)
        # Equal accounts are drawn in an order of their own, not that of the images.
        self._rank = np.random.default_rng((seed, _TIES)).permutation(len(factors))
        self._accounts = np.zeros(len(factors))
        self._last = np.zeros(len(factors), np.int64)
        self._next_epoch = 0
        self._n_per_epoch: int | None = None

    @property
    def total(self) -> float:
        """Sum of the factors: draws per epoch on average."""
        return int(self._whole.sum()) + self._sum_of_fractions

    @property
    def are_zero(self) -> bool:
        """Whether all factors are whole."""
        return not self._fractions.any()

    def counts(self, epoch: int, *, n_per_epoch: int | None = None) -> NDArray[np.int64]:
        """Draws of each item in an epoch, counted from 0.

        Args:
            epoch: any; those before are gone through.
            n_per_epoch: sum of the counts in every epoch; None: the factors' sum, in some epochs rounded down and in
                others up.

        Returns:
            int64 (N,): the whole part of each factor, or one more.
        """
        if epoch < self._next_epoch or n_per_epoch != self._n_per_epoch:
            self._accounts[:] = 0
            self._next_epoch, self._n_per_epoch = 0, n_per_epoch
        while self._next_epoch <= epoch:
            self._take_epoch()
        return self._whole + self._last

    def _take_epoch(self) -> None:
        due = [math.floor(epoch * self._sum_of_fractions + 0.5) for epoch in (self._next_epoch, self._next_epoch + 1)]
        n_more = due[1] - due[0] if self._n_per_epoch is None else self._n_per_epoch - int(self._whole.sum())
        self._accounts += self._fractions
        self._last = np.zeros(len(self._whole), np.int64)
        self._last[np.lexsort((self._rank, -self._accounts))[:n_more]] = 1
        self._accounts -= self._last
        self._next_epoch += 1
