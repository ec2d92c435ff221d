from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import polars as pl
import pytest
import torch

from uveitis_assets.detection.configuration import InferenceConfiguration
from uveitis_assets.detection.inference.prediction_batch import BatchPrediction, batch_prediction_sheet, predict_batch
from uveitis_assets.detection.inference.prediction_file import read_prediction
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.detection.known_detectors import PaintedBoxDetector
from uveitis_assets_tests.detection.preprocessed_lane import BATCH, LANE, write_preprocessed_batch

NAMES = {1: "foyer_choroidien", 2: "hyalite"}
# Lesions lie clear of the tiles' edges at 36 and 64 px, so that none is cut.
IMAGES = {"a": {1: (5, 5, 30, 34)}, "b": {1: (0, 0, 10, 10), 2: (66, 66, 80, 90)}, "c": {}}


@pytest.fixture
def store(tmp_path: Path) -> ArtefactStore:
    return ArtefactStore(tmp_path, tmp_path / "raw")


def run(
    store: ArtefactStore,
    *,
    load_models: Callable[[], Sequence[torch.nn.Module]] = lambda: [PaintedBoxDetector()],
    checkpoints: Sequence[str] = ("weights-1",),
    class_scores: Mapping[int, float] | None = None,
    masked_classes: bool = False,
    global_tile: bool = False,
    **settings: object,
) -> BatchPrediction:
    return predict_batch(
        store,
        "exp",
        LANE,
        BATCH,
        load_models=load_models,
        checkpoints=checkpoints,
        configuration=InferenceConfiguration(**settings),
        names=NAMES,
        device="cpu",
        code_version="1",
        class_scores=class_scores,
        masked_classes=masked_classes,
        global_tile=global_tile,
    )


def no_models() -> Sequence[torch.nn.Module]:
    raise AssertionError("nothing has to be predicted")


def files_of(store: ArtefactStore) -> dict[str, bytes]:
    folders = ("preds", "preds_vis", f"index/{LANE}/predictions_exp")
    return {
        path.relative_to(store.root).as_posix(): path.read_bytes()
        for folder in folders
        for path in sorted((store.root / folder).rglob("*"))
        if path.is_file()
    }


def test_a_batch_becomes_files_index_and_numbers(store: ArtefactStore) -> None:
    write_preprocessed_batch(store, IMAGES)
    outcome = run(store)
    assert (outcome.n_images, outcome.n_predicted, outcome.n_skipped, outcome.n_removed) == (3, 3, 0, 0)
    assert (outcome.n_detections, outcome.n_images_without_detections) == (3, 1)
    assert outcome.detections_per_class == {1: 2, 2: 1}
    assert sorted(files_of(store)) == [
        f"index/{LANE}/predictions_exp/{BATCH}.parquet",
        "preds/exp/clinic__a.json",
        "preds/exp/clinic__b.json",
        "preds/exp/clinic__c.json",
        "preds_vis/exp/clinic__a.png",
        "preds_vis/exp/clinic__b.png",
        "preds_vis/exp/heat_maps/clinic__a.png",
        "preds_vis/exp/heat_maps/clinic__b.png",
    ]
    found = read_prediction(store.prediction_file("exp", "clinic__b")).detections
    assert found.boxes.tolist() == [[0, 0, 10, 10], [66, 66, 80, 90]]
    index = pl.read_parquet(store.prediction_index("exp", LANE, BATCH))
    assert index["n_detections"].to_list() == [1, 2, 0]
    assert index["best_score"].to_list()[2] is None


def test_a_second_run_predicts_nothing_and_leaves_the_same_bytes(store: ArtefactStore) -> None:
    write_preprocessed_batch(store, IMAGES)
    run(store)
    before = files_of(store)
    outcome = run(store, load_models=no_models)
    assert (outcome.n_predicted, outcome.n_skipped, outcome.n_detections) == (0, 3, 3)
    assert files_of(store) == before


def test_only_the_image_whose_file_is_gone_is_predicted_again(store: ArtefactStore) -> None:
    write_preprocessed_batch(store, IMAGES)
    run(store)
    before = files_of(store)
    store.prediction_file("exp", "clinic__b").unlink()
    assert run(store).n_predicted == 1
    assert files_of(store) == before


@pytest.mark.parametrize("change", [{"checkpoints": ("weights-2",)}, {"merge_iou": 0.4}, {"score_threshold": 0.2}])
def test_other_weights_and_other_merging_predict_again(store: ArtefactStore, change: dict[str, object]) -> None:
    write_preprocessed_batch(store, IMAGES)
    run(store)
    assert run(store, **change).n_predicted == 3  # type: ignore[arg-type]
    assert run(store, **change, batch_size=3, load_models=no_models).n_predicted == 0  # type: ignore[arg-type]


