"""Weights that predict: of the present classes, and exactly those that the predictions name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from uveitis_assets.detection.checkpoints.fold_weights import FoldWeights, TrainingNotUsableError
from uveitis_assets.detection.checkpoints.lineage import weights_lineage
from uveitis_assets.detection.configuration import DetectorConfiguration
from uveitis_assets.detection.data.tile_geometry import TileGeometry
from uveitis_assets.detection.evaluation.operating_points import score_settings
from uveitis_assets.detection.inference.batch_predictor import BatchPredictor, inspect_predictions
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration
from uveitis_assets.detection.models.detector import build_detector
from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.storage.files import read_json, write_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.run_folder import RunFolder
from uveitis_assets.training.weights_files import file_digest, save_weights
from uveitis_assets_tests.detection.known_detectors import PaintedBoxDetector
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
    inference = {"folds": folds, "score_threshold": 0.0, "overlays": False, **changes.pop("inference", {})}
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
    tiles: Mapping[str, Any] | None = None,
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
        tiles=tiles,
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


def test_operating_scores_of_an_evaluation_made_again_after_a_change_of_settings_predict_again(
    store: ArtefactStore,
) -> None:
    digest = put_weights(store, 0)

    def evaluated(scores: dict[str, float], **inference: Any) -> DetectorLaneConfiguration:
        changed = lane(0, inference={"operating_fp_per_image": 1.0, **inference})
        content = {"checkpoint": digest, "settings": score_settings(changed)}
        path = RunFolder(store.run_folder("exp", 0)).report_file
        write_json(path, {**content, "val_metrics": {"operating_scores": {"1": scores}}})
        return changed

    def found_classes(changed: DetectorLaneConfiguration) -> set[str]:
        predicted = BatchPredictor(store, changed, device="cpu", code_version="1").predict(BATCH)
        assert predicted.numbers["n_predicted"] == 2
        return set(predicted.detections_per_class)

    before = evaluated({"1": 1.01, "2": 0.0})
    assert found_classes(before) == {NAMES[2]}
    with pytest.raises(TrainingNotUsableError, match=r"with merge_iou 0.3, found merge_iou 0.5"):
        BatchPredictor(
            store,
            lane(0, inference={"operating_fp_per_image": 1.0, "merge_iou": 0.3}),
            device="cpu",
            code_version="1",
        )
    assert found_classes(evaluated({"1": 1.01, "2": 1.01}, merge_iou=0.3)) == set()


def test_each_detector_of_an_ensemble_answers_in_the_precision_of_its_own_validation(
    store: ArtefactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU bfloat16 stands in for a GPU's."""
    answered: dict[str, set[bool]] = {}

    class Noting(PaintedBoxDetector):
        def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            answered.setdefault(self.name, set()).add(torch.is_autocast_enabled("cpu"))
            return super().forward(images)

    def load(weights: FoldWeights) -> torch.nn.Module:
        detector = Noting()
        detector.name = weights.name  # type: ignore[assignment]
        return detector

    monkeypatch.setattr(FoldWeights, "load", load)
    monkeypatch.setattr(FoldWeights, "answers_in_half_precision", lambda weights, _: weights.amp != "off")
    put_weights(store, 0)
    put_weights(store, 1, trained_as=tiny(training={"amp": "off"}))
    predictor(store, 0, 1).predict(BATCH)
    assert answered == {"exp/checkpoint of fold0": {True}, "exp/checkpoint of fold1": {False}}


def test_tiles_unlike_those_that_were_learned_are_named_in_predictions_and_their_check(store: ArtefactStore) -> None:
    shown = "global tiles of 64 px of a global image of 100 px (1 px per input px)"
    native = TileGeometry("native", True, 64, 64, 100)
    put_weights(store, 0, tiles=native.plain())
    put_weights(store, 1, tiles=TileGeometry("global", False, 64, 64, 100).plain(), seed=1)

    def warned(*folds: int) -> list[str]:
        """Warnings about tiles; weights by chance fill all tiles with detections, which is another."""
        warnings = inspect_predictions(store, lane(*folds), BATCH).warnings
        return [warning for warning in warnings if "learned" in warning]

    predicted = predictor(store, 0, 1).predict(BATCH)
    assert predicted.tiles == shown
    (finding,) = predicted.tile_findings
    assert finding.startswith(f"exp/checkpoint of fold0 learned {native}, and is shown {shown}: ")
    assert warned(0, 1) == [finding]
    assert warned(1) == []
    put_weights(store, 0)
    assert predictor(store, 0).predict(BATCH).tile_findings == (), "an earlier version did not say what it learned"
    assert warned(0) == []


def test_a_skipped_batch_and_its_check_read_every_prediction_file_once(
    store: ArtefactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_weights(store, 0)
    with_pictures = lane(0, inference={"overlays": True})
    BatchPredictor(store, with_pictures, device="cpu", code_version="1").predict(BATCH)
    reads: list[str] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (reads.append(store.name_of(path)), read_bytes(path))[1])
    names = sorted(path.relative_to(store.root).as_posix() for path in (store.root / "preds").rglob("*.json"))

    def files_read() -> list[str]:
        read, reads[:] = sorted(name for name in reads if name.startswith("preds/")), []
        return read

    again = BatchPredictor(store, with_pictures, device="cpu", code_version="1").predict(BATCH)
    assert again.numbers["n_skipped"] == 2
    assert again.contact_sheet is not None
    assert files_read() == names
    assert inspect_predictions(store, with_pictures, BATCH).errors == ()
    assert files_read() == names


def test_a_prediction_file_with_another_digit_is_found_by_the_check_and_made_again(store: ArtefactStore) -> None:
    put_weights(store, 0)
    predictor(store, 0).predict(BATCH)
    path = store.prediction_file("exp", f"{LANE}__one")
    written = path.read_bytes()
    path.write_bytes(written.replace(b'"score": 0.', b'"score": 0,', 1).replace(b'"label": 1', b'"label": 2', 1))
    assert path.read_bytes() != written
    errors = inspect_predictions(store, lane(0), BATCH).errors
    assert any(line.startswith(f"{LANE}::one: {store.name_of(path)}: expected CRC-32") for line in errors)
    assert predictor(store, 0).predict(BATCH).repaired
    assert path.read_bytes() == written
