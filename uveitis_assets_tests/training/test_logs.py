"""What a training writes to TensorBoard and W&B, and what it writes nowhere."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from uveitis_assets.detection.training.train_detector import train_detector
from uveitis_assets.training.configuration import TrainingConfiguration
from uveitis_assets.training.curves import training_curves
from uveitis_assets.training.logs import training_logs
from uveitis_assets.training.run_folder import RunFolder
from uveitis_assets_tests.detection.squares import squares_split, store_at, tiny
from uveitis_assets_tests.training.listeners import Recorder

_KEY = "0123456789abcdef0123456789abcdef01234567"


def test_tensorboard_gets_every_epochs_row(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    train, val = squares_split(store, 4), squares_split(store, 2, split="val", seed=1)
    listener = Recorder()
    configuration = tiny(training={"tensorboard": True})
    train_detector(store, configuration, tmp_path / "run", train, val, device="cpu", progress=listener)
    events = EventAccumulator(str(tmp_path / "run" / "tb")).Reload()
    written = events.Scalars("epoch/map_50")
    assert [event.step for event in written] == [row["step"] for row in listener.rows]
    assert [event.value for event in written] == pytest.approx([row["map_50"] for row in listener.rows], abs=1e-6)


class StandIn(ModuleType):
    """Keeps what W&B would be told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: dict[str, Any] = {}
        self.logged: list[tuple[dict[str, float], int]] = []
        self.finished = False

    def Settings(self, **values: Any) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(**values)

    def init(self, **values: Any) -> StandIn:
        self.begun = values
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished = True


def test_the_wandb_key_comes_from_its_file_and_goes_nowhere_else(tmp_path: Path, monkeypatch, capfd) -> None:
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    key_file = tmp_path / "secrets" / "key"
    key_file.parent.mkdir()
    key_file.write_text(_KEY + "\n")
    monkeypatch.setenv("UVEITIS_WANDB_KEY_FILE", str(key_file))
    store = store_at(tmp_path / "data")
    train, val = squares_split(store, 2), squares_split(store, 2, split="val", seed=1)
    configuration = tiny(training={"wandb_project": "lesions"})
    run = tmp_path / "data" / "run"
    train_detector(store, configuration, run, train, val, device="cpu")
    assert stand_in.begun.pop("settings").api_key == _KEY
    assert stand_in.begun["project"] == "lesions"
    assert _KEY not in repr(stand_in.begun)
    assert [values["epoch/epoch"] for values, _ in stand_in.logged] == [1, 2]
    assert stand_in.finished
    holders = [path for path in (tmp_path / "data").rglob("*") if path.is_file() and _KEY.encode() in path.read_bytes()]
    assert holders == []
    assert _KEY not in "".join(capfd.readouterr())


@pytest.mark.parametrize("content", [None, "", "two words"])
def test_wandb_without_a_usable_key_file_says_what_to_set(tmp_path: Path, monkeypatch, content: str | None) -> None:
    if content is None:
        monkeypatch.delenv("UVEITIS_WANDB_KEY_FILE", raising=False)
    else:
        (tmp_path / "key").write_text(content)
        monkeypatch.setenv("UVEITIS_WANDB_KEY_FILE", str(tmp_path / "key"))
    options = TrainingConfiguration(wandb_project="lesions", tensorboard=False)
    with (
        pytest.raises(ValueError, match="UVEITIS_WANDB_KEY_FILE") as caught,
        training_logs(RunFolder(tmp_path), options, run_id="a", step=0, configuration={}),
    ):
        pass
    assert "two words" not in str(caught.value)


def test_curves_are_a_png_that_depends_on_the_rows_alone_and_take_rows_without_metrics() -> None:
    row = {"epoch": 1, "train_loss": 1.0, "lr": 1e-3, "val_mAP_proxy": 0.1}
    new = [{**row, "epoch": n, "map_30": 0.3, "map_50": 0.2, "map_selection": 0.2} for n in (1, 2)]

    def curves(rows: list[dict[str, Any]]) -> bytes:
        return training_curves(
            rows, title="AP", metrics={"map_30": "0.3", "map_50": "0.5"}, selection_metric="map_selection"
        )

    first = curves(new)
    assert first == curves(new)
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", first[16:24])[0] > 900
    assert curves([row, {**row, "epoch": 2}]) != first
    with pytest.raises(ValueError, match="at least one epoch"):
        curves([])
