"""Training from labelled squares: what it writes, that it repeats itself, and what it does when interrupted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from uveitis_assets.detection.checkpoints.fold_weights import fold_weights
from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.training.train_detector import TrainingOutcome, train_detector
from uveitis_assets.storage.files import read_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.progress import NullListener
from uveitis_assets_tests.detection.squares import squares_split, tiny


class Recorder(NullListener):
    """Keeps what it hears; stops the training by an exception after ``stop_after`` steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.rows: list[dict[str, Any]] = []
        self.messages: list[str] = []
        self.steps: list[int] = []
        self._stop_after = stop_after

    def on_step_end(self, *, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        self.steps.append(step)
        if step == self._stop_after:
            raise KeyboardInterrupt

    def on_epoch_end(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))

    def on_message(self, message: str) -> None:
        self.messages.append(message)


@pytest.fixture
def train(store: ArtefactStore) -> LabelledSplit:
    return squares_split(store, 6)


@pytest.fixture
def val(store: ArtefactStore) -> LabelledSplit:
    return squares_split(store, 3, split="val", seed=1)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.pth", weights_only=True)["model"]


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_training_leaves_the_earlier_scripts_files_and_keys(store, train, val, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "squares"
    configuration = tiny(training={"save_every_epochs": 2})
    outcome = train_detector(store, configuration, folder, train, val, device="cpu")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"epoch", "train_loss", "val_mAP_proxy", "elapsed_sec", "lr", "map_50", "map_30"} <= rows[0].keys()
    assert rows[0]["val_mAP_proxy"] == rows[0]["map_selection"]
    assert yaml.safe_load((folder / "config.yaml").read_text()) == configuration.model_dump(mode="json")
    report = read_json(folder / "val_report.json")
    assert {"best_epoch", "best_val_mAP_proxy", "val_metrics"} <= report.keys()
    assert report["best_epoch"] == outcome.best_epoch
    state = torch.load(folder / "checkpoints" / "last.pth", weights_only=True)
    assert {"epoch", "model", "config", "metrics", "optimizer"} <= state.keys()
    saved = load_file(folder / "checkpoints" / "epoch_002.safetensors")
    assert same(saved, state["average"])
    assert not same(saved, state["model"])
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "best.json",
        "best.safetensors",
        "epoch_002.json",
        "epoch_002.safetensors",
        "last.pth",
    ]
    assert outcome.best_weights == folder / "checkpoints" / "best.safetensors"


def test_two_trainings_with_one_seed_end_with_the_same_weights_and_another_seed_does_not(
    store, train, val, tmp_path: Path
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_detector(store, tiny(training={"seed": seed}), tmp_path / name, train, val, device="cpu")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


@pytest.mark.parametrize("stop_after", [1, 5])
def test_an_interrupted_training_ends_with_the_bits_of_an_uninterrupted_one(
    store, train, val, tmp_path: Path, stop_after: int
) -> None:
    configuration = tiny(training={"checkpoint_every_steps": 2, "epochs": 3})
    train_detector(store, configuration, tmp_path / "whole", train, val, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train_detector(store, configuration, tmp_path / "cut", train, val, device="cpu", progress=Recorder(stop_after))
    continued = Recorder()
    train_detector(store, configuration, tmp_path / "cut", train, val, device="cpu", progress=continued)
    # 6 images and no empty tiles: 3 steps an epoch, so states are there after steps 2, 3, 4, 6, 8 and 9.
    saved = max(step for step in (0, 2, 3, 4, 6, 8, 9) if step < stop_after)
    assert continued.steps == list(range(saved + 1, 10))
    whole, cut = (
        torch.load(tmp_path / run / "checkpoints" / "last.pth", weights_only=True) for run in ("whole", "cut")
    )
    assert same(whole["model"], cut["model"])
    assert same(whole["average"], cut["average"])
    best = [load_file(tmp_path / run / "checkpoints" / "best.safetensors") for run in ("whole", "cut")]
    assert same(*best)
    rows = [[json.loads(line) for line in (tmp_path / run / "metrics.jsonl").open()] for run in ("whole", "cut")]
    for row in (*rows[0], *rows[1]):
        del row["elapsed_sec"]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("damage", ["cut short", "empty", "code"])
def test_a_damaged_state_is_refused_with_what_to_do_and_without_it_the_training_begins_anew(
    store, train, val, tmp_path: Path, damage: str
) -> None:
    configuration = tiny(training={"checkpoint_every_steps": 1})
    with pytest.raises(KeyboardInterrupt):
        train_detector(store, configuration, tmp_path, train, val, device="cpu", progress=Recorder(3))
    state = tmp_path / "checkpoints" / "last.pth"
    if damage == "code":
        torch.save({"model": pytest.fail}, state)
    else:
        state.write_bytes(state.read_bytes()[: state.stat().st_size // 2] if damage == "cut short" else b"")
    with pytest.raises(ValueError, match=r"last\.pth: expected the state of a training .* delete it: the training"):
        train_detector(store, configuration, tmp_path, train, val, device="cpu")
    state.unlink()
    listener = Recorder()
    train_detector(store, configuration, tmp_path, train, val, device="cpu", progress=listener)
    assert listener.steps[0] == 1


def test_a_finished_training_is_recognised_and_not_run_again(store, train, val, tmp_path: Path) -> None:
    first = train_detector(store, tiny(), tmp_path / "run", train, val, device="cpu")
    before = {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "run").rglob("*"))}
    listener = Recorder()
    second = train_detector(store, tiny(), tmp_path / "run", train, val, device="cpu", progress=listener)
    assert listener.steps == []
    assert before == {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "run").rglob("*"))}
    assert second.was_finished
    assert not first.was_finished
    assert second == TrainingOutcome(**{**_fields(first), "was_finished": True})


