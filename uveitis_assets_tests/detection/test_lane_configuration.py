"""A launch may change how a fold is trained, never which lane it is."""

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration

LANE = DetectorLaneConfiguration.model_validate(
    {"name": "child", "train_on": "uwf700", "predict_on": "uwf700", "initialise": {"experiment": "parent"}}
)


def test_nested_values_are_replaced_and_the_others_stay() -> None:
    changed = LANE.overridden({"training": {"epochs": 2}, "sampling": {"empty_share": 0.5}})
    assert (changed.training.epochs, changed.sampling.empty_share) == (2, 0.5)
    assert changed.training.learning_rate == LANE.training.learning_rate
    assert LANE.training.epochs == 40
    assert LANE.overridden({}) == LANE


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "parent"},
        {"train_on": "fgadr"},
        {"predict_on": "fgadr"},
        {"classes": ["main9"]},
        {"overfit_images": 3},
        {"learn_pseudo_labels_of": "parent"},
        {"verify": {"min_map_50": 0.5}},
    ],
)
def test_what_makes_the_lane_cannot_be_overridden(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"overrides: {next(iter(changes))}: expected one of augmentation, "):
        LANE.overridden(changes)


def test_weights_come_from_the_lane_that_the_graph_shows_or_from_a_file() -> None:
    with pytest.raises(
        ValueError, match=r"initialise.experiment: found '../x', expected that of the defs.yaml, 'parent"
    ):
        LANE.overridden({"initialise": {"experiment": "../x"}})
    with pytest.raises(ValueError, match=r"initialise.encoder: found 'mae', expected that of the defs.yaml, None"):
        LANE.overridden({"initialise": {"experiment": None, "encoder": "mae"}})
    changed = LANE.overridden({"initialise": {"experiment": None, "checkpoint": "old.pth"}})
    assert changed.initialise.checkpoint == "old.pth"


@pytest.mark.parametrize(
    "changes", [{"training": 3}, {"training": {"epochs": "many"}}, {"trainig": {}}, {"model": None}]
)
def test_values_of_a_wrong_type_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LANE.overridden(changes)


@pytest.mark.parametrize(
    "values",
    [
        {"overfit_images": True},
        {"overfit_images": "10"},
        {"training": {"learning_rate": "0.1"}},
        {"training": {"learning_rate": True}},
        {"training": {"tensorboard": "yes"}},
        {"training": {"epochs": "2e1"}},
        {"model": {"anchor_ratios": [0.5, True]}},
        {"inference": {"folds": ["0"]}},
    ],
)
def test_nothing_is_turned_into_a_number_or_a_yes(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="should be a valid"):
        DetectorLaneConfiguration.model_validate({"name": "one", "train_on": "a", "predict_on": "a", **values})


def test_whole_numbers_are_numbers_and_lists_are_read_from_yaml() -> None:
    text = """
name: one
train_on: uwf700
predict_on: uwf700
classes: [main9]
model: {anchor_sizes: [[8, 16.5], [32, 64]], anchor_ratios: [1, 5e-1]}
training: {learning_rate: 2e-5, min_learning_rate: 0, weight_decay: 1E-4}
inference: {folds: [0, 1]}
"""
    lane = DetectorLaneConfiguration.model_validate(yaml.safe_load(text))
    assert lane.classes == ("main9",)
    assert lane.model.anchor_sizes == ((8.0, 16.5), (32.0, 64.0))
    assert lane.model.anchor_ratios == (1.0, 0.5)
    # PyYAML takes a number without a point for text.
    assert (lane.training.learning_rate, lane.training.min_learning_rate) == (0.00002, 0.0)
    assert lane.training.weight_decay == 0.0001
    assert lane.inference.folds == (0, 1)
    assert DetectorLaneConfiguration.model_validate_json(lane.model_dump_json()) == lane
