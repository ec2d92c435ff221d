"""A detector lane: which fundus lane it learns from, which it predicts, and what runs by itself.

These are the attributes of a defs.yaml of the component LesionDetector. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from uveitis_assets.configuration import Configuration, Owner, Ratio
from uveitis_assets.detection.configuration import DetectorConfiguration, PseudoLabelConfiguration

_OF_ONE_TRAINING = frozenset({"model", "initialise", "augmentation", "sampling", "training", "evaluation", "inference"})


class DetectorVerificationConfiguration(Configuration):
    """Limits of the asset checks."""

    min_map_50: Ratio = Field(0.0, description="AP at IoU 0.5 below which the evaluation's check fails")
    max_images_without_detections: Ratio = Field(
        0.95, description="Share of a batch's images without any detection from which the check warns"
    )


class DetectorAutomationConfiguration(Configuration):
    """What runs by itself while a daemon is up."""

    predictions_sensor: Literal["running", "stopped"] = Field(
        "running", description="State the sensor starts in that predicts batches whose tiles are new"
    )
    predictions_interval_s: int = Field(30, ge=1, le=86400, description="Seconds between looks at the tiles")
    max_batches_per_run: int = Field(16, ge=1, le=500, description="Longest partition range of one automatic run")


class DetectorLaneConfiguration(DetectorConfiguration):
    """A lesion detector: the attributes of a defs.yaml."""

    name: str = Field(pattern=r"^[a-z0-9]+(_[a-z0-9]+)*$", max_length=64, description="Lane name: key prefix, folders")
    description: str = Field("", description="One sentence about the detector, shown in the UI")
    owners: tuple[Owner, ...] = Field(("team:imaging",), description="E-mail addresses or team:<name>")
    train_on: str = Field(description="Fundus lane whose COCO labels are learned; its folds are the detector's")
    predict_on: str = Field(description="Fundus lane whose batches are predicted")
    classes: tuple[str, ...] = Field(
        (), description="Categories or policies (main9, vascularite) that are learned; empty: all of the labels"
    )
    pseudo_labels: PseudoLabelConfiguration | None = Field(
        None, description="Make pseudo-labels of confident predictions; needs one fold in inference.folds"
    )
    learn_pseudo_labels_of: str | None = Field(
        None, description="Detector lane whose pseudo-labels are learned beside the labels; same train_on"
    )
    verify: DetectorVerificationConfiguration = DetectorVerificationConfiguration()
    automation: DetectorAutomationConfiguration = DetectorAutomationConfiguration()

    @model_validator(mode="after")
    def _classes_are_known(self) -> Self:
        from uveitis_assets.labels.class_map import load_class_map

        load_class_map().select(self.classes)
        return self

    @model_validator(mode="after")
    def _pseudo_labels_come_of_one_fold(self) -> Self:
        if self.pseudo_labels is None:
            return self
        if len(self.inference.folds) != 1:
            raise ValueError(
                f"pseudo_labels: expected one fold in inference.folds, found {list(self.inference.folds)}: a fold's "
                "pseudo-labels must not come of detectors that learned its validation images"
            )
        if self.predict_on != self.train_on:
            raise ValueError(
                f"pseudo_labels: expected predict_on to be the lane that is learned, {self.train_on}, found "
                f"{self.predict_on}"
            )
        return self

    def overridden(self, changes: Mapping[str, Any]) -> Self:
        """This configuration with nested values replaced for one training, validated again.

        Fields that identify the lane or are read by its other assets too cannot be replaced: the training would write
        into another lane's folder, start from weights that the asset graph does not show, or be evaluated as another.

        Args:
            changes: nested like the defs.yaml, e.g. ``{"training": {"epochs": 2}}``.

        Raises:
            ValueError: a field that belongs to the lane, not to one training.
            pydantic.ValidationError: an unknown field or a value outside its range.
        """
        changed = type(self).model_validate(_merged(self.model_dump(), changes))
        for name in sorted(changes):
            if name not in _OF_ONE_TRAINING and getattr(changed, name) != getattr(self, name):
                raise ValueError(
                    f"overrides: {name}: expected one of {', '.join(sorted(_OF_ONE_TRAINING))}, found a change of "
                    "the lane itself; write it into a defs.yaml"
                )
        for source in ("experiment", "encoder"):
            wanted = getattr(changed.initialise, source)
            if wanted not in (None, getattr(self.initialise, source)):
                raise ValueError(
                    f"overrides: initialise.{source}: found {wanted!r}, expected that of the defs.yaml, "
                    f"{getattr(self.initialise, source)!r}, or null: the asset graph would not show where the weights "
                    "come from"
                )
        return changed


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for name, value in changes.items():
        known = result.get(name)
        result[name] = _merged(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return result
