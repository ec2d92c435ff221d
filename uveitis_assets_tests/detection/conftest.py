"""Fixtures shared by the tests of trainings."""

import pytest

from uveitis_assets.detection.labelled_split import LabelledSplit
from uveitis_assets.storage import ArtefactStore
from uveitis_assets_tests.detection.squares import squares_split


@pytest.fixture
def train(store: ArtefactStore) -> LabelledSplit:
    """Four images to learn from: two steps an epoch."""
    return squares_split(store, 4)


@pytest.fixture
def val(store: ArtefactStore) -> LabelledSplit:
    """Two images to be judged on."""
    return squares_split(store, 2, split="val", seed=1)
