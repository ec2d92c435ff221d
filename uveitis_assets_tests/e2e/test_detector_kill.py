"""SIGKILL of the real command in the middle of a training: given again, it goes on where it was killed.

That the weights are then those of an undisturbed training, to the bit, is proven by the tests of the training loop.
"""

from __future__ import annotations

import importlib
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from uveitis_assets.sample import write_uwf700
from uveitis_assets.storage.files import read_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.components.detector.test_lesion_detector import DETECTOR, LANE
from uveitis_assets_tests.components.running_platform import Platform, use
from uveitis_assets_tests.e2e.installation import Installation
from uveitis_assets_tests.lane_project import fundus_lanes, write_project
from uveitis_assets_tests.patience import patience

pytestmark = pytest.mark.slow

PROJECT = "killed_lanes"
COMMAND = (
    *("dagster", "asset", "materialize", "-m", f"{PROJECT}.definitions"),
    *("--select", "killed/checkpoint", "--partition", "fold0"),
)


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    """A project with a small detector that writes its state after every step."""
    text = DETECTOR.replace("epochs: 1", "epochs: 2\n    checkpoint_every_steps: 1")
    write_project(tmp_path, PROJECT, {"uwf700": LANE, "killed": text.format(name="killed", more="")})
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    return Installation(tmp_path, {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})


@pytest.fixture
def store(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> ArtefactStore:
    """Labels of one fold."""
    store = ArtefactStore(installation.data, installation.raw)
    use(store, monkeypatch)
    write_uwf700(store.raw, 8, 3, 320, 252, workers=1)
    monkeypatch.syspath_prepend(installation.root)
    definitions = importlib.import_module(f"{PROJECT}.definitions").defs()
    platform = Platform(definitions, fundus_lanes(installation.root / PROJECT), store, installation.instance())
    platform.register("uwf700")
    assert platform.run("uwf700").success
    assert platform.run_labels("uwf700", "fold0|train", "fold0|test").success
    return store


def test_a_killed_training_is_continued_by_the_same_command(installation: Installation, store: ArtefactStore) -> None:
    folder = store.run_folder("killed", 0)
    state = folder / "checkpoints" / "last.pth"
    process = installation.start(*COMMAND)
    until = time.monotonic() + patience(120)
    while not state.exists():
        assert process.poll() is None, f"ended before it could be killed:\n{process.communicate()[0][-4000:]}"
        assert time.monotonic() < until, "never got to where it was to be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert read_json(folder / "run.json")["outcome"] is None
    assert not (folder / "checkpoints" / "best.safetensors").exists()

    step = torch.load(state, weights_only=True)["position"]["step"]
    assert f"continuing after {step} steps" in installation.succeed(*COMMAND)
    assert read_json(folder / "run.json")["outcome"] is not None
    assert (folder / "checkpoints" / "best.safetensors").exists()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert not list(folder.rglob("*.partial"))
