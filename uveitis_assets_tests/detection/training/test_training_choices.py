"""What a training learns from, thaws, selects and refuses, each seen in the weights or files it leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from uveitis_assets.detection.checkpoints.loading import load_trained_detector
from uveitis_assets.detection.data import training_data
from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.data.tile_store import tile_pixels
from uveitis_assets.detection.evaluation.average_precision import AveragePrecision
from uveitis_assets.detection.models.freezing import n_frozen_blocks
from uveitis_assets.detection.training.identity import training_identity
from uveitis_assets.detection.training.train_detector import train_detector
from uveitis_assets.detection.training.train_detector import train_detector as training
from uveitis_assets.storage.files import read_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.gradient_accumulation import NonFiniteLossError
from uveitis_assets_tests.detection.squares import SIDE, squares_split, tiny
from uveitis_assets_tests.detection.training.test_train_detector import Recorder


def epoch_weights(folder: Path, epoch: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"epoch_{epoch:03d}.safetensors")


def test_blocks_are_frozen_first_and_really_train_once_they_are_thawed(store, train, val, tmp_path: Path) -> None:
    options = {
        "epochs": 3,
        "freeze_blocks": 4,
        "freeze_epochs": 1,
        "unfreeze_blocks_per_epoch": 3,
        "save_every_epochs": 1,
        "ema_decay": 0.0,
    }
    listener = Recorder()
    train_detector(store, tiny(training=options), tmp_path / "run", train, val, device="cpu", progress=listener)
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
    begun = training.build_detector(tiny().model).state_dict()
    assert not moved(begun, first, last)
    assert moved(begun, first, "roi_heads.")


@pytest.mark.parametrize(
    ("per_epoch", "expected"), [(0, [20, 20, 0, 0, 0]), (4, [20, 20, 16, 12, 8]), (15, [20, 20, 5, 0, 0])]
)
def test_blocks_thaw_some_per_epoch_or_all_at_once(per_epoch: int, expected: list[int]) -> None:
    options = tiny(training={"freeze_blocks": 20, "freeze_epochs": 2, "unfreeze_blocks_per_epoch": per_epoch}).training
    assert [n_frozen_blocks(options, epoch) for epoch in range(5)] == expected


def test_overfitting_is_judged_on_the_very_images_it_learned(store, train, val, monkeypatch, tmp_path: Path) -> None:
    learned, judged = set(), set()
    original, validate = training_data.TileDataset.__getitem__, training.validate

    def item(self: Any, index: Any) -> Any:
        found = original(self, index)
        learned.add(self.images[int(found[1]["image_index"])].image_id)
        return found

    def seen(model: Any, split: LabelledSplit, *rest: Any, **options: Any) -> Any:
        judged.update(image.image_id for image in split.images)
        return validate(model, split, *rest, **options)

    monkeypatch.setattr(training_data.TileDataset, "__getitem__", item)
    monkeypatch.setattr(training, "validate", seen)
    train_detector(store, tiny(overfit_images=3), tmp_path / "run", train, val, device="cpu")
    assert learned == judged == {image.image_id for image in train.images[:3]}


def test_only_images_that_a_limited_training_shows_are_decoded(store, train, val) -> None:
    configuration = tiny(sampling={"max_images": 2})
    cpu = torch.device("cpu")
    shown = training_data.images_shown(configuration, train, val)
    batches = training_data.EpochBatches(configuration, train, cpu, tile_pixels(store, shown, limit_gb=1))
    drawn = set()
    for epoch in range(3):
        with batches.of_epoch(epoch, skip=0) as of_epoch:
            drawn |= {int(target["image_index"]) for _, targets in of_epoch for target in targets}
    judged = [image.image_id for image in val.images]
    assert [image.image_id for image in shown] == [*(train.images[at].image_id for at in sorted(drawn)), *judged]
    assert len(list(store.tile_cache_folder().glob("*.rgb"))) == 2 + len(judged)


def test_the_best_checkpoint_is_the_one_with_the_highest_ap_at_the_selection_iou(
    store, train, val, monkeypatch, tmp_path: Path
) -> None:
    # The losses fall all the time; AP is best in the middle, and at another IoU elsewhere.
    precisions: Iterator[float] = iter([0.1, 0.4, 0.4, 0.2, 0.3])
    validate = training.validate

    def judged(*arguments: Any, **options: Any) -> Any:
        evaluation = validate(*arguments, **options)
        value = next(precisions)
        ap = evaluation.average_precision
        chosen = dataclasses.replace(ap, selection=AveragePrecision(dict.fromkeys(ap.selection.per_class, value)))
        return dataclasses.replace(evaluation, average_precision=chosen)

    monkeypatch.setattr(training, "validate", judged)
    options = {"epochs": 4, "save_every_epochs": 1}
    outcome = train_detector(store, tiny(training=options), tmp_path / "run", train, val, device="cpu")
    assert outcome.best_epoch == 2
    best = load_file(outcome.best_weights)
    assert all(torch.equal(best[name], value) for name, value in epoch_weights(tmp_path / "run", 2).items())
    assert read_json(tmp_path / "run" / "val_report.json")["best_epoch"] == 2


def test_a_training_without_progress_stops_after_its_patience(store, train, val, tmp_path: Path) -> None:
    listener = Recorder()
    # Rates this small change no detection: the first evaluation stays the best.
    options = {"epochs": 9, "patience": 2, "learning_rate": 1e-12, "min_learning_rate": 0.0, "ema_decay": 0.0}
    outcome = train_detector(
        store, tiny(training=options), tmp_path / "run", train, val, device="cpu", progress=listener
    )
    assert [row["epoch"] for row in listener.rows] == [1, 2, 3]
    assert outcome.stopped_early
    assert outcome.n_epochs == 3


def test_a_loss_that_is_not_finite_stops_the_training_and_names_step_and_tiles(
    store, train, val, monkeypatch, tmp_path: Path
) -> None:
    build = training.build_detector

    def poisoned(configuration: Any) -> torch.nn.Module:
        model = build(configuration)
        with torch.no_grad():
            model.roi_heads.box_predictor.cls_score.bias.fill_(torch.nan)
        return model

    monkeypatch.setattr(training, "build_detector", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, step 1: tiles squares::train\d+/tile_000.*learning_rate"):
        train_detector(store, tiny(), tmp_path / "run", train, val, device="cpu")


def test_no_step_follows_gradients_longer_than_the_limit(store, train, val, monkeypatch, tmp_path: Path) -> None:
    lengths: list[float] = []
    step = torch.optim.AdamW.step

    def measured(self: torch.optim.AdamW, *rest: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        lengths.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))
        return step(self, *rest)

    monkeypatch.setattr(torch.optim.AdamW, "step", measured)
    for limit in (1e6, 0.01):
        options = {"epochs": 1, "gradient_clip_norm": limit}
        train_detector(store, tiny(training=options), tmp_path / str(limit), train, val, device="cpu")
    unlimited, limited = lengths[:2], lengths[2:]
    assert min(unlimited) > 0.1
    assert limited == pytest.approx([0.01, 0.01], rel=1e-3)


def test_a_training_starts_from_another_ones_best_weights_and_says_so(store, train, val, tmp_path: Path) -> None:
    first = train_detector(store, tiny(), store.root / "first", train, val, device="cpu")
    frozen = {"learning_rate": 1e-12, "min_learning_rate": 0.0, "ema_decay": 0.0, "weight_decay": 0.0, "epochs": 1}
    configuration = tiny(initialise={"checkpoint": "first/checkpoints/best.safetensors"}, training=frozen)
    second = train_detector(store, configuration, tmp_path / "second", train, val, device="cpu")
    parent, child = load_file(first.best_weights), load_file(second.best_weights)
    assert all(torch.allclose(parent[name], child[name], atol=1e-8) for name in parent)
    lineage = read_json(second.best_weights.with_suffix(".json"))
    assert lineage["parent"]["file"] == "best.safetensors"
    model, read = load_trained_detector(second.best_weights)
    assert read == configuration.model
    assert all(torch.equal(model.state_dict()[name], child[name]) for name in child)


def test_images_without_lesions_alone_are_nothing_to_be_judged_on(store, train, tmp_path: Path) -> None:
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