def test_new_tiles_predict_again(store: ArtefactStore) -> None:
    write_preprocessed_batch(store, IMAGES)
    run(store)
    write_preprocessed_batch(store, {**IMAGES, "a": {2: (5, 5, 30, 34)}}, fingerprint="f1")
    assert run(store).n_predicted == 3
    assert read_prediction(store.prediction_file("exp", "clinic__a")).detections.labels.tolist() == [2]


def test_images_set_aside_later_lose_their_predictions(store: ArtefactStore) -> None:
    write_preprocessed_batch(store, IMAGES)
    run(store)
    write_preprocessed_batch(store, IMAGES, quarantined=("b",))
    outcome = run(store, load_models=no_models)
    assert (outcome.n_images, outcome.n_removed) == (2, 1)
    assert not any("clinic__b" in name for name in files_of(store))


def write_ledger(store: ArtefactStore, *entries: tuple[str, str, str]) -> None:
    """Image, batch and state of each entry."""
    path = store.ledger_file(LANE)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(f"{LANE}::{stem}", batch, state) for stem, batch, state in entries]
    pl.DataFrame(rows, schema=["image_id", "batch", "state"], orient="row").write_parquet(path)


def without(*stems: str) -> dict[str, dict[int, tuple[int, int, int, int]]]:
    return {stem: boxes for stem, boxes in IMAGES.items() if stem not in stems}


def test_images_that_left_the_batch_before_a_killed_run_wrote_its_index_lose_their_predictions(
    store: ArtefactStore,
) -> None:
    write_preprocessed_batch(store, IMAGES)
    run(store)
    store.prediction_index("exp", LANE, BATCH).unlink()
    # Killed between the pictures of `a` and its file.
    store.prediction_file("exp", "clinic__a").unlink()
    write_preprocessed_batch(store, without("a"), quarantined=("b",))
    write_ledger(store, ("a", BATCH, "gone"), ("b", BATCH, "live"), ("c", BATCH, "live"))
    assert run(store, load_models=no_models).n_removed == 2
    assert {name.split("/")[-1] for name in files_of(store)} == {f"{BATCH}.parquet", "clinic__c.json"}


def test_an_image_that_passed_on_to_another_batch_is_left_to_that_one(store: ArtefactStore) -> None:
    write_preprocessed_batch(store, IMAGES)
    write_ledger(store, *((stem, BATCH, "live") for stem in IMAGES))
    run(store)
    by_the_other = read_prediction(store.prediction_file("exp", "clinic__a")).fingerprint
    before = files_of(store)
    write_ledger(store, ("a", BATCH, "superseded"), ("a", "b00002", "live"), ("b", BATCH, "live"), ("c", BATCH, "live"))
    # As long as the tiles of the batch have not been made again, they list it too.
    outcome = run(store, checkpoints=("weights-2",))
    assert (outcome.n_images, outcome.n_predicted, outcome.n_removed) == (2, 2, 0)
    assert read_prediction(store.prediction_file("exp", "clinic__a")).fingerprint == by_the_other
    write_preprocessed_batch(store, without("a"))
    assert run(store).n_removed == 0
    after = files_of(store)
    assert {name: after[name] for name in before if "clinic__a" in name} == {
        name: content for name, content in before.items() if "clinic__a" in name
    }
    outcome = run(store)
    assert batch_prediction_sheet(store, outcome, NAMES, text_if_empty="nothing")[:2] == b"\xff\xd8"


def test_missing_pictures_are_drawn_again_without_the_network(store: ArtefactStore) -> None:
    write_preprocessed_batch(store, IMAGES)
    run(store)
    before = files_of(store)
    run(store, overlays=False, load_models=no_models)
    assert not list((store.root / "preds_vis").rglob("*.png"))
    run(store, load_models=no_models)
    assert files_of(store) == before


def test_an_image_that_loses_its_detections_loses_its_pictures(store: ArtefactStore) -> None:
    write_preprocessed_batch(store, IMAGES)
    run(store)
    run(store, load_models=lambda: [PaintedBoxDetector(score=0.1)], checkpoints=("weak",))
    assert not list((store.root / "preds_vis").rglob("*.png"))


