"""Operating points count only where the evaluation judged the weights as they predict, and in one precision."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from uveitis_assets.detection.checkpoints.fold_weights import FoldWeights, TrainingNotUsableError, fold_weights
from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.evaluation import fold_evaluation
from uveitis_assets.detection.evaluation.fold_evaluation import FoldEvaluation, evaluate_fold
from uveitis_assets.detection.evaluation.operating_points import scores_for_prediction
from uveitis_assets.detection.inference.predict_images import predict_images
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration
from uveitis_assets.storage.files import read_json, write_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.device import answers_in_half_precision
from uveitis_assets.training.weights_files import read_lineage, read_weights_file, save_weights
from uveitis_assets_tests.detection.squares import tiny

RATE = 1.0


def lane(**changes: Any) -> DetectorLaneConfiguration:
    changes = {**changes, "inference": {"operating_fp_per_image": RATE, **changes.get("inference", {})}}
    values = {**tiny(**changes).model_dump(), "name": "squares", "train_on": "eyes", "predict_on": "eyes"}
    return DetectorLaneConfiguration.model_validate(values)


@pytest.fixture
def report(trained: Path, val: LabelledSplit, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The validation report that the training of the lane ``squares`` wrote; evaluations are on ``val``."""
    monkeypatch.setattr(fold_evaluation, "labelled_split", lambda *_: val)
    return trained / "val_report.json"


def evaluate(store: ArtefactStore, configuration: DetectorLaneConfiguration) -> FoldEvaluation:
    return evaluate_fold(store, configuration, 0, split="val", device="cpu")


def scores(store: ArtefactStore, report: Path, configuration: DetectorLaneConfiguration) -> Mapping[int, float]:
    return scores_for_prediction(report, fold_weights(store, "squares", 0), configuration, RATE)


def test_scores_of_an_evaluation_with_the_lanes_settings_are_taken(store: ArtefactStore, report: Path) -> None:
    evaluate(store, lane())
    expected = read_json(report)["val_metrics"]["operating_scores"]["1"]
    assert expected
    assert scores(store, report, lane()) == {int(category): score for category, score in expected.items()}
    unrelated = {"inference": {"score_threshold": 0.5, "batch_size": 2, "overlays": False}, "training": {"epochs": 9}}
    assert scores(store, report, lane(**unrelated)) == scores(store, report, lane())


CHANGES: list[tuple[dict[str, Any], str, str]] = [
    ({"inference": {"merge": "weighted_box_fusion"}}, "merge weighted_box_fusion", "merge nms"),
    ({"inference": {"merge_iou": 0.3}}, "merge_iou 0.3", "merge_iou 0.5"),
    ({"global_tile": False}, "global_tile False", "global_tile True"),
    ({"evaluation": {"froc_iou": 0.5, "max_detections": 7}}, "froc_iou 0.5, max_detections 7", "froc_iou 0.3"),
    ({"inference": {"flips": ["none", "horizontal"]}}, "flips ['none', 'horizontal']", "flips ['none']"),
]


def test_scores_found_with_other_settings_are_refused_until_the_evaluation_is_made_again(
    store: ArtefactStore, report: Path
) -> None:
    evaluate(store, lane())
    again = re.escape("; materialize squares/evaluation (`val`) of fold0 again")
    for change, expected, found in CHANGES:
        message = re.escape(f"inference.operating_fp_per_image: expected scores found with {expected}, found {found}")
        with pytest.raises(TrainingNotUsableError, match=f"{message}.*{again}"):
            scores(store, report, lane(**change))
    last = CHANGES[-1][0]
    evaluate(store, lane(**last))
    assert scores(store, report, lane(**last))
    with pytest.raises(TrainingNotUsableError, match="flips"):
        scores(store, report, lane())


def test_reports_of_trainings_earlier_versions_and_other_weights_are_refused_by_what_they_lack(
    store: ArtefactStore, report: Path
) -> None:
    with pytest.raises(TrainingNotUsableError, match="without the digest of its weights, as the training writes it"):
        scores(store, report, lane())
    evaluate(store, lane())
    content = read_json(report)
    write_json(report, {name: value for name, value in content.items() if name != "settings"})
    with pytest.raises(TrainingNotUsableError, match=r"expected the settings .* found none: an earlier version wrote"):
        scores(store, report, lane())
    # A setting that a later version adds.
    settings = {name: value for name, value in content["settings"].items() if name != "flips"}
    write_json(report, {**content, "settings": settings})
    with pytest.raises(TrainingNotUsableError, match=r"with flips \['none'\], found flips not named"):
        scores(store, report, lane())
    write_json(report, {**content, "checkpoint": "0" * 32})
    with pytest.raises(TrainingNotUsableError, match=f"found that of {'0' * 32}"):
        scores(store, report, lane())
    report.unlink()
    with pytest.raises(FileNotFoundError, match="expected the report of the evaluation, found none"):
        scores(store, report, lane())


def test_the_lineage_says_in_which_precision_validation_answered_and_evaluation_does_the_same(
    store: ArtefactStore, report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = fold_weights(store, "squares", 0)
    assert read_lineage(weights.path)["mixed_precision"] is False, "trained on the CPU"
    assert not weights.answers_in_half_precision("cuda"), "on a GPU as it was validated"
    assert replace(weights, mixed_precision=True).answers_in_half_precision("cuda:0")
    assert not replace(weights, mixed_precision=True).answers_in_half_precision("cpu")
    evaluate(store, lane())
    assert read_json(report)["mixed_precision"] is False
    asked: list[bool] = []

    def noting(*arguments: Any, amp: bool, **options: Any) -> Any:
        asked.append(amp)
        return predict_images(*arguments, amp=amp, **options)

    # The lane's own setting has no say; on the CPU bfloat16 stands in for a GPU's.
    monkeypatch.setattr(fold_evaluation, "predict_images", noting)
    monkeypatch.setattr(FoldWeights, "answers_in_half_precision", lambda *_: True)
    evaluate(store, lane(training={"amp": "off"}))
    assert asked == [True]
    assert read_json(report)["mixed_precision"] is True


@pytest.mark.parametrize("amp", ["auto", "bf16", "off"])
def test_weights_of_earlier_versions_answer_by_the_amp_of_their_own_training(
    store: ArtefactStore, trained: Path, amp: str
) -> None:
    best = trained / "checkpoints" / "best.safetensors"
    file = read_weights_file(best)
    lineage = {name: value for name, value in file.details.items() if name != "mixed_precision"}
    lineage["configuration"]["training"]["amp"] = amp
    (trained / "run.json").unlink()
    save_weights(best, file.tensors, lineage)
    weights = fold_weights(store, "squares", 0)
    assert weights.answers_in_half_precision("cuda") is (amp != "off")
    assert weights.answers_in_half_precision("cuda") is answers_in_half_precision(amp, "cuda")  # type: ignore[arg-type]
    assert not weights.answers_in_half_precision("cpu")
