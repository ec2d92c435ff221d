"""Oriented detectors from end to end: from labelled corners to a checkpoint, its report and its answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from uveitis_assets.detection.checkpoints.loading import load_detector_weights, load_trained_detector
from uveitis_assets.detection.configuration import DetectorConfiguration, InferenceConfiguration
from uveitis_assets.detection.data.labelled_split import LabelledImage, LabelledSplit
from uveitis_assets.detection.data.training_data import chosen_splits
from uveitis_assets.detection.inference.detections import GroundTruth
from uveitis_assets.detection.inference.predict_images import predict_images
from uveitis_assets.detection.models.detector import build_detector
from uveitis_assets.detection.models.rotated_boxes import rotated_iou
from uveitis_assets.detection.training.identity import training_identity
from uveitis_assets.detection.training.train_detector import train_detector
from uveitis_assets.storage.files import read_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.detection.squares import squares_split, tiny


def with_corners(split: LabelledSplit) -> LabelledSplit:
    """The squares are their own oriented boxes."""

    def outlined(truth: GroundTruth) -> GroundTruth:
        return replace(truth, corners=truth.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2))

    def image(labelled: LabelledImage) -> LabelledImage:
        tiles = tuple(replace(tile, truth=outlined(tile.truth)) for tile in labelled.tiles)
        return replace(labelled, truth=outlined(labelled.truth), tiles=tiles)

    return replace(split, images=tuple(image(labelled) for labelled in split.images), fingerprint="0" * 16)


def oriented(**model: Any) -> DetectorConfiguration:
    return tiny(model={"head": "oriented", **model})


def test_training_on_oriented_labels_reports_oriented_ap_and_leaves_a_detector_that_answers_corners(
    store: ArtefactStore, tmp_path: Path
) -> None:
    train = with_corners(squares_split(store, 4))
    val = with_corners(squares_split(store, 2, split="val", seed=1))
    folder = tmp_path / "runs" / "oriented"
    outcome = train_detector(store, oriented(), folder, train, val, device="cpu")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss_oriented_box"] > 0
    report = read_json(folder / "val_report.json")["ap_oriented"]
    assert 0 <= report["0.5"] <= 1
    assert report["per_class"].keys() == {"1", "2"}

    model, configuration = load_trained_detector(outcome.best_weights)
    assert configuration.head == "oriented"
    merging = InferenceConfiguration(score_threshold=0.0, merge_iou=0.4)
    for _, found in predict_images([model], val.images, merging, device="cpu"):
        assert found.corners is not None
        for label in (1, 2):
            corners = torch.from_numpy(found.corners[found.labels == label])
            remaining = rotated_iou(corners, corners).fill_diagonal_(0)
            assert len(corners) > 0
            assert remaining.max() <= 0.4 + 1e-4


def test_labels_without_oriented_boxes_train_an_oriented_detector_and_are_evaluated_by_their_boxes(
    store: ArtefactStore, tmp_path: Path
) -> None:
    train, val = squares_split(store, 4), squares_split(store, 2, split="val", seed=1)
    folder = tmp_path / "runs" / "masks_only"
    train_detector(store, oriented(), folder, train, val, device="cpu")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss_oriented_box"] for row in rows] == [0.0, 0.0]
    report = read_json(folder / "val_report.json")
    assert report["ap_oriented"] is None
    assert report["best_val_mAP_proxy"] is not None


def test_oriented_boxes_choose_the_best_checkpoint_where_they_are_asked_to(store: ArtefactStore) -> None:
    by_oriented = tiny(model={"head": "oriented"}, evaluation={"selection": "oriented"})
    plain = squares_split(store, 2, split="val", seed=1)
    outlined = with_corners(plain)
    assert chosen_splits(by_oriented, plain, outlined) == (plain, outlined)
    with pytest.raises(ValueError, match=r"val: evaluation\.selection: expected an oriented box on every lesion"):
        chosen_splits(by_oriented, outlined, plain)
    with pytest.raises(ValueError, match=r"oriented boxes cannot choose a checkpoint of model\.head"):
        tiny(evaluation={"selection": "oriented"})
    identities = [
        training_identity(configuration, plain, plain, None)["configuration"]
        for configuration in (oriented(), by_oriented)
    ]
    assert identities[0] != identities[1]


def test_an_oriented_detector_starts_from_an_axis_aligned_checkpoint(store: ArtefactStore, tmp_path: Path) -> None:
    split = squares_split(store, 2)
    folder = tmp_path / "runs" / "upright"
    outcome = train_detector(store, tiny(training={"epochs": 1}), folder, split, split, device="cpu")
    torch.manual_seed(0)
    model = build_detector(oriented().model)
    report = load_detector_weights(model, outcome.best_weights)
    assert {name for name in report.missing if "oriented" in name} == {
        "roi_heads.oriented_predictor.weight",
        "roi_heads.oriented_predictor.bias",
    }
    assert len(report.missing) == 2
