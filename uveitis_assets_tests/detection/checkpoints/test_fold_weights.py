"""Weights of a fold are used once they are finished, verified, and never evaluated on what they learned."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from uveitis_assets.detection.checkpoints.fold_weights import FoldWeights, TrainingNotUsableError, fold_weights
from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.evaluation import fold_evaluation
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration
from uveitis_assets.detection.training.fold_training import inspect_checkpoint
from uveitis_assets.detection.training.train_detector import train_detector
from uveitis_assets.storage.files import read_json, write_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.run_folder import RunFolder
from uveitis_assets.training.run_replacement import promote_pending_run
from uveitis_assets.training.weights_files import file_digest, read_weights_file, save_weights
from uveitis_assets_tests.detection.squares import CATEGORIES, squares_split, tiny


def test_finished_weights_have_digest_classes_and_learned_images(
    trained: Path, store: ArtefactStore, train: LabelledSplit
) -> None:
    weights = fold_weights(store, "squares", 0)
    assert weights.digest == file_digest(trained / "checkpoints" / "best.safetensors")
    assert weights.categories == CATEGORIES
    assert weights.learned_images == {image.image_id for image in train.images}


def test_missing_weights_name_what_to_materialize(store: ArtefactStore) -> None:
    with pytest.raises(FileNotFoundError, match="materialize squares/checkpoint of fold1 first"):
        fold_weights(store, "squares", 1)


def test_the_best_weights_of_a_training_that_goes_on_are_not_used(trained: Path, store: ArtefactStore) -> None:
    run = read_json(trained / "run.json")
    write_json(trained / "run.json", {**run, "outcome": None})
    with pytest.raises(TrainingNotUsableError, match="is being trained or was stopped on the way"):
        fold_weights(store, "squares", 0)
    (trained / "run.json").unlink()
    assert fold_weights(store, "squares", 0).path.is_file(), "weights put there by hand are of no training"


def test_weights_that_are_replaced_between_digest_and_loading_are_refused(
    trained: Path, store: ArtefactStore, train: LabelledSplit, val: LabelledSplit
) -> None:
    weights = fold_weights(store, "squares", 0)
    train_detector(store, tiny(training={"epochs": 1, "seed": 1}), trained, train, val, device="cpu")
    with pytest.raises(TrainingNotUsableError, match="was replaced while it was in use"):
        weights.load()


@pytest.fixture
def lane(val: LabelledSplit, monkeypatch: pytest.MonkeyPatch) -> DetectorLaneConfiguration:
    """The lane ``squares``, which is evaluated on ``val``."""
    monkeypatch.setattr(fold_evaluation, "labelled_split", lambda *_: val)
    values = {**tiny().model_dump(), "name": "squares", "train_on": "eyes", "predict_on": "eyes"}
    return DetectorLaneConfiguration.model_validate(values)


@pytest.mark.parametrize("step", ["evaluate_detections", "confusion_figure"])
def test_an_evaluation_of_weights_that_are_replaced_meanwhile_leaves_the_report_of_the_new_ones(
    trained: Path,
    store: ArtefactStore,
    train: LabelledSplit,
    val: LabelledSplit,
    lane: DetectorLaneConfiguration,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    original = getattr(fold_evaluation, step)

    def slowly(*arguments: Any, **options: Any) -> Any:
        train_detector(store, tiny(training={"epochs": 1, "seed": 1}), trained, train, val, device="cpu")
        return original(*arguments, **options)

    monkeypatch.setattr(fold_evaluation, step, slowly)
    with pytest.raises(TrainingNotUsableError, match="was replaced while it was in use"):
        fold_evaluation.evaluate_fold(store, lane, 0, split="val", device="cpu")
    # An evaluation names its checkpoint, a training's own report does not.
    assert "checkpoint" not in read_json(trained / "val_report.json")
    assert not (trained / "figures").exists()


def test_an_evaluation_writes_beside_the_weights_that_it_evaluated_when_a_run_is_promoted_at_its_start(
    trained: Path, store: ArtefactStore, lane: DetectorLaneConfiguration, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, trained / "retraining")

    def promoted_before(*arguments: Any) -> FoldWeights:
        promote_pending_run(RunFolder(trained))
        return fold_weights(*arguments)

    monkeypatch.setattr(fold_evaluation, "fold_weights", promoted_before)
    evaluation = fold_evaluation.evaluate_fold(store, lane, 0, split="val", device="cpu")
    assert evaluation.report == trained / "val_report.json"
    assert "checkpoint" in read_json(evaluation.report)
    assert not (trained / "retraining").exists()


def test_an_id_that_means_another_class_now_is_refused_and_a_new_class_is_not(
    trained: Path, store: ArtefactStore
) -> None:
    weights = fold_weights(store, "squares", 0)
    weights.check_categories({**CATEGORIES, 3: "blue"})
    with pytest.raises(TrainingNotUsableError, match="learned 2 green, which is now 2 blue; the classes have changed"):
        weights.check_categories({1: "red", 2: "blue"})
    with pytest.raises(TrainingNotUsableError, match="learned 2 green, which is now 2 unknown"):
        weights.check_categories({1: "red"})


def test_images_that_were_learned_by_weights_or_their_parent_are_refused_for_evaluation(
    trained: Path, store: ArtefactStore, train: LabelledSplit, val: LabelledSplit
) -> None:
    others = squares_split(store, 3, split="other", seed=2)
    child = tiny(training={"epochs": 1}, initialise={"checkpoint": "runs/squares/checkpoints/best.safetensors"})
    train_detector(store, child, store.run_folder("child", 0), others, val, device="cpu")
    weights = fold_weights(store, "child", 0)
    assert weights.learned_images == {image.image_id for image in (*train.images, *others.images)}
    weights.check_never_learned([image.image_id for image in val.images], "val of fold0")
    with pytest.raises(
        TrainingNotUsableError, match=r"1 of 3 images of val of fold0 were learned, .*squares::train001"
    ):
        weights.check_never_learned(["squares::train001", *(image.image_id for image in val.images)], "val of fold0")


def test_a_training_does_not_start_from_weights_that_learned_its_validation_images(
    trained: Path, store: ArtefactStore, train: LabelledSplit, val: LabelledSplit
) -> None:
    child = tiny(training={"epochs": 1}, initialise={"checkpoint": "runs/squares/checkpoints/best.safetensors"})
    with pytest.raises(ValueError, match=r"the first weights learned 4 of the 4 images of fold 0, train"):
        train_detector(store, child, store.run_folder("child", 0), val, train, device="cpu")


@pytest.mark.parametrize("damage", ["gone", "cut short"])
def test_a_finished_training_that_lost_its_best_weights_is_done_again(
    trained: Path, store: ArtefactStore, train: LabelledSplit, val: LabelledSplit, damage: str
) -> None:
    best = trained / "checkpoints" / "best.safetensors"
    before = best.read_bytes()
    best.unlink()
    if damage == "cut short":
        best.write_bytes(before[:-1])
    outcome = train_detector(store, tiny(training={"epochs": 1}), trained, train, val, device="cpu")
    assert not outcome.was_finished
    # The file says when it was made, so that its bytes differ.
    expected, found = safetensors.torch.load(before), safetensors.torch.load(best.read_bytes())
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert (trained / "replaced" / "run_001" / "run.json").is_file()


def test_reports_and_figures_of_the_former_weights_do_not_stay_beside_new_ones(
    trained: Path, store: ArtefactStore, train: LabelledSplit, val: LabelledSplit
) -> None:
    write_json(trained / "test_report.json", {"map": 1})
    (trained / "figures").mkdir()
    (trained / "figures" / "test_froc.png").write_bytes(b"PNG")
    train_detector(store, tiny(training={"epochs": 1, "seed": 1}), trained, train, val, device="cpu")
    assert not (trained / "test_report.json").exists()
    assert not (trained / "figures").exists()
    assert (trained / "replaced" / "run_001" / "figures" / "test_froc.png").is_file()


def test_weights_put_by_hand_beside_the_files_of_a_finished_run_are_refused_with_what_to_do(
    trained: Path, store: ArtefactStore, lane: DetectorLaneConfiguration
) -> None:
    best = trained / "checkpoints" / "best.safetensors"
    file = read_weights_file(best)
    save_weights(best, {name: value + 1 for name, value in file.tensors.items()}, file.details)
    expected = r"expected the weights that squares/checkpoint of fold0 ended with \(run.json\), found others"
    with pytest.raises(TrainingNotUsableError, match=f"{expected} .* a lane of their own; materialize .* anew"):
        fold_weights(store, "squares", 0)
    (error,) = inspect_checkpoint(store, lane, 0).errors
    assert re.search(expected, error)
    # Without the files of a run they are of no training.
    (trained / "run.json").unlink()
    assert fold_weights(store, "squares", 0).digest == file_digest(best)
