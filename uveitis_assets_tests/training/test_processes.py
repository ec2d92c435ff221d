"""Processes that train together, really started: they train as one does, and the one that failed first is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from uveitis_assets.training.processes import run_in_processes
from uveitis_assets.training.run_folder import RunFolder
from uveitis_assets_tests.training.listeners import Recorder
from uveitis_assets_tests.training.toy_regression import ToyRegression, train_toy

MODULE = "uveitis_assets_tests.training.toy_process"

pytestmark = pytest.mark.e2e


def test_two_processes_train_as_one_with_batches_of_both(tmp_path: Path) -> None:
    alone, together = Recorder(), Recorder()
    values = train_toy(ToyRegression(dropout=0.0), tmp_path / "alone", alone).values
    folder = tmp_path / "together"
    found = run_in_processes(MODULE, [str(folder)], folder, n_processes=2, listener=together)
    assert together.events[-12:] == alone.events[-12:]
    assert found["n_steps"] == values["n_steps"] == 9
    assert found["fit"] == pytest.approx(values["fit"], rel=1e-4)
    for row, expected in zip(together.rows, alone.rows, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
    states = [torch.load(RunFolder(tmp_path / name).last_state, weights_only=True) for name in ("alone", "together")]
    for name, value in states[0]["average"].items():
        torch.testing.assert_close(states[1]["average"][name], value, rtol=1e-3, atol=1e-4)
    assert len(states[1]["random"]) == 2


def test_the_error_of_the_process_that_failed_first_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="process 1 of 2 failed: ValueError: point 7 is upside down"):
        run_in_processes(MODULE, [str(tmp_path), "fail"], tmp_path, n_processes=2, listener=Recorder())
