"""Processes that train together, really started: one checkpoint, averaged gradients, a cause when one fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from uveitis_assets.detection.data.labelled_split import labelled_fingerprint
from uveitis_assets.detection.data.split_file import split_from_plain, split_to_plain
from uveitis_assets.detection.training.train_process import train_in_processes
from uveitis_assets_tests.detection.squares import squares_split, store_at, tiny
from uveitis_assets_tests.training.listeners import Recorder


@pytest.mark.slow
def test_two_processes_train_one_model_and_rank_0_writes_it(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    train, val = squares_split(store, 6), squares_split(store, 3, split="val", seed=1)
    listener = Recorder()
    configuration = tiny(training={"batch_size": 1})
    outcome = train_in_processes(
        store, configuration, tmp_path / "run", train, val, device="cpu", n_processes=2, progress=listener
    )
    # 6 tiles, 2 processes of 1 tile: 3 steps an epoch.
    assert listener.steps == [1, 2, 3, 4, 5, 6]
    assert outcome.n_steps == 6
    assert [row["epoch"] for row in listener.rows] == [1, 2]
    assert outcome.best_weights.is_file()
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pth", weights_only=True)
    assert len(state["random"]) == 2


def test_a_split_survives_the_way_to_another_process(tmp_path: Path) -> None:
    split = squares_split(store_at(tmp_path), 3)
    copy = split_from_plain(json.loads(json.dumps(split_to_plain(split), allow_nan=False)))
    assert labelled_fingerprint(copy.images, copy.categories) == split.fingerprint
    assert copy.images[0].tiles[0].file == split.images[0].tiles[0].file
