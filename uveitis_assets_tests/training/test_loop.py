"""What the training loop promises of every task, held for a toy regression, a detector and a masked autoencoder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from uveitis_assets.training.gradient_accumulation import NonFiniteLossError
from uveitis_assets.training.progress import NullListener
from uveitis_assets.training.run_folder import RunFolder
from uveitis_assets.training.step import StepOptions
from uveitis_assets_tests.patience import patience
from uveitis_assets_tests.training.listeners import Recorder
from uveitis_assets_tests.training.loop_cases import CASES, LoopCase
from uveitis_assets_tests.training.toy_regression import ToyRegression, train_toy

_TIMES = {"elapsed_s", "elapsed_sec"}
# Three steps an epoch, a state after every second step and after every epoch.
_SAVED = (0, 2, 3, 4, 6, 8, 9)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums over other numbers of threads differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a case's training that was never interrupted; read only."""
    trained: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in trained:
            trained[name] = tmp_path_factory.mktemp(name)
            CASES[name].train(trained[name], NullListener())
        return trained[name]

    return folder


for_every_task = pytest.mark.parametrize("name", list(CASES))


def without_times(value: Any) -> Any:
    """Plain values with tensors as bytes, so that equal means equal bits, and without what a clock told."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in _TIMES}
    if isinstance(value, list | tuple):
        return [without_times(part) for part in value]
    return value


def ending(case: LoopCase, root: Path) -> Any:
    """State and weights that a training ended with."""
    state = torch.load(root / case.run / case.state, weights_only=True)
    return without_times([state, load_file(root / case.run / case.weights)])


# States are written by one function: the toy alone is killed while it writes one.
DEATHS = {"toy": (6, "half a state"), "detector": (5, "step"), "encoder": (5, "step")}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per case, in which a process was killed while it trained."""
    root = tmp_path_factory.mktemp("killed")
    deaths = [f"{name},{step},{moment}" for name, (step, moment) in DEATHS.items()]
    command = [sys.executable, "-m", "uveitis_assets_tests.training.loop_cases", root, *deaths]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=patience(120))
    assert done.returncode == 0, done.stderr.decode()
    return root


@for_every_task
def test_a_killed_process_is_continued_to_the_bits_of_one_that_lived(
    name: str, whole: Callable[[str], Path], killed: Path
) -> None:
    case, root = CASES[name], killed / name
    run, moment = root / case.run, DEATHS[name][1]
    assert list(run.rglob(".last.pth.*")) if moment == "half a state" else not list(run.rglob(".*"))
    continued = Recorder()
    case.train(root, continued)
    assert continued.steps == [5, 6, 7, 8, 9]
    assert any("continuing after 4 steps, in epoch 2" in message for message in continued.messages)
    assert ending(case, root) == ending(case, whole(name))
    assert not list(run.rglob(".last.pth.*"))


