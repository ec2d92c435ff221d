"""What a training learns from, unfreezes, selects and refuses, each seen in the weights or files it leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from uveitis_assets.detection.checkpoints.loading import load_trained_detector
from uveitis_assets.detection.data import training_data
from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.data.tile_store import tile_pixels
from uveitis_assets.detection.model_configuration import IMAGENET_MEAN, IMAGENET_STD
from uveitis_assets.detection.models.detector import build_detector
from uveitis_assets.detection.models.freezing import n_frozen_blocks
from uveitis_assets.detection.training.detector_task import DetectorTask
from uveitis_assets.detection.training.identity import training_identity
from uveitis_assets.detection.training.train_detector import train_detector
from uveitis_assets.storage.files import read_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.detection.squares import SIDE, squares_split, tiny
from uveitis_assets_tests.detection.training.test_validation import SquareFinder
from uveitis_assets_tests.training.listeners import Recorder


def epoch_weights(folder: Path, epoch: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"epoch_{epoch:03d}.safetensors")


def test_blocks_are_frozen_first_and_really_train_once_they_are_unfrozen(store, train, val, tmp_path: Path) -> None:
    options = {
        "epochs": 3,
        "freeze_blocks": 4,
        "freeze_epochs": 1,
        "unfreeze_blocks_per_epoch": 3,
        "save_every_epochs": 1,
        "ema_decay": 0.0,
    }
    listener = Recorder()
    configuration = tiny(training=options, initialise={"frozen_random_weights": True})
    train_detector(store, configuration, tmp_path / "run", train, val, device="cpu", progress=listener)
    assert any("keeps random weights as they are" in message for message in listener.messages)
    assert [row["n_frozen_blocks"] for row in listener.rows] == [4, 1, 0]
    first, second, third = (epoch_weights(tmp_path / "run", epoch) for epoch in (1, 2, 3))
    blocks = sorted({name.split(".")[3] for name in first if name.startswith("backbone.body.blocks.")})
    assert len(blocks) >= 4

    def moved(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], part: str) -> bool:
        return any(not torch.equal(before[name], after[name]) for name in before if name.startswith(part))

    last, stem = "backbone.body.blocks.3.", "backbone.body.conv_stem."
    assert moved(first, second, last)
    assert not moved(first, second, stem)
    assert moved(second, third, stem)
    torch.manual_seed(42)
    initial = build_detector(tiny().model).state_dict()
    assert not moved(initial, first, last)
    assert moved(initial, first, "roi_heads.")


@pytest.mark.parametrize(
    ("per_epoch", "expected"), [(0, [20, 20, 0, 0, 0]), (4, [20, 20, 16, 12, 8]), (15, [20, 20, 5, 0, 0])]
)
def test_blocks_are_unfrozen_some_per_epoch_or_all_at_once(per_epoch: int, expected: list[int]) -> None:
    options = tiny(training={"freeze_blocks": 20, "freeze_epochs": 2, "unfreeze_blocks_per_epoch": per_epoch}).training
    assert [n_frozen_blocks(options, epoch) for epoch in range(5)] == expected


def test_overfitting_is_evaluated_on_the_very_images_it_learned(store, train, val) -> None:
    task = DetectorTask(store, tiny(overfit_images=3), train, val, torch.device("cpu"))
    learned = {task.item_name(tile) for epoch in range(2) for tiles in task.batches(epoch, 0) for tile in tiles}
    expected = [image.image_id for image in train.images[:3]]
    assert sorted(learned) == [f"{image_id}/tile_000" for image_id in expected]
    assert [image.image_id for image in task.val.images] == expected


def test_only_images_that_a_limited_training_shows_are_decoded(store, train, val) -> None:
    configuration = tiny(sampling={"max_images": 2})
    cpu = torch.device("cpu")
    shown = training_data.images_shown(configuration, train, val)
    batches = training_data.EpochBatches(configuration, train, cpu, tile_pixels(store, shown, limit_gb=1))
    drawn = set()
    for epoch in range(3):
        of_epoch = batches.of_epoch(epoch, skip=0)
        drawn |= {int(target["image_index"]) for _, targets in of_epoch for target in targets}
    evaluated = [image.image_id for image in val.images]
    assert [image.image_id for image in shown] == [*(train.images[at].image_id for at in sorted(drawn)), *evaluated]
    assert len(list(store.tile_cache_folder().glob("*.rgb"))) == 2 + len(evaluated)


class NearlyFinder(SquareFinder):
    """Finds the squares, but boxes 60 % as wide as they are."""

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        found = super().forward(images)
        for answer in found:
            boxes = answer["boxes"]
            boxes[:, 2] -= 0.4 * (boxes[:, 2] - boxes[:, 0])
        return found


@pytest.mark.parametrize(("iou", "expected"), [(0.5, 1.0), (0.7, 0.0)])
def test_the_metric_that_chooses_the_best_checkpoint_is_ap_at_the_selection_iou(
    store, train, val, iou: float, expected: float
) -> None:
    task = DetectorTask(store, tiny(evaluation={"selection_iou": iou}), train, val, torch.device("cpu"))
    metrics = task.evaluate(NearlyFinder())
    assert task.selection_metric is not None
    assert metrics[task.selection_metric] == pytest.approx(expected)
    assert metrics["map_50"] == pytest.approx(1.0)


def test_a_training_starts_from_another_ones_best_weights_which_its_lineage_names(
    store, train, val, trained: Path, tmp_path: Path
) -> None:
    frozen = {"learning_rate": 1e-12, "min_learning_rate": 0.0, "ema_decay": 0.0, "weight_decay": 0.0, "epochs": 1}
    configuration = tiny(initialise={"checkpoint": "runs/squares/checkpoints/best.safetensors"}, training=frozen)
    second = train_detector(store, configuration, tmp_path / "second", train, val, device="cpu")
    parent, child = load_file(trained / "checkpoints" / "best.safetensors"), load_file(second.best_weights)
    assert all(torch.allclose(parent[name], child[name], atol=1e-8) for name in parent)
    lineage = read_json(second.best_weights.with_suffix(".json"))
    assert lineage["parent"]["file"] == "best.safetensors"
    model, read = load_trained_detector(second.best_weights)
    # Numbers, whatever the defaults become.
    expected = {"input_mean": IMAGENET_MEAN, "input_std": IMAGENET_STD}
    assert read == configuration.model.model_copy(update=expected)
    assert all(torch.equal(model.state_dict()[name], child[name]) for name in child)


def test_images_without_lesions_alone_are_refused_for_validation(store, train, tmp_path: Path) -> None:
    empty = squares_split(store, 2, split="val", n_squares=0)
    with pytest.raises(ValueError, match="squares, fold 0, val: expected images with lesions, found none among 2"):
        train_detector(store, tiny(), tmp_path / "run", train, empty, device="cpu")


def test_a_training_whose_tiles_are_scaled_counts_as_another_than_before_they_were_scaled_as_in_training(
    train: LabelledSplit, val: LabelledSplit
) -> None:
    image = val.images[0]
    larger = dataclasses.replace(image, tiles=(dataclasses.replace(image.tiles[0], width=SIDE + 1),))
    scaled = dataclasses.replace(val, images=(larger, *val.images[1:]))
    # All else of the identity is of the configuration, and of labels by their fingerprint.
    one, other = (training_identity(tiny(), train, split, None) for split in (val, scaled))
    assert {key for key in one if one[key] != other[key]} == {"configuration"}


def test_labels_of_more_categories_than_the_network_has_are_refused_before_the_training(
    store: ArtefactStore, train: LabelledSplit, val: LabelledSplit, tmp_path: Path
) -> None:
    small = tiny(model={"n_categories": 1})
    with pytest.raises(ValueError, match=r"train: model\.n_categories: expected at least 2, .* found 1"):
        train_detector(store, small, tmp_path / "run", train, val, device="cpu")
    assert not (tmp_path / "run" / "run.json").exists()