def _fields(outcome: TrainingOutcome) -> dict[str, Any]:
    return {name: getattr(outcome, name) for name in outcome.__dataclass_fields__}


def test_a_killed_retraining_leaves_the_finished_weights_usable_and_continues_to_the_bits_of_a_training_of_its_own(
    store, train, val, tmp_path: Path
) -> None:
    changed = tiny(training={"checkpoint_every_steps": 2, "seed": 1})
    train_detector(store, changed, tmp_path / "alone", train, val, device="cpu")
    folder = store.run_folder("squares", 0)
    train_detector(store, tiny(training={"epochs": 1}), folder, train, val, device="cpu")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    former = fold_weights(store, "squares", 0)
    with pytest.raises(KeyboardInterrupt):
        # Within the second of two epochs: the retraining has best weights of its own.
        train_detector(store, changed, folder, train, val, device="cpu", progress=Recorder(5))
    assert (folder / "retraining" / "checkpoints" / "best.safetensors").is_file()
    assert {path: path.read_bytes() for path in before} == before
    assert fold_weights(store, "squares", 0).digest == former.digest
    assert same(former.load().state_dict(), load_file(former.path))
    continued = Recorder()
    outcome = train_detector(store, changed, folder, train, val, device="cpu", progress=continued)
    assert continued.steps == [5, 6]
    assert outcome.best_weights == folder / "checkpoints" / "best.safetensors"
    assert same(weights(folder), weights(tmp_path / "alone"))
    alone = load_file(tmp_path / "alone" / "checkpoints" / "best.safetensors")
    assert same(fold_weights(store, "squares", 0).load().state_dict(), alone)
    assert fold_weights(store, "squares", 0).digest != former.digest
    assert train_detector(store, changed, folder, train, val, device="cpu").was_finished


@pytest.mark.parametrize("change", ["configuration", "labels"])
def test_metrics_of_another_configuration_or_other_labels_are_moved_aside_not_mixed(
    store, train, val, tmp_path: Path, change: str
) -> None:
    folder = tmp_path / "run"
    train_detector(store, tiny(), folder, train, val, device="cpu")
    former = (folder / "metrics.jsonl").read_bytes()
    listener = Recorder()
    if change == "configuration":
        configuration, labels = tiny(training={"learning_rate": 1e-3}), train
    else:
        configuration, labels = tiny(), squares_split(store, 6, seed=5)
    train_detector(store, configuration, folder, labels, val, device="cpu", progress=listener)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert (folder / "replaced" / "run_001" / "metrics.jsonl").read_bytes() == former
    assert any("a finished run" in message and change in message for message in listener.messages)
    assert any("the former run was moved to replaced/run_001" in message for message in listener.messages)
    assert not (folder / "retraining").exists()


def test_settings_that_only_show_or_save_do_not_start_a_training_anew(store, train, val, tmp_path: Path) -> None:
    train_detector(store, tiny(), tmp_path / "run", train, val, device="cpu")
    changed = tiny(training={"checkpoint_every_steps": 7}, inference={"overlays": False})
    assert train_detector(store, changed, tmp_path / "run", train, val, device="cpu").was_finished
