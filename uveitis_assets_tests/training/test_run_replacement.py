"""A finished run stays usable while the run that replaces it is trained and moves in, wherever a process is killed."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from uveitis_assets.detection.checkpoints.fold_weights import TrainingNotUsableError, fold_weights
from uveitis_assets.storage.files import read_json, write_bytes, write_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.run_folder import OWN_FILES, RunFolder, begin_run, finish_run, finished_outcome
from uveitis_assets.training.run_replacement import open_run_folder, promote_pending_run
from uveitis_assets.training.weights_files import file_digest, save_weights

FORMER, NEW = {"configuration": "former"}, {"configuration": "new"}


class Killed(BaseException):
    """Stands for SIGKILL: no code catches it."""


@pytest.fixture
def folder(store: ArtefactStore) -> RunFolder:
    """A finished former run."""
    folder = RunFolder(store.run_folder("lane", 0))
    train(folder, FORMER, 1.0)
    return folder


def train(folder: RunFolder, identity: dict[str, Any], value: float) -> RunFolder:
    """Write all files of a run, each with a content of its own; returns where."""
    place, _ = open_run_folder(folder, identity)
    text = str(identity).encode()
    for path in (place.configuration_file, place.metrics_file, place.report_file, place.curves_file, place.last_state):
        write_bytes(path, text)
    write_bytes(place.tensorboard_folder / "events", text)
    save_weights(place.best_weights, {"w": torch.tensor([value])}, {"configuration": {"model": {}}})
    finish_run(place, identity, {"best_epoch": 1})
    return place


def contents(folder: RunFolder) -> dict[str, bytes]:
    """All files of the run in the folder itself."""
    files = (path for name in OWN_FILES for path in [folder.path / name, *(folder.path / name).rglob("*")])
    return {path.relative_to(folder.path).as_posix(): path.read_bytes() for path in files if path.is_file()}


def kill_at(monkeypatch: pytest.MonkeyPatch, n_changes: int) -> list[str]:
    """Let the process be killed before its change ``n_changes`` (from 0) of the folders; returns what it did."""
    done: list[str] = []

    def limited(change: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if len(done) == n_changes:
                raise Killed
            done.append(str(arguments[0]))
            return change(*arguments, **options)

        return wrapped

    monkeypatch.setattr(Path, "rename", limited(Path.rename))
    monkeypatch.setattr(shutil, "rmtree", limited(shutil.rmtree))
    return done


def test_a_current_run_is_left_alone_while_its_successor_is_trained_beside_it(
    store: ArtefactStore, folder: RunFolder
) -> None:
    before = contents(folder)
    place, message = open_run_folder(folder, NEW)
    assert place.path == folder.path / "retraining"
    assert message is not None
    assert "a finished run with another configuration; it stays in use until this training is finished" in message
    write_bytes(place.metrics_file, b"{}\n")
    assert open_run_folder(folder, NEW)[0] == place
    assert place.metrics_file.read_bytes() == b"{}\n", "a killed retraining is continued"
    assert promote_pending_run(folder) is None, "it is not finished"
    assert contents(folder) == before
    assert fold_weights(store, "lane", 0).path == folder.best_weights


def test_a_retraining_of_yet_another_identity_does_not_mix_with_a_killed_one(folder: RunFolder) -> None:
    place, _ = open_run_folder(folder, NEW)
    write_bytes(place.metrics_file, b"{}\n")
    again, message = open_run_folder(folder, {"configuration": "newer"})
    assert again == place
    assert not place.metrics_file.exists()
    assert message is not None
    assert message.endswith("it was moved to replaced/run_001 and the training begins anew")
    assert (folder.replaced_folder / "run_001" / "metrics.jsonl").read_bytes() == b"{}\n"


def test_weights_that_were_put_there_by_hand_stay_until_the_training_is_finished(
    store: ArtefactStore, folder: RunFolder
) -> None:
    folder.run_file.unlink()
    digest = fold_weights(store, "lane", 0).digest
    place, _ = open_run_folder(folder, NEW)
    assert place != folder
    assert fold_weights(store, "lane", 0).digest == digest


def test_a_first_training_and_one_after_an_unfinished_one_write_into_the_folder_itself(store: ArtefactStore) -> None:
    folder = RunFolder(store.run_folder("lane", 0))
    assert open_run_folder(folder, FORMER) == (folder, None)
    save_weights(folder.best_weights, {"w": torch.ones(1)}, {"configuration": {"model": {}}})
    place, message = open_run_folder(folder, NEW)
    assert place == folder
    assert message is not None
    assert "with another configuration; it was moved to replaced/run_001" in message
    with pytest.raises(TrainingNotUsableError, match="is being trained"):
        fold_weights(store, "lane", 0)


@pytest.mark.parametrize("n_changes", range(17))
def test_a_process_killed_while_runs_change_places_leaves_the_new_one_usable_and_a_later_one_completes_it(
    store: ArtefactStore, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, n_changes: int
) -> None:
    former = contents(folder)
    place = train(folder, NEW, 2.0)
    new, digest = contents(place), file_digest(place.best_weights)
    with monkeypatch.context() as patched:
        done = kill_at(patched, n_changes)
        try:
            promote_pending_run(folder)
        except Killed:
            assert len(done) == n_changes
        else:
            # Seven parts move out and get a number, seven move in, and their empty place is removed.
            assert len(done) == n_changes == 16
    weights = fold_weights(store, "lane", 0)
    weights.check_unchanged()
    assert weights.digest == digest
    promote_pending_run(folder)
    assert contents(folder) == new
    assert finished_outcome(folder, NEW) == {"best_epoch": 1}
    assert contents(RunFolder(folder.replaced_folder / "run_001")) == former
    assert [path.name for path in folder.replaced_folder.iterdir()] == ["run_001"]
    assert not folder.pending.run_file.exists()
    assert promote_pending_run(folder) is None
    assert fold_weights(store, "lane", 0).digest == digest


@pytest.mark.parametrize("n_changes", range(9))
def test_a_process_killed_while_it_moves_an_unfinished_run_leaves_nothing_that_counts_as_usable(
    store: ArtefactStore, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, n_changes: int
) -> None:
    begin_run(folder, FORMER)
    former = contents(folder)
    with monkeypatch.context() as patched:
        kill_at(patched, n_changes)
        with suppress(Killed):
            open_run_folder(folder, NEW)
    with pytest.raises((TrainingNotUsableError, FileNotFoundError)):
        fold_weights(store, "lane", 0)
    assert open_run_folder(folder, NEW)[0] == folder
    assert list(contents(folder)) == ["run.json"]
    assert contents(RunFolder(folder.replaced_folder / "run_001")) == former
    assert [path.name for path in folder.replaced_folder.iterdir()] == ["run_001"]


def test_weights_that_were_put_there_by_hand_do_not_mix_with_a_run_that_was_killed_before_its_first_state(
    folder: RunFolder,
) -> None:
    for path in (folder.path / name for name in OWN_FILES if name != "checkpoints"):
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
    by_hand = contents(folder)
    train(folder, NEW, 2.0)
    promote_pending_run(folder)
    place, _ = open_run_folder(folder, {"configuration": "killed at once"})
    write_bytes(place.configuration_file, b"killed at once")
    killed = contents(place)
    open_run_folder(folder, {"configuration": "another"})
    assert contents(RunFolder(folder.replaced_folder / "run_001")) == by_hand
    assert contents(RunFolder(folder.replaced_folder / "run_002")) == killed


def test_what_a_killed_move_took_from_a_run_that_goes_on_after_all_does_not_mix_with_a_later_run(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = open_run_folder(folder, NEW)
    write_bytes(place.configuration_file, b"new")
    with monkeypatch.context() as patched:
        kill_at(patched, 1)
        with pytest.raises(Killed):
            open_run_folder(folder, {"configuration": "another"})
    assert open_run_folder(folder, NEW)[0] == place
    open_run_folder(folder, {"configuration": "another"})
    replaced = [sorted(path.name for path in run.iterdir()) for run in sorted(folder.replaced_folder.iterdir())]
    assert replaced == [["config.yaml"], ["run.json"]]


def test_figures_that_an_evaluation_draws_while_a_run_is_half_moved_do_not_stop_the_move(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = train(folder, NEW, 2.0)
    write_bytes(place.figures_folder / "val_froc.png", b"drawn before")
    new = contents(place)
    with monkeypatch.context() as patched:
        # Seven parts have moved out and got a number, and the checkpoints have moved in.
        kill_at(patched, 9)
        with pytest.raises(Killed):
            promote_pending_run(folder)
    assert folder.best_weights.is_file()
    write_bytes(folder.figures_folder / "val_confusion.png", b"drawn meanwhile")
    promote_pending_run(folder)
    assert contents(folder) == new
    assert not folder.pending.path.exists()


@pytest.mark.parametrize("damage", ["gone", "cut short"])
def test_a_retraining_goes_on_when_the_finished_run_loses_its_weights_meanwhile(folder: RunFolder, damage: str) -> None:
    place, _ = open_run_folder(folder, NEW)
    write_bytes(place.last_state, b"state")
    whole = folder.best_weights.read_bytes()
    folder.best_weights.unlink()
    if damage == "cut short":
        folder.best_weights.write_bytes(whole[:-1])
    assert open_run_folder(folder, NEW) == (place, None)
    assert place.last_state.read_bytes() == b"state"
    train(folder, NEW, 2.0)
    promote_pending_run(folder)
    assert finished_outcome(folder, NEW) == {"best_epoch": 1}
    assert open_run_folder(folder, FORMER)[0] == place, "it is in use now"


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("n_changes", range(10))
def test_weights_put_there_by_hand_never_stand_beside_the_files_of_a_damaged_retraining_that_is_moved_away(
    store: ArtefactStore, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, n_changes: int
) -> None:
    for path in (folder.path / name for name in OWN_FILES if name != "checkpoints"):
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
    by_hand = contents(folder)
    place = train(folder, NEW, 2.0)
    cut_short(place.best_weights)
    with monkeypatch.context() as patched:
        kill_at(patched, n_changes)
        with suppress(Killed):
            open_run_folder(folder, NEW)
    assert promote_pending_run(folder) is None
    assert contents(folder) == by_hand
    fold_weights(store, "lane", 0).check_unchanged()
    assert open_run_folder(folder, NEW)[0] == place
    assert contents(folder) == by_hand
    assert list(contents(place)) == ["run.json"]


def test_other_weights_in_a_finished_run_are_moved_away_with_it_when_it_is_trained_again(folder: RunFolder) -> None:
    save_weights(folder.best_weights, {"w": torch.tensor([7.0])}, {"configuration": {"model": {}}})
    replaced = contents(folder)
    assert finished_outcome(folder, FORMER) is None
    place, message = open_run_folder(folder, FORMER)
    assert place == folder
    assert message is not None
    assert "held a run that has lost the best weights it ended with; it was moved to replaced/run_001" in message
    assert contents(RunFolder(folder.replaced_folder / "run_001")) == replaced


def test_a_run_that_ended_before_run_files_had_a_digest_is_used_as_it_is(
    store: ArtefactStore, folder: RunFolder
) -> None:
    run = read_json(folder.run_file)
    assert run.pop("best_weights") == file_digest(folder.best_weights)
    write_json(folder.run_file, run)
    assert finished_outcome(folder, FORMER) == {"best_epoch": 1}
    assert fold_weights(store, "lane", 0).digest == file_digest(folder.best_weights)
