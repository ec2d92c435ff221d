"""A detector lane through its own assets: train, evaluate, predict; what lands later is predicted and nothing else."""

import json
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from uveitis_assets.detection.configuration import InferenceConfiguration
from uveitis_assets.detection.data.preprocessed_images import read_preprocessed_images
from uveitis_assets.detection.inference.batch_predictor import BatchPredictor, PredictedBatch
from uveitis_assets.detection.inference.prediction_file import prediction_fingerprint
from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.orchestration.partition_runs import range_tags
from uveitis_assets.storage.files import read_json, write_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.weights_files import file_digest, read_weights_file, save_weights
from uveitis_assets_tests.components.running_platform import QUIET, Platform, requested, use
from uveitis_assets_tests.lane_project import fundus_lanes, load_project

LANE = """\
type: uveitis_assets.components.fundus_dataset.FundusDataset
attributes:
  name: uwf700
  layout: uwf700
  folder: uwf-700
  roi: {method: threshold}
  tiling: {global_size: 128, tile_size: 96}
  splits: {folds: 2, test_ratio: 0.0}
  labels: {format: obb}
"""
UNLABELLED = """\
type: uveitis_assets.components.fundus_dataset.FundusDataset
attributes:
  name: eyepacs
  layout: eyepacs
  folder: eyepacs
  splits: {folds: 2}
"""
DETECTOR = """\
type: uveitis_assets.components.lesion_detector.LesionDetector
attributes:
  name: {name}
  train_on: uwf700
  predict_on: uwf700
  model:
    backbone: timm_fpn
    timm_model: test_resnet
    norm: group
    input_size: 96
    pyramid_channels: 32
    head_width: 64
    rpn_post_nms_train: 200
    rpn_post_nms_test: 100
  training:
    epochs: 1
    freeze_blocks: 0
    tensorboard: false
  evaluation: {{bootstrap_samples: 20}}
  inference: {{score_threshold: 0.0}}
{more}"""

OPERATING = DETECTOR.replace("score_threshold: 0.0", "operating_fp_per_image: 1.0")

# Weights of all classes first: the network has learned to answer with the others.
SUBSET = """\
  classes: [vascularite]
  initialise: {experiment: parent}
"""


