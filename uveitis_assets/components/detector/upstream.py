"""The assets of other lanes that a detector's training begins with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from uveitis_assets.components.detector.keys import DetectorKeys
from uveitis_assets.components.encoder.keys import EncoderKeys
from uveitis_assets.components.fundus.keys import LaneKeys
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration
from uveitis_assets.orchestration.fold_keys import fold_key
from uveitis_assets.orchestration.lane_component import LaneComponent, lane_configurations


@dataclass(frozen=True)
class Project:
    """What a detector may refer to in its project, by name."""

    lanes: Mapping[str, LaneKeys]
    detectors: Mapping[str, DetectorLaneConfiguration]
    encoders: Mapping[str, EncoderKeys]

    @classmethod
    def of(cls, lanes: Sequence[LaneComponent[Any]]) -> "Project":
        """The lanes beside the component that is loaded."""
        return cls(
            LaneKeys.of_project(lanes),
            lane_configurations(lanes, DetectorLaneConfiguration),
            EncoderKeys.of_project(lanes),
        )

    def first_weights(self, detector: DetectorLaneConfiguration, keys: DetectorKeys) -> list[dg.AssetDep]:
        """The asset with the first weights: another detector's checkpoint or an encoder; at most one.

        Raises:
            ValueError: there is no such asset, or its folds are others than the detector's.
        """
        first = detector.initialise
        if first.encoder is not None:
            if first.encoder not in self.encoders:
                found, known = first.encoder, sorted(self.encoders)
                raise ValueError(f"initialise.encoder: found {found!r}, expected one of {known}")
            return [dg.AssetDep(self.encoders[first.encoder].encoder)]
        if first.experiment is None:
            return []
        if first.experiment not in self.detectors or first.experiment == detector.name:
            others = sorted(set(self.detectors) - {detector.name})
            raise ValueError(f"initialise.experiment: found {first.experiment!r}, expected one of {others}")
        parent = DetectorKeys.of(self.detectors[first.experiment], self.lanes)
        if parent.folds != keys.folds:
            raise ValueError(
                f"initialise.experiment: {parent.detector} has {parent.learned.n_folds} folds, expected the "
                f"{keys.learned.n_folds} of {keys.learned.lane}; set the same splits.folds"
            )
        return [dg.AssetDep(parent.checkpoint, partition_mapping=dg.IdentityPartitionMapping())]

    def learned_pseudo_labels(self, detector: DetectorLaneConfiguration) -> list[dg.AssetDep]:
        """The pseudo-labels that the detector learns beside the labels; none or one.

        Raises:
            ValueError: the named detector makes none for the lane that this one learns.
        """
        name = detector.learn_pseudo_labels_of
        if name is None:
            return []
        makers = {found.name: found for found in self.detectors.values() if found.pseudo_labels is not None}
        if name not in makers or makers[name].train_on != detector.train_on:
            fitting = sorted(maker.name for maker in makers.values() if maker.train_on == detector.train_on)
            raise ValueError(f"learn_pseudo_labels_of: found {name!r}, expected one of {fitting}")
        maker = DetectorKeys.of(makers[name], self.lanes)
        same = {fold_key(fold): fold_key(fold) for fold in makers[name].inference.folds}
        return [dg.AssetDep(maker.pseudo_labels, partition_mapping=dg.StaticPartitionMapping(same))]
