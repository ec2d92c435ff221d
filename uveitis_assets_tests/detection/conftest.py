"""Fixtures shared by the tests of trainings."""

from collections.abc import Iterator

import pytest
import torch

from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.detection.squares import squares_split


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums over other numbers of threads differ in their last bits; started processes compute with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def train(store: ArtefactStore) -> LabelledSplit:
    """Four images to learn from: two steps an epoch."""
    return squares_split(store, 4)


@pytest.fixture
def val(store: ArtefactStore) -> LabelledSplit:
    """Two images to be judged on."""
    return squares_split(store, 2, split="val", seed=1)
