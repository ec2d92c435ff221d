"""Trainings and predictions from before a setting existed are recognised as long as it has its default."""

from dataclasses import replace

import pytest

from uveitis_assets.detection.configuration import DetectorConfiguration, InferenceConfiguration
from uveitis_assets.detection.inference.prediction_file import prediction_fingerprint
from uveitis_assets.detection.training.identity import training_identity
from uveitis_assets_tests.detection.labelled_images import labelled_image, split_of

# Of the version before anchors were fitted, computed there.
BEFORE = {"configuration": "eda4fc500a52375e", "labels": "c24c64fb0790bd0d", "prediction": "25dfafe04e78777e"}


def identity(**changes: object) -> dict[str, object]:
    split = split_of([labelled_image("a", [[1], [2]])])
    return training_identity(DetectorConfiguration.model_validate(changes), split, split, None)


def test_defaults_have_the_identity_of_trainings_from_before() -> None:
    found = identity()
    assert found["configuration"] == BEFORE["configuration"]
    assert found["training labels"] == BEFORE["labels"]
    assert prediction_fingerprint("t", ["a"], InferenceConfiguration(), "1") == BEFORE["prediction"]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"fit_anchors": True}},
        {"model": {"rpn_similarity": "nwd"}},
        {"model": {"roi_similarity": "nwd"}},
        {"augmentation": {"origin_shift": 0.5}},
        {"augmentation": {"scale": 0.1}},
        {"augmentation": {"rotation": 10}},
        {"augmentation": {"copy_paste": 0.5}},
        {"inference": {"flips": ["none", "horizontal"]}},
    ],
)
def test_what_changes_the_weights_changes_the_identity(changes: dict[str, object]) -> None:
    assert identity(**changes) != identity()


def test_a_training_of_some_classes_is_another_than_before_their_masking() -> None:
    split = split_of([labelled_image("a", [[1], [2]])])
    some = replace(split, categories={1: "class 1", 2: "class 2"})
    assert training_identity(DetectorConfiguration(), some, some, None)["configuration"] != BEFORE["configuration"]


@pytest.mark.parametrize("changes", [{"channels_last": True}, {"compile": True}])
def test_what_changes_only_the_speed_does_not(changes: dict[str, object]) -> None:
    assert identity(training=changes) == identity()