@pytest.mark.parametrize("stop_after", range(1, 9))
def test_a_training_goes_on_from_its_last_state_wherever_it_was_interrupted(
    stop_after: int, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    case, continued = CASES["toy"], Recorder()
    with pytest.raises(KeyboardInterrupt):
        case.train(tmp_path, Recorder(stop_after))
    case.train(tmp_path, continued)
    assert continued.steps[0] == 1 + max(step for step in _SAVED if step < stop_after)
    assert ending(case, tmp_path) == ending(case, whole("toy"))


@for_every_task
def test_a_finished_training_is_recognised_and_takes_no_step(
    name: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    case, root = CASES[name], tmp_path / "copy"
    shutil.copytree(whole(name), root)
    before = {path: path.read_bytes() for path in (root / case.run).rglob("*") if path.is_file()}
    listener = Recorder()
    case.train(root, listener)
    assert listener.steps == []
    assert {path: path.read_bytes() for path in (root / case.run).rglob("*") if path.is_file()} == before


@for_every_task
def test_another_seed_begins_anew_and_ends_with_other_weights(
    name: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    case, root = CASES[name], tmp_path / "copy"
    shutil.copytree(whole(name), root)
    listener = Recorder()
    case.train(root, listener, seed=2)
    assert listener.steps == list(range(1, 10))
    assert ending(case, root)[1].keys() == ending(case, whole(name))[1].keys()
    assert ending(case, root)[1] != ending(case, whole(name))[1]


@for_every_task
def test_listeners_hear_the_beginning_then_the_steps_of_each_epoch_then_its_end(name: str, tmp_path: Path) -> None:
    listener = Recorder()
    CASES[name].train(tmp_path, listener, epochs=2)
    heard = [event for event in listener.events if event != "message"]
    first, second = ["step 1", "step 2", "step 3", "epoch 1"], ["step 4", "step 5", "step 6", "epoch 2"]
    assert heard == ["2 epochs, 6 steps, after 0", *first, *second]
    for row, (start, end) in zip(listener.rows, pairwise((0, 3, 6)), strict=True):
        losses = [sum(losses.values()) for losses in listener.losses[start:end]]
        assert row["train_loss"] == pytest.approx(sum(losses) / 3, rel=1e-6)


@for_every_task
def test_a_loss_that_is_not_finite_ends_the_training_and_names_step_and_items(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    step, taken = torch.optim.AdamW.step, list[int]()

    def diverging(self: torch.optim.AdamW, *rest: Any) -> Any:
        taken.append(1)
        result = step(self, *rest)
        if len(taken) == 4:
            with torch.no_grad():
                for group in self.param_groups:
                    group["params"][-1].fill_(torch.nan)
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", diverging)
    noun, _, item = case.item.partition(" ")
    with pytest.raises(NonFiniteLossError, match=rf"^epoch 2, step 5: {noun}s {item}.*: expected a finite loss.*lower"):
        case.train(tmp_path, NullListener())


# States are read by one function: the toy alone meets every damage.
@pytest.mark.parametrize(
    ("name", "damage"),
    [("toy", "cut short"), ("toy", "empty"), ("toy", "code"), ("detector", "cut short"), ("encoder", "cut short")],
)
def test_a_damaged_state_is_refused_with_what_to_do_and_without_it_the_training_begins_anew(
    name: str, damage: str, tmp_path: Path
) -> None:
    case = CASES[name]
    with pytest.raises(KeyboardInterrupt):
        case.train(tmp_path, Recorder(3))
    state = tmp_path / case.run / case.state
    if damage == "code":
        torch.save({"model": pytest.fail}, state)
    else:
        state.write_bytes(state.read_bytes()[: state.stat().st_size // 2] if damage == "cut short" else b"")
    with pytest.raises(ValueError, match=r"last\.pth: expected the state of a training .* delete it: the training"):
        case.train(tmp_path, NullListener())
    state.unlink()
    listener = Recorder()
    case.train(tmp_path, listener, epochs=1)
    assert listener.steps[0] == 1


@pytest.mark.parametrize("name", ["toy", "encoder"])
def test_a_batch_in_parts_trains_as_the_whole_batch_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detector's losses are no plain means over tiles; the tests of its tile seeds hold its parts to the whole."""
    backward, failed = torch.Tensor.backward, list[int]()

    def short_of_memory(self: torch.Tensor, *rest: Any, **options: Any) -> None:
        if not failed:
            failed.append(1)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        backward(self, *rest, **options)

    losses = []
    for folder in ("whole", "parts"):
        listener = Recorder()
        if folder == "parts":
            monkeypatch.setattr(torch.Tensor, "backward", short_of_memory)
        if name == "toy":
            train_toy(ToyRegression(dropout=0.0), tmp_path / folder, listener)
        else:
            CASES[name].train(tmp_path / folder, listener)
        losses += [row["train_loss"] for row in listener.rows]
    assert any("out of GPU memory with" in message for message in listener.messages)
    assert losses[3:] == pytest.approx(losses[:3], rel=1e-4)


class ScriptedFit(ToyRegression):
    """Is told how well it fits; epochs without a value are not evaluated well enough to have one."""

    def __init__(self, fits: list[float | None]) -> None:
        super().__init__()
        self._fits = iter(fits)

    def evaluate(self, model: torch.nn.Module) -> dict[str, float | None]:
        return {"fit": next(self._fits)}


def test_the_first_epoch_with_the_highest_metric_is_the_best_and_its_averaged_weights_are_kept(tmp_path: Path) -> None:
    listener = Recorder()
    outcome = train_toy(ScriptedFit([None, 0.1, 0.4, 0.4, 0.2]), tmp_path, listener, epochs=5, save_every_epochs=1)
    assert outcome.values["best_epoch"] == 3
    assert outcome.values["fit"] == 0.4
    best = without_times(load_file(outcome.best_weights))
    kept = [without_times(load_file(RunFolder(tmp_path).epoch_weights(epoch))) for epoch in range(1, 6)]
    assert [weights == best for weights in kept] == [False, False, True, False, False]
    state = torch.load(RunFolder(tmp_path).last_state, weights_only=True)
    assert without_times(state["average"]) == kept[4] != without_times(state["model"])


def test_a_training_stops_once_its_patience_is_over(tmp_path: Path) -> None:
    listener = Recorder()
    outcome = train_toy(ScriptedFit([0.1, 0.3, 0.3, 0.2, 0.9]), tmp_path, listener, epochs=5, patience=2)
    assert [row["epoch"] for row in listener.rows] == [1, 2, 3, 4]
    assert outcome.values["stopped_early"]


def test_epochs_between_evaluations_have_no_metric_and_the_last_one_always_has(tmp_path: Path) -> None:
    listener = Recorder()
    train_toy(ToyRegression(), tmp_path, listener, epochs=5, evaluate_every=2)
    assert [row["epoch"] for row in listener.rows if row.get("fit") is not None] == [2, 4, 5]


def test_a_model_without_an_average_is_evaluated_in_evaluation_mode_and_trained_in_its_own(
    tmp_path: Path,
) -> None:
    options = StepOptions(4, 0.05, 1e-3, warmup_steps=2)
    task, modes = ToyRegression(), list[bool]()
    losses = task.losses
    task.losses = lambda model, items, *, step: modes.append(model.training) or losses(model, items, step=step)
    outcome = train_toy(task, tmp_path, NullListener(), epochs=2, step=options)
    assert modes == [True, True, True, False] * 2
    model, _ = ToyRegression().build()
    model.load_state_dict(load_file(outcome.best_weights))
    assert ToyRegression().evaluate(model.eval())["fit"] == outcome.values["fit"]


def test_a_state_is_written_after_minutes_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_toy(ToyRegression(), tmp_path, Recorder(2), checkpoint_every_steps=0, checkpoint_every_minutes=0.0)
    assert torch.load(RunFolder(tmp_path).last_state, weights_only=True)["position"]["step"] == 1


def test_a_killed_retraining_leaves_the_finished_run_usable_and_ends_as_a_training_of_its_own(tmp_path: Path) -> None:
    folder, other = tmp_path / "run", ToyRegression(seed=2)
    train_toy(other, tmp_path / "alone", NullListener())
    train_toy(ToyRegression(), folder, NullListener(), epochs=1)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(KeyboardInterrupt):
        train_toy(other, folder, Recorder(5))
    assert (folder / "retraining" / "checkpoints" / "best.safetensors").is_file(), "of the first epoch"
    assert {path: path.read_bytes() for path in before} == before
    continued = Recorder()
    outcome = train_toy(other, folder, continued)
    assert continued.steps == [5, 6, 7, 8, 9]
    assert any("holds a finished run with another seed" in message for message in continued.messages)
    assert any("the former run was moved to replaced/run_001" in message for message in continued.messages)
    assert outcome.best_weights == folder / "checkpoints" / "best.safetensors"
    assert not (folder / "retraining").exists()
    assert (folder / "replaced" / "run_001" / "metrics.jsonl").read_bytes() == before[folder / "metrics.jsonl"]
    case = LoopCase(train_toy, ".", "checkpoints/last.pth", "checkpoints/best.safetensors", "item")
    assert ending(case, folder) == ending(case, tmp_path / "alone")
    assert train_toy(other, folder, NullListener()).was_finished


def test_no_step_follows_gradients_longer_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[float] = []
    step = torch.optim.AdamW.step

    def measured(self: torch.optim.AdamW, *rest: Any) -> Any:
        gradients = [parameter.grad for group in self.param_groups for parameter in group["params"]]
        lengths.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))
        return step(self, *rest)

    monkeypatch.setattr(torch.optim.AdamW, "step", measured)
    for limit in (1e6, 1e-3):
        options = StepOptions(4, 0.01, 0.0, warmup_steps=0, gradient_clip_norm=limit, ema_decay=0.5)
        train_toy(ToyRegression(), tmp_path / str(limit), NullListener(), epochs=1, step=options)
    unlimited, limited = lengths[:3], lengths[3:]
    assert min(unlimited) > 0.01
    assert limited == pytest.approx([1e-3] * 3, rel=1e-3)
