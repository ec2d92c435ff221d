"""A launch may change how a fold is trained, never which lane it is."""

from typing import Any

import pytest
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