@pytest.fixture(scope="module")
def trained(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A small lane with labels, and two small detectors of which the second starts from the first; fold 0 trained."""
    root = tmp_path_factory.mktemp("detector")
    with pytest.MonkeyPatch.context() as patch:
        store = ArtefactStore(root / "data", root / "data" / "raw")
        use(store, patch)
        detectors = {
            "parent": DETECTOR.format(name="parent", more=""),
            "child": DETECTOR.format(name="child", more="  initialise: {experiment: parent}\n"),
            "subset": DETECTOR.format(name="subset", more=SUBSET),
            "operating": OPERATING.format(name="operating", more=""),
        }
        definitions = load_project(root, "detector_lanes", {"uwf700": LANE, **detectors}, patch)
        platform = Platform(definitions, fundus_lanes(root / "detector_lanes"), store)
        names = sorted(path.relative_to(sample / "uwf-700").as_posix() for path in sample.glob("uwf-700/Images/*/*"))
        labels = [path.relative_to(sample / "uwf-700").as_posix() for path in sample.glob("uwf-700/Labels/*/*")]
        platform.land(sample, [*labels, *names[:-1]])
        platform.register("uwf700")
        assert platform.run("uwf700").success
        assert platform.run_labels("uwf700", "fold0|train", "fold1|test").success
        result = run(platform, "parent_training", "fold0")
        assert result.success, failures(result)
        platform.land(sample, names[-1:])
        yield platform


def failures(result: dg.ExecuteInProcessResult) -> str:
    return "\n".join(str(event.event_specific_data) for event in result.all_events if event.is_failure)


def run(
    platform: Platform, job: str, first: str, last: str | None = None, only: str | None = None, **ops: Any
) -> dg.ExecuteInProcessResult:
    """Run a job for some keys, with all of its assets or ``only`` one, such as ``child/checkpoint``."""
    return platform.definitions.resolve_job_def(job).execute_in_process(
        instance=platform.instance,
        run_config={**QUIET, "ops": {name: {"config": config} for name, config in ops.items()}},
        asset_selection=None if only is None else [dg.AssetKey(only.split("/"))],
        partition_key=first if last is None else None,
        tags={} if last is None else range_tags(first, last),
        raise_on_error=False,
    )


def test_training_writes_the_files_of_the_earlier_scripts_and_reports_what_it_did(trained: Platform) -> None:
    folder = trained.store.run_folder("parent", 0)
    for name in ("config.yaml", "metrics.jsonl", "checkpoints/best.safetensors", "checkpoints/best.json"):
        assert (folder / name).is_file(), name
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert {"epoch", "train_loss", "val_mAP_proxy", "elapsed_sec", "lr", "map_50"} <= set(row)
    metadata = trained.metadata("parent/checkpoint", "fold0")
    assert metadata["best_epoch"] == 1
    assert metadata["initialised_from"] == "random weights"
    assert metadata["curves"].startswith("![parent fold0: loss and AP](data:image/jpeg;base64,")


def test_the_evaluation_writes_a_report_figures_and_checks(trained: Platform) -> None:
    folder = trained.store.run_folder("parent", 0)
    report = read_json(folder / "val_report.json")
    assert {"best_epoch", "best_val_mAP_proxy", "val_metrics", "ap", "froc", "confusion", "split"} <= set(report)
    assert report["split"] == "val"
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "val_froc.png",
        "val_precision_and_recall.png",
        "val_confusion.png",
    }
    metadata = trained.metadata("parent/evaluation", "fold0")
    assert metadata["n_images"] == report["n_images"]
    assert report["settings"]["merge"] == "nms"
    assert report["tiles"] == {
        "frame": "global",
        "global_tile": False,
        "tile_px": 96,
        "input_px": 96,
        "global_size": 128,
    }
    tiles = "global tiles of 96 px of a global image of 128 px (1 px per input px)"
    assert (metadata["tiles"], trained.metadata("parent/checkpoint", "fold0")["tiles"]) == (tiles, tiles)
    assert metadata["FROC"].startswith("![")
    assert metadata["preview"].startswith("![")
    integrity = trained.check("parent/checkpoint", "checkpoint_integrity", "fold0")
    assert integrity.passed, integrity.metadata
    quality = trained.check("parent/evaluation", "detection_quality", "fold0")
    assert quality.passed
    untrained = trained.check("parent/checkpoint", "checkpoint_integrity", "fold1")
    assert not untrained.passed


def test_training_again_recognises_the_finished_run(trained: Platform) -> None:
    weights = trained.store.run_folder("parent", 0) / "checkpoints" / "best.safetensors"
    before = weights.stat().st_mtime_ns
    assert run(trained, "parent_training", "fold0").success
    assert weights.stat().st_mtime_ns == before


def test_a_child_starts_from_its_parents_weights_of_the_same_fold_or_names_what_is_missing(trained: Platform) -> None:
    result = run(trained, "child_training", "fold1")
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure and "checkpoint" in str(event.step_key)]
    assert "materialize parent/checkpoint of fold1 first" in str(failure.event_specific_data)
    assert run(trained, "child_training", "fold0", only="child/checkpoint").success
    assert trained.metadata("child/checkpoint", "fold0")["initialised_from"].startswith("best.safetensors (")


def test_a_checkpoint_is_not_evaluated_on_images_that_it_learned(trained: Platform) -> None:
    path = trained.store.run_folder("parent", 0) / "checkpoints" / "best.safetensors"
    weights = read_weights_file(path)
    report = (path.parents[1] / "val_report.json").read_bytes()
    labels = read_json(trained.store.coco_file("uwf700", "val", 0, tiles=False))
    evaluated = [image["image_id"] for image in labels["images"]]
    changed = path, path.with_suffix(".json"), path.parents[1] / "run.json"
    before = [file.read_bytes() for file in changed]
    try:
        # As after a new assignment of the splits, which moves images from train to val.
        save_weights(path, weights.tensors, {**weights.details, "learned_images": evaluated[:1]})
        write_json(changed[2], read_json(changed[2]) | {"best_weights": file_digest(path)})
        result = run(trained, "parent_training", "fold0", only="parent/evaluation")
    finally:
        for file, content in zip(changed, before, strict=True):
            file.write_bytes(content)
    assert not result.success
    assert f"1 of {len(evaluated)} images of val of fold0 were learned" in failures(result)
    assert (path.parents[1] / "val_report.json").read_bytes() == report


def test_a_lineage_of_another_run_beside_the_weights_fails_the_check(trained: Platform) -> None:
    beside = trained.store.run_folder("parent", 0) / "checkpoints" / "best.json"
    before = beside.read_bytes()
    try:
        beside.write_bytes(before.replace(b'"created_at": "2', b'"created_at": "1'))
        other = trained.check("parent/checkpoint", "checkpoint_integrity", "fold0")
    finally:
        beside.write_bytes(before)
    assert not other.passed
    assert "expected the lineage inside the weights file, found another" in str(other.metadata["findings"].value)


def test_an_override_cannot_train_into_another_lanes_folder(trained: Platform) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.store.run_folder("child", 0).rglob("*")}
    wrong = run(trained, "parent_training", "fold0", parent__checkpoint={"overrides": {"name": "child"}})
    assert not wrong.success
    assert "overrides: name: expected one of augmentation" in failures(wrong)
    assert {path: path.stat().st_mtime_ns for path in trained.store.run_folder("child", 0).rglob("*")} == before


def test_what_lands_is_predicted_and_nothing_else_is_touched(trained: Platform) -> None:
    tick = trained.tick("parent_predictions_refresh")
    assert isinstance(tick, dg.SensorResult)
    assert requested(tick.run_requests) == [("b00001", "b00001", ("predictions",))]
    first = run(trained, "parent_predictions", "b00001", "b00001")
    assert first.success, failures(first)
    files = sorted((trained.store.root / "preds" / "parent").glob("*.json"))
    assert len(files) == 8
    assert isinstance(trained.tick("parent_predictions_refresh"), dg.SkipReason)
    sane = trained.check("parent/predictions", "prediction_sanity", "b00001")
    # This detector has learned next to nothing and answers everywhere: the lists of some tiles are full.
    assert (sane.metadata["n_errors"].value, sane.metadata["n_warnings"].value) == (0, 1), sane.metadata
    assert "detections_per_tile" in str(sane.metadata["findings"].value)

    trained.register("uwf700")
    assert trained.run("uwf700", "b00002").success
    before = {path: path.stat().st_mtime_ns for path in files}
    tick = trained.tick("parent_predictions_refresh")
    assert isinstance(tick, dg.SensorResult)
    assert requested(tick.run_requests) == [("b00002", "b00002", ("predictions",))]
    assert run(trained, "parent_predictions", "b00002", "b00002").success
    assert len(list((trained.store.root / "preds" / "parent").glob("*.json"))) == 9
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert trained.metadata("parent/predictions", "b00002")["n_predicted"] == 1

    files[0].unlink()
    broken = trained.check("parent/predictions", "prediction_sanity", "b00001")
    assert not broken.passed
    assert "no prediction file" in str(broken.metadata["findings"].value)


def test_tiles_made_again_while_their_batch_is_predicted_are_predicted_again(
    trained: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = BatchPredictor.predict

    def with_newer_tiles(self: BatchPredictor, batch: str) -> PredictedBatch:
        predicted = predict(self, batch)
        tiles = dg.AssetMaterialization(["uwf700", "tiles"], partition=batch)
        trained.instance.report_runless_asset_event(tiles)
        return predicted

    with monkeypatch.context() as patch:
        patch.setattr(BatchPredictor, "predict", with_newer_tiles)
        assert run(trained, "parent_predictions", "b00001", "b00001").success
    tick = trained.tick("parent_predictions_refresh")
    assert isinstance(tick, dg.SensorResult)
    assert requested(tick.run_requests) == [("b00001", "b00001", ("predictions",))]
    assert run(trained, "parent_predictions", "b00001", "b00001").success
    assert isinstance(trained.tick("parent_predictions_refresh"), dg.SkipReason)


def test_a_lane_of_some_classes_trains_evaluates_and_predicts_these_alone(trained: Platform) -> None:
    taught = set(load_class_map().select(["vascularite"]))
    training = run(trained, "subset_training", "fold0")
    assert training.success, failures(training)
    report = read_json(trained.store.run_folder("subset", 0) / "val_report.json")
    assert {int(category) for category in report["categories"]} == taught
    assert sum(report["n_lesions"].values()) > 0
    assert run(trained, "subset_predictions", "b00001", "b00001").success
    found = [read_json(path) for path in (trained.store.root / "preds" / "subset").glob("*.json")]
    labels = {lesion["label"] for image in found for lesion in image["predictions"]}
    assert labels
    assert labels <= taught
    # Predictions of the version before, which answered with untaught classes too, are not taken for these.
    for image in read_preprocessed_images(trained.store, "uwf700", "b00001"):
        unmasked = prediction_fingerprint(
            image.fingerprint, found[0]["checkpoints"], InferenceConfiguration(score_threshold=0.0), "2"
        )
        assert unmasked not in {content["fingerprint"] for content in found}
    sane = trained.check("subset/predictions", "prediction_sanity", "b00001")
    assert sane.passed, sane.metadata


def test_predictions_at_operating_points_wait_for_the_evaluation_that_finds_them(trained: Platform) -> None:
    graph = trained.definitions.resolve_asset_graph()
    evaluation = dg.AssetKey(["operating", "evaluation"])
    assert evaluation in graph.get(dg.AssetKey(["operating", "predictions"])).parent_keys
    assert len(graph.get(dg.AssetKey(["parent", "predictions"])).parent_keys) == 2
    for needed in ("checkpoint", "evaluation"):
        tick = trained.tick("operating_predictions_refresh")
        assert isinstance(tick, dg.SkipReason)
        assert tick.skip_message == f"operating/{needed} lacks fold0"
        made = dg.AssetMaterialization(["operating", needed], partition="fold0")
        trained.instance.report_runless_asset_event(made)
    assert isinstance(trained.tick("operating_predictions_refresh"), dg.SensorResult)


def test_a_launchpad_override_is_validated_and_trains_another_run(trained: Platform) -> None:
    wrong = run(trained, "parent_training", "fold1", parent__checkpoint={"overrides": {"training": {"epoch": 3}}})
    assert not wrong.success
    assert "training.epoch" in "".join(str(event.event_specific_data) for event in wrong.all_events)


ENCODER = """\
type: uveitis_assets.components.encoder_pretraining.EncoderPretraining
attributes:
  name: one
  learn_from: [uwf700]
"""


@pytest.mark.parametrize(
    ("files", "places"),
    [
        (
            {"uwf700": LANE, "one": DETECTOR.format(name="uwf700", more="")},
            ["fundus lane uwf700 at {}/uwf700/defs.yaml:3", "detector uwf700 at {}/one/defs.yaml:3"],
        ),
        (
            {"uwf700": LANE, "a": DETECTOR.format(name="one", more=""), "b": DETECTOR.format(name="one", more="")},
            ["detector one at {}/b/defs.yaml:3", "detector one at {}/a/defs.yaml:3"],
        ),
        (
            {"uwf700": LANE, "a": DETECTOR.format(name="one", more=""), "b": ENCODER},
            ["encoder one at {}/b/defs.yaml:3", "detector one at {}/a/defs.yaml:3"],
        ),
        (
            {"uwf700": LANE, "b": ENCODER.replace("name: one", "name: uwf700")},
            ["fundus lane uwf700 at {}/uwf700/defs.yaml:3", "encoder uwf700 at {}/b/defs.yaml:3"],
        ),
    ],
)
def test_lanes_of_any_kind_that_share_a_name_are_refused_with_both_files_and_lines(
    files: dict[str, str], places: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"shared_name_{'_'.join(files)}_{len(places[0])}"
    with pytest.raises(Exception, match=r"defs\.yaml") as raised:
        load_project(tmp_path, name, files, monkeypatch)
    second, first = (place.format(tmp_path / name / "defs") for place in places)
    expected = f"LaneConflictError: {second}: expected a name of its own, found that of {first}; rename one of them"
    # Dagster prints the error with its causes.
    assert expected in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("train_on: uwf700", "train_on: uwf"),
            r"train_on: found no lane 'uwf', expected one of \['eyepacs',",
        ),
        (("train_on: uwf700", "train_on: eyepacs"), "expected a lane with lesion labels, found eyepacs"),
        (("predict_on: uwf700", "predict_on: x"), "predict_on: found no lane 'x'"),
        (("score_threshold: 0.0", "folds: [7]"), r"inference.folds: expected folds below 2 .* found \[7\]"),
        (("train_on: uwf700", "train_on: uwf700\n  initialise: {experiment: nobody}"), "initialise.experiment: found"),
        (("train_on: uwf700", "train_on: uwf700\n  initialise: {encoder: nobody}"), "initialise.encoder: found"),
        (("train_on: uwf700", "train_on: uwf700\n  classes: [foo]"), "found class 'foo'"),
        (("epochs: 1", "epochs: 0"), "greater than or equal to 1"),
    ],
)
def test_a_wrong_lane_is_refused_when_the_definitions_are_loaded(
    change: tuple[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = DETECTOR.format(name="one", more="").replace(*change)
    name = f"wrong_{abs(sum(message.encode()))}_{len(message)}"
    with pytest.raises(Exception, match=r"defs\.yaml") as raised:
        load_project(tmp_path, name, {"uwf700": LANE, "eyepacs": UNLABELLED, "one": text}, monkeypatch)
    causes = []
    error: BaseException | None = raised.value
    while error is not None:
        causes.append(str(error))
        error = error.__cause__ or error.__context__
    assert any(re.search(message, text) for text in causes), causes
