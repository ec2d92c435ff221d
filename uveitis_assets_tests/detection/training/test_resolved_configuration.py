"""Limits follow the labels, input statistics the backbone and first weights, and nothing frozen is random."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from uveitis_assets.detection.checkpoints.loading import load_trained_detector
from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.evaluation.detection_limits import answers_that_lack_room, samples_that_lack_room
from uveitis_assets.detection.inference.detections import GroundTruth
from uveitis_assets.detection.model_configuration import IMAGENET_MEAN, ModelConfiguration
from uveitis_assets.detection.models.detector import build_detector
from uveitis_assets.detection.training.identity import training_identity
from uveitis_assets.detection.training.resolved_configuration import resolved_configuration
from uveitis_assets.detection.training.train_detector import train_detector
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.weights_files import read_weights_file, save_weights
from uveitis_assets_tests.detection.squares import tiny

HALF = {"model": {"timm_model": "test_resnet"}}


def crowded(split: LabelledSplit, n_lesions: int) -> LabelledSplit:
    """The split with one image and its tile full of lesions of one class."""
    image = split.images[0]
    truth = GroundTruth(
        np.tile(np.array([[1, 1, 3, 3]], np.float32), (n_lesions, 1)),
        np.ones(n_lesions, np.int64),
        np.full((n_lesions, 4, 2), np.nan, np.float32),
        np.ones(n_lesions, np.float32),
    )
    tiles = (dataclasses.replace(image.tiles[0], truth=truth),)
    return dataclasses.replace(split, images=(dataclasses.replace(image, truth=truth, tiles=tiles), *split.images[1:]))


def follow(**changes: Any) -> Any:
    return tiny(model={"detections_per_tile": None, **changes})


@pytest.mark.parametrize(("n_lesions", "expected"), [(3, 400), (200, 400), (405, 810)])
def test_limits_follow_dense_labels_and_stay_400_for_others(
    store: ArtefactStore, train: LabelledSplit, val: LabelledSplit, n_lesions: int, expected: int
) -> None:
    resolved = resolved_configuration(follow(), store, train, crowded(val, n_lesions))
    assert resolved.model.detections_per_tile == expected
    assert resolved.evaluation.max_detections == expected
    assert build_detector(resolved.model).roi_heads.detections_per_img == expected


def test_fixed_limits_stay_and_those_that_bite_are_named(
    store: ArtefactStore, train: LabelledSplit, val: LabelledSplit
) -> None:
    dense = crowded(train, 405)
    resolved = resolved_configuration(tiny(evaluation={"max_detections": 100}), store, dense, val)
    assert resolved.model.detections_per_tile == 20
    assert resolved.evaluation.max_detections == 100
    assert answers_that_lack_room(resolved.model, dense.images) == [
        "a tile has 405 lesions, of which 20 can be found: raise model.detections_per_tile",
        "a tile has 405 lesions, of which 30 can be proposed: raise model.rpn_post_nms_test",
    ]
    assert len(samples_that_lack_room(resolved.model, dense.images)) == 2
    enough = resolved.model.model_copy(update={"rpn_anchors_per_tile": 1000, "roi_regions_per_tile": 2000})
    assert samples_that_lack_room(enough, dense.images) == []
    assert answers_that_lack_room(resolved.model, val.images) == []


def test_sampled_anchors_and_regions_reach_the_network() -> None:
    changes = {"rpn_anchors_per_tile": 64, "rpn_positive_share": 0.4, "roi_regions_per_tile": 32}
    for head in ("axis_aligned", "oriented"):
        model = build_detector(tiny(model={**changes, "roi_positive_share": 0.6, "head": head}).model)
        anchors, regions = model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler
        assert (anchors.batch_size_per_image, anchors.positive_fraction) == (64, 0.4)
        assert (regions.batch_size_per_image, regions.positive_fraction) == (32, 0.6)


def test_input_statistics_are_those_of_the_backbones_own_configuration(
    store: ArtefactStore, train: LabelledSplit, val: LabelledSplit
) -> None:
    import timm

    own = timm.get_pretrained_cfg("test_resnet")
    model = resolved_configuration(tiny(**HALF), store, train, val).model
    assert model.input_mean == tuple(own.mean) != IMAGENET_MEAN
    assert build_detector(model).transform.image_mean == list(own.mean)
    assert build_detector(tiny(**HALF).model).transform.image_mean == list(own.mean), "also before it is resolved"
    for backbone in ("resnet50_fpn", "retfound_vit_b16"):
        given = tiny(model={"backbone": backbone, "anchor_sizes": []})
        assert resolved_configuration(given, store, train, val).model.input_mean == IMAGENET_MEAN
    named = tiny(model={"timm_model": "test_resnet", "input_mean": [0.1, 0.2, 0.3], "input_std": [1, 1, 1]})
    assert resolved_configuration(named, store, train, val).model.input_mean == (0.1, 0.2, 0.3)


def test_files_that_name_no_statistics_keep_imagenets_and_hand_them_to_what_starts_from_them(
    store: ArtefactStore, train: LabelledSplit, val: LabelledSplit
) -> None:
    configuration = tiny(**HALF)
    path = store.root / "models" / "before.safetensors"
    stored = configuration.model_dump(mode="json")
    del stored["model"]["input_mean"], stored["model"]["input_std"]
    save_weights(path, build_detector(configuration.model).state_dict(), {"configuration": stored})
    model, read = load_trained_detector(path)
    assert read.input_mean == IMAGENET_MEAN
    assert model.transform.image_mean == list(IMAGENET_MEAN)
    child = tiny(**HALF, initialise={"checkpoint": "models/before.safetensors"})
    assert resolved_configuration(child, store, train, val).model.input_mean == IMAGENET_MEAN


def test_added_settings_leave_finished_trainings_recognised_unless_the_result_differs(
    store: ArtefactStore, train: LabelledSplit, val: LabelledSplit
) -> None:
    def identity(**changes: Any) -> str:
        resolved = resolved_configuration(tiny(**changes), store, train, val)
        return str(training_identity(resolved, train, val, None)["configuration"])

    # Written by the version before these settings, for the same split.
    assert identity() == "0e304d6d7d53e06e"
    assert identity(evaluation={"max_detections": 400, "bootstrap_samples": 0}) == identity()
    others = [
        {"model": {"rpn_anchors_per_tile": 64}},
        {"model": {"roi_positive_share": 0.5}},
        {"inference": {"merge": "edge_aware"}},
        HALF,
    ]
    assert len({identity(), *(identity(**change) for change in others)}) == 5


def test_frozen_random_weights_are_refused_by_name(
    store: ArtefactStore, train: LabelledSplit, val: LabelledSplit, tmp_path: Path
) -> None:
    frozen = {"freeze_blocks": 2, "freeze_epochs": 1}
    with pytest.raises(ValueError, match=r"training\.freeze_blocks: expected 0 where .* found 2 for timm_fpn"):
        train_detector(store, tiny(training=frozen), tmp_path / "run", train, val, device="cpu")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_weights_of_some_classes_answer_with_these_alone(
    store: ArtefactStore, trained: Path, train: LabelledSplit
) -> None:
    best = trained / "checkpoints" / "best.safetensors"
    file = read_weights_file(best)
    save_weights(best, file.tensors, {**file.details, "categories": {"2": "green"}})
    model, configuration = load_trained_detector(best, changes={"box_score_threshold": 0.0})
    assert isinstance(configuration, ModelConfiguration)
    with torch.no_grad():
        (found,) = model([torch.rand(3, 64, 64)])
    assert set(found["labels"].tolist()) == {2}
