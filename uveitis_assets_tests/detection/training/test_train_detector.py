"""Training from labelled squares: the files it leaves, and what makes it the same training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.training.identity import training_identity
from uveitis_assets.detection.training.resolved_configuration import resolved_configuration
from uveitis_assets.detection.training.train_detector import train_detector
from uveitis_assets.storage.files import read_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.weights_files import read_lineage
from uveitis_assets_tests.detection.squares import squares_split, tiny


def test_a_training_leaves_the_earlier_scripts_files_and_keys(
    store: ArtefactStore, train: LabelledSplit, val: LabelledSplit, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "squares"
    configuration = tiny(training={"save_every_epochs": 2})
    outcome = train_detector(store, configuration, folder, train, val, device="cpu")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"epoch", "train_loss", "val_mAP_proxy", "elapsed_sec", "lr", "map_50", "map_30"} <= rows[0].keys()
    assert rows[0]["val_mAP_proxy"] == rows[0]["map_selection"]
    resolved = resolved_configuration(configuration, store, train, val)
    assert resolved.model.input_mean == (0.485, 0.456, 0.406)
    assert yaml.safe_load((folder / "config.yaml").read_text()) == resolved.model_dump(mode="json")
    report = read_json(folder / "val_report.json")
    assert {"best_epoch", "best_val_mAP_proxy", "val_metrics"} <= report.keys()
    assert report["best_epoch"] == outcome.best_epoch
    state = torch.load(folder / "checkpoints" / "last.pth", weights_only=True)
    assert {"epoch", "model", "config", "metrics", "optimizer"} <= state.keys()
    saved = load_file(folder / "checkpoints" / "epoch_002.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in state["average"].items())
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "best.json",
        "best.safetensors",
        "epoch_002.json",
        "epoch_002.safetensors",
        "last.pth",
    ]
    assert outcome.best_weights == folder / "checkpoints" / "best.safetensors"
    lineage = read_lineage(outcome.best_weights)
    tiles = {"frame": "global", "global_tile": False, "tile_px": 64, "input_px": 64, "global_size": 64}
    assert (lineage["tiles"], lineage["mixed_precision"]) == (tiles, False)
    assert not outcome.was_finished
    again = train_detector(store, configuration, folder, train, val, device="cpu")
    assert again == dataclasses.replace(outcome, was_finished=True)


@pytest.mark.parametrize(
    ("changes", "different"),
    [
        ({"training": {"checkpoint_every_steps": 7}, "inference": {"overlays": False}}, set()),
        ({"training": {"loader_workers": 1, "tile_cache_gb": 0.0}}, set()),
        ({"training": {"learning_rate": 1e-3}}, {"configuration"}),
        ({"training": {"seed": 1}}, {"configuration"}),
    ],
)
def test_settings_that_decide_the_weights_are_part_of_the_identity_and_those_that_show_or_save_are_not(
    train: LabelledSplit, val: LabelledSplit, changes: dict[str, Any], different: set[str]
) -> None:
    one, other = (training_identity(settings, train, val, None) for settings in (tiny(), tiny(**changes)))
    assert {name for name in one if one[name] != other[name]} == different


def test_other_labels_and_other_first_weights_are_another_training(
    store: ArtefactStore, train: LabelledSplit, val: LabelledSplit
) -> None:
    plain = training_identity(tiny(), train, val, None)
    others = squares_split(store, 4, split="others", seed=5)
    labels = training_identity(tiny(), others, val, None)
    parent = training_identity(tiny(), train, val, {"file": "best.safetensors", "digest": "0" * 32})
    assert {name for name in plain if plain[name] != labels[name]} == {"training labels"}
    assert {name for name in plain if plain[name] != parent[name]} == {"configuration", "initial weights"}


def test_a_label_that_the_network_refuses_is_named_with_its_image_and_label_file(
    store: ArtefactStore, train: LabelledSplit, val: LabelledSplit, tmp_path: Path
) -> None:
    image = train.images[0]
    flat = []
    for tile in image.tiles:
        boxes = tile.truth.boxes.copy()
        boxes[:, 3] = boxes[:, 1]
        flat.append(dataclasses.replace(tile, truth=dataclasses.replace(tile.truth, boxes=boxes)))
    images = (dataclasses.replace(image, tiles=tuple(flat)), *train.images[1:])
    broken = dataclasses.replace(train, images=images)
    file = store.coco_file(train.lane, train.split, train.fold, tiles=True)
    with pytest.raises(ValueError, match=rf"{image.image_id}/{image.tiles[0].tile_id}.*positive height") as caught:
        train_detector(store, tiny(), tmp_path / "runs" / "flat", broken, val, device="cpu")
    assert str(file) in str(caught.value)
