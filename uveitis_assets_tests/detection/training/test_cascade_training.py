"""Cascades from end to end: trained, interrupted, frozen, started from other weights, and predicting."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from uveitis_assets.detection.checkpoints.loading import load_trained_detector
from uveitis_assets.detection.configuration import DetectorConfiguration
from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.inference.predict_images import predict_images
from uveitis_assets.detection.training.identity import training_identity
from uveitis_assets.detection.training.train_detector import train_detector
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.detection.squares import tiny
from uveitis_assets_tests.training.listeners import Recorder

LOSSES = {f"loss_{kind}_stage_{stage}" for kind in ("classifier", "box_reg") for stage in (2, 3)}


def cascade(stages: int = 3, **changes: object) -> DetectorConfiguration:
    model = {"head_stages": stages, "roi_similarity": "nwd", "box_score_threshold": 0.0}
    return tiny(model=model, inference={"score_threshold": 0.0}, **changes)


def test_a_resumed_training_ends_with_the_weights_of_an_uninterrupted_one_which_predict_the_same(
    store: ArtefactStore, train: LabelledSplit, val: LabelledSplit, tmp_path: Path
) -> None:
    options = {"checkpoint_every_steps": 1, "amp": "bf16"}
    configuration = cascade(training=options)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    outcome = train_detector(store, configuration, straight, train, val, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train_detector(store, configuration, stopped, train, val, device="cpu", progress=Recorder(stop_after=2))
    resumed = train_detector(store, configuration, stopped, train, val, device="cpu")
    weights, again = load_file(outcome.best_weights), load_file(resumed.best_weights)
    assert any(name.startswith("roi_heads.later_stages.1.") for name in weights)
    assert all(torch.equal(value, again[name]) for name, value in weights.items())

    rows = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    assert all(row[name] > 0 for row in rows for name in LOSSES)
    model, found = load_trained_detector(outcome.best_weights)
    other, _ = load_trained_detector(resumed.best_weights)
    assert found.head_stages == 3
    inference = configuration.inference
    for (_, one), (_, two) in zip(
        predict_images([model], val.images, inference, device="cpu"),
        predict_images([other], val.images, inference, device="cpu"),
        strict=True,
    ):
        assert len(one.boxes) > 0
        np.testing.assert_array_equal(one.boxes, two.boxes)
        np.testing.assert_array_equal(one.scores, two.scores)


def test_a_cascade_with_frozen_blocks_starts_from_a_detector_without_stages(
    store: ArtefactStore, train: LabelledSplit, val: LabelledSplit, trained: Path, tmp_path: Path
) -> None:
    file = trained / "checkpoints" / "best.safetensors"
    options = {
        "epochs": 1,
        "freeze_blocks": 4,
        "freeze_epochs": 1,
        "learning_rate": 1e-12,
        "min_learning_rate": 0.0,
        "ema_decay": 0.0,
        "weight_decay": 0.0,
    }
    configuration = cascade(training=options, initialise={"checkpoint": str(file)})
    listener = Recorder()
    outcome = train_detector(store, configuration, tmp_path / "run", train, val, device="cpu", progress=listener)
    (loaded,) = [message for message in listener.messages if "tensors matched" in message]
    assert "4 missing (roi_heads.later_stages.0.box_predictor.bbox_pred.bias" in loaded
    given, weights = load_file(file), load_file(outcome.best_weights)
    for name, value in given.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        weights["roi_heads.later_stages.1.box_head.fc6.weight"], given["roi_heads.box_head.fc6.weight"]
    )


def test_stages_decide_a_trainings_identity(train: LabelledSplit, val: LabelledSplit) -> None:
    def identity(**model: object) -> object:
        return training_identity(tiny(model=model), train, val, None)["configuration"]

    kinds = [
        identity(),
        identity(head_stages=2),
        identity(head_stages=3),
        identity(head_stages=3, later_stage_ious=[0.6, 0.7]),
        identity(head_stages=3, stage_loss_weights=[1, 1, 1]),
    ]
    assert len({str(kind) for kind in kinds}) == len(kinds)
    assert identity(head_stages=1, later_stage_ious=[], stage_loss_weights=[]) == kinds[0]
