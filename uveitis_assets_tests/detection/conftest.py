"""Fixtures shared by the tests of detectors."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.training.train_detector import train_detector
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.detection.squares import squares_split, store_at, tiny


@pytest.fixture
def train(store: ArtefactStore) -> LabelledSplit:
    """Four images to learn from: two steps an epoch."""
    return squares_split(store, 4)


@pytest.fixture
def val(store: ArtefactStore) -> LabelledSplit:
    """Two images to evaluate on."""
    return squares_split(store, 2, split="val", seed=1)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one epoch on ``train`` and ``val``; copy it to change it."""
    store = store_at(tmp_path_factory.mktemp("finished_run"))
    train, val = squares_split(store, 4), squares_split(store, 2, split="val", seed=1)
    folder = store.run_folder("squares", 0)
    train_detector(store, tiny(training={"epochs": 1}), folder, train, val, device="cpu")
    return folder


@pytest.fixture
def trained(store: ArtefactStore, train: LabelledSplit, val: LabelledSplit, finished_run: Path) -> Path:
    """A copy of ``finished_run`` in the store: the run folder of the lane ``squares``."""
    folder = store.run_folder("squares", 0)
    shutil.copytree(finished_run, folder)
    return folder
