"""Weights that predict: of the present classes, and exactly those that the predictions name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from uveitis_assets.detection.checkpoints.fold_weights import TrainingNotUsableError
from uveitis_assets.detection.checkpoints.lineage import weights_lineage
from uveitis_assets.detection.configuration import DetectorConfiguration
from uveitis_assets.detection.inference.batch_predictor import BatchPredictor, inspect_predictions
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration
from uveitis_assets.detection.models.detector import build_detector
from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.storage.files import read_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.run_folder import RunFolder
from uveitis_assets.training.weights_files import file_digest, save_weights
from uveitis_assets_tests.detection.preprocessed_lane import BATCH, LANE, write_preprocessed_batch
from uveitis_assets_tests.detection.squares import store_at, tiny

TINY = tiny()
NAMES = {number: name for number, name in load_class_map().names.items() if number <= 2}


@pytest.fixture
def store(tmp_path: Path) -> ArtefactStore:
    store = store_at(tmp_path)
    write_preprocessed_batch(store, {"one": {1: (10, 10, 40, 40)}, "two": {}})
    return store


def lane(*folds: int, **changes: Any) -> DetectorLaneConfiguration:
    inference = {"folds": folds, "score_threshold": 0.0, "overlays": False}
    values = tiny(inference=inference, **changes).model_dump()
    return DetectorLaneConfiguration.model_validate({**values, "name": "exp", "train_on": LANE, "predict_on": LANE})


def put_weights(
    store: ArtefactStore,
    fold: int,
    *,
    categories: Mapping[int, str] = NAMES,
    learned: tuple[str, ...] = (),
    seed: int = 0,
    trained_as: DetectorConfiguration = TINY,
) -> str:
    """Weights by chance; returns their digest."""
    torch.manual_seed(seed)
    lineage = weights_lineage(
        trained_as,
        categories=categories,
        data_fingerprint="",
        metrics={"epoch": 1},
        parent=None,
        learned_images=learned,
        created_at="",
    )
    path = RunFolder(store.run_folder("exp", fold)).best_weights
    save_weights(path, build_detector(trained_as.model).state_dict(), lineage)
    return file_digest(path)


def predictor(store: ArtefactStore, *folds: int) -> BatchPredictor:
    return BatchPredictor(store, lane(*folds), device="cpu", code_version="1")


def test_predictions_name_the_weights_and_count_the_images_that_these_learned(store: ArtefactStore) -> None:
    digests = [put_weights(store, 0, learned=(f"{LANE}::one",)), put_weights(store, 1, learned=("fgadr::x",), seed=1)]
    predicted = predictor(store, 0, 1).predict(BATCH)
    assert predicted.checkpoints == (f"fold0 {digests[0]}", f"fold1 {digests[1]}")
    assert predicted.numbers["n_learned_images"] == 1
    assert read_json(store.prediction_file("exp", f"{LANE}__one"))["checkpoints"] == digests


def test_the_network_is_that_of_the_checkpoint_and_not_the_one_that_the_lane_describes_now(
    store: ArtefactStore,
) -> None:
    def predictions(trained_size: int, lane_size: int) -> list[dict[str, Any]]:
        put_weights(store, 0, trained_as=tiny(model={"input_size": trained_size}))
        now = lane(0, model={"input_size": lane_size})
        BatchPredictor(store, now, device="cpu", code_version="1").predict(BATCH)
        path = store.prediction_file("exp", f"{LANE}__one")
        found = read_json(path)["predictions"]
        path.unlink()  # Nothing is skipped as done.
        return found

    as_trained = predictions(96, 96)
    assert as_trained == predictions(96, 64)
    assert as_trained != predictions(64, 64), "the size makes a difference"


def test_weights_that_are_replaced_after_their_digest_was_taken_predict_nothing(store: ArtefactStore) -> None:
    put_weights(store, 0)
    waiting = predictor(store, 0)
    put_weights(store, 0, seed=1)
    with pytest.raises(TrainingNotUsableError, match="was replaced while it was in use"):
        waiting.predict(BATCH)
    assert not store.prediction_file("exp", f"{LANE}__one").exists()


def test_weights_whose_classes_have_other_names_now_are_refused(store: ArtefactStore) -> None:
    put_weights(store, 0, categories={1: NAMES[2], 2: NAMES[1]})
    with pytest.raises(TrainingNotUsableError, match="learned 1 hyalite, 2 foyer_choroidien, which is now 1 foyer_ch"):
        predictor(store, 0)


def test_an_ensemble_of_folds_that_learned_different_classes_is_refused(store: ArtefactStore) -> None:
    put_weights(store, 0)
    put_weights(store, 1, categories={1: NAMES[1]})
    with pytest.raises(TrainingNotUsableError, match=r"exp/checkpoint of fold1 different in hyalite; materialize both"):
        predictor(store, 0, 1)


@pytest.mark.parametrize(
    ("box", "error"), [("[NaN, 1, 5, 5]", "1 boxes outside"), ("[5, 1, 5, 5]", "1 boxes without area")]
)
def test_broken_boxes_in_a_prediction_file_are_found(store: ArtefactStore, box: str, error: str) -> None:
    put_weights(store, 0)
    predictor(store, 0).predict(BATCH)
    assert inspect_predictions(store, lane(0), BATCH).errors == ()
    path = store.prediction_file("exp", f"{LANE}__one")
    path.write_text(f'{{"image_id": "{LANE}::one", "predictions": [{{"box": {box}, "score": 0.5, "label": 1}}]}}')
    assert any(error in line for line in inspect_predictions(store, lane(0), BATCH).errors)