@pytest.mark.parametrize(
    ("frame", "persist"),
    [("global", ("global",)), ("global", ("tiles",)), ("native", ("norm",)), ("native", ("tiles",))],
)
def test_pixels_are_found_whichever_artefact_is_persisted(
    store: ArtefactStore, frame: str, persist: tuple[str, ...]
) -> None:
    write_preprocessed_batch(store, {"a": {1: (20, 10, 60, 40)}}, crop=(200, 100), frame=frame, persist=persist)
    run(store, score_threshold=0.5)
    found = read_prediction(store.prediction_file("exp", "clinic__a")).detections
    # Half the size, 25 px down; in the global frame the painted edges are blurred by less than a pixel.
    assert found.boxes[0].tolist() == pytest.approx([10, 30, 30, 45], abs=1)
    overlay = cv2.imread(str(store.prediction_overlay("exp", "clinic__a")))
    assert overlay is not None
    assert overlay.shape == (100, 100, 3)


def test_a_batch_without_tiles_says_what_to_do(store: ArtefactStore) -> None:
    with pytest.raises(FileNotFoundError, match="materialize the tiles first"):
        run(store)


def test_unreadable_images_are_named_after_all_others_are_predicted(store: ArtefactStore) -> None:
    write_preprocessed_batch(store, IMAGES, persist=("tiles",))
    store.tile("clinic__a", "tile_001").unlink()
    store.tile("clinic__b", "tile_000").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"(?s)2 of 3 images.*clinic::a: .*tile_001.*missing.*clinic::b: .*damaged"):
        run(store)
    assert sorted(path.name for path in (store.root / "preds").rglob("*.json")) == ["clinic__c.json"]
    assert pl.read_parquet(store.prediction_index("exp", LANE, BATCH))["image_id"].to_list() == ["clinic::c"]
    write_preprocessed_batch(store, IMAGES, persist=("tiles",))
    outcome = run(store)
    assert (outcome.n_predicted, outcome.n_skipped) == (2, 1)


def test_an_image_that_cannot_be_read_keeps_no_prediction_by_other_weights(store: ArtefactStore) -> None:
    write_preprocessed_batch(store, IMAGES, persist=("tiles",))
    run(store, overlays=False)
    tile = store.tile("clinic__b", "tile_000")
    tile.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="1 of 3 images"):
        run(store, overlays=False, checkpoints=("weights-2",))
    assert sorted(path.name for path in (store.root / "preds").rglob("*.json")) == ["clinic__a.json", "clinic__c.json"]


def test_the_contact_sheet_is_a_small_jpeg_also_without_detections(store: ArtefactStore) -> None:
    write_preprocessed_batch(store, IMAGES)
    sheet = batch_prediction_sheet(store, run(store), NAMES, text_if_empty="nothing")
    assert sheet[:2] == b"\xff\xd8"
    assert len(sheet) <= 150_000
    empty = batch_prediction_sheet(store, run(store, score_threshold=0.95), NAMES, text_if_empty="nothing")
    assert empty[:2] == b"\xff\xd8"
    assert empty != sheet


def test_operating_scores_of_classes_replace_the_threshold_and_others_predict_again(store: ArtefactStore) -> None:
    """Every painted box is found with the score 0.9."""
    write_preprocessed_batch(store, IMAGES)
    assert run(store, score_threshold=0.99).detections_per_class == {}
    strict = {1: 0.95, 2: 0.5}
    assert run(store, score_threshold=0.99, class_scores=strict).detections_per_class == {2: 1}
    again = run(store, score_threshold=0.99, class_scores=strict, load_models=no_models)
    assert (again.n_skipped, again.detections_per_class) == (3, {2: 1})
    assert run(store, score_threshold=0.99, class_scores={1: 0.85}).detections_per_class == {1: 2}


def test_predictions_from_before_untaught_classes_were_masked_are_made_again(store: ArtefactStore) -> None:
    write_preprocessed_batch(store, IMAGES)
    run(store)
    assert run(store, masked_classes=True).n_predicted == 3
    assert run(store, masked_classes=True, load_models=no_models).n_skipped == 3


def test_a_batch_of_native_tiles_is_predicted_again_once_the_global_image_is_shown_too(store: ArtefactStore) -> None:
    write_preprocessed_batch(
        store, {"eye": {3: (60, 31, 240, 181)}}, crop=(300, 200), frame="native", persist=("global", "tiles")
    )
    passes = {}
    for shown in (False, True):
        model = PaintedBoxDetector()
        assert run(store, load_models=lambda model=model: [model], global_tile=shown).n_predicted == 1
        passes[shown] = sum(model.passes)
    assert passes[True] == passes[False] + 1
