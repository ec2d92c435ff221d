"""The component LesionDetector: a defs.yaml becomes a lane of checkpoint, evaluation and predictions."""

from dataclasses import dataclass
from typing import Self

import dagster as dg
from pydantic import BaseModel

from uveitis_assets.components.detector.assets import detector_assets
from uveitis_assets.components.detector.automation import detector_jobs, predictions_sensor
from uveitis_assets.components.detector.checks import detector_checks
from uveitis_assets.components.detector.keys import DetectorKeys
from uveitis_assets.components.encoder_pretraining import EncoderPretraining, encoder_key
from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.components.fundus_dataset import FundusDataset
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration
from uveitis_assets.orchestration.fold_keys import fold_key
from uveitis_assets.orchestration.lane_names import NamedLane, check_names_unique, field_places


@dataclass
class LesionDetector(dg.Component):
    """A lesion detector that learns from one fundus lane and predicts the batches of one."""

    detector: DetectorLaneConfiguration
    place: str = ""

    @property
    def named(self) -> NamedLane:
        """The detector's name among those of all kinds of lanes, and where its defs.yaml says it."""
        return NamedLane("detector", self.detector.name, self.place)

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """Schema of the attributes."""
        return DetectorLaneConfiguration

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        """Take the validated attributes."""
        if not isinstance(attributes, DetectorLaneConfiguration):
            raise TypeError(f"{context.path}: expected the attributes of a LesionDetector, found {attributes!r}")
        return cls(attributes, field_places(context, "name").get("name", ""))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Assets, checks, jobs and sensor of the lane.

        Raises:
            LaneConflictError: lanes of any kind share a name; the message names both files.
            ValueError: the lanes or the detector that it names do not fit; the message names the file.
        """
        tree = context.component_tree
        placed = (
            tree.get_all_components(FundusDataset),
            tree.get_all_components(LesionDetector),
            tree.get_all_components(EncoderPretraining),
        )
        check_names_unique([found.named for kind in placed for found in kind])
        lanes = {found.lane.name: found.lane for found in placed[0]}
        detectors = {found.detector.name: found.detector for found in placed[1]}
        encoders = {found.encoder.name for found in placed[2]}
        try:
            keys = DetectorKeys.of(self.detector, lanes)
            upstream = [
                *_first_weights(self.detector, keys, detectors, lanes, encoders),
                *_learned_pseudo_labels(self.detector, detectors, lanes),
            ]
        except ValueError as error:
            raise ValueError(f"{context.path / 'defs.yaml'}: {error}") from error
        return dg.Definitions(
            assets=detector_assets(self.detector, keys, upstream),
            asset_checks=detector_checks(self.detector, keys),
            jobs=detector_jobs(self.detector, keys),
            sensors=[predictions_sensor(self.detector, keys)],
        )


def _first_weights(
    detector: DetectorLaneConfiguration,
    keys: DetectorKeys,
    detectors: dict[str, DetectorLaneConfiguration],
    lanes: dict[str, LaneConfiguration],
    encoders: set[str],
) -> list[dg.AssetDep]:
    """The asset whose weights start the training: another detector's checkpoint or an encoder; none or one."""
    first = detector.initialise
    if first.encoder is not None:
        if first.encoder not in encoders:
            raise ValueError(f"initialise.encoder: found {first.encoder!r}, expected one of {sorted(encoders)}")
        return [dg.AssetDep(encoder_key(first.encoder))]
    if first.experiment is None:
        return []
    if first.experiment not in detectors or first.experiment == detector.name:
        others = sorted(set(detectors) - {detector.name})
        raise ValueError(f"initialise.experiment: found {first.experiment!r}, expected one of {others}")
    parent = DetectorKeys.of(detectors[first.experiment], lanes)
    if parent.folds != keys.folds:
        raise ValueError(
            f"initialise.experiment: {parent.detector} has {len(parent.folds.get_partition_keys())} folds, expected "
            f"the {len(keys.folds.get_partition_keys())} of {keys.learned.lane}; set the same splits.folds"
        )
    return [dg.AssetDep(parent.checkpoint, partition_mapping=dg.IdentityPartitionMapping())]


def _learned_pseudo_labels(
    detector: DetectorLaneConfiguration,
    detectors: dict[str, DetectorLaneConfiguration],
    lanes: dict[str, LaneConfiguration],
) -> list[dg.AssetDep]:
    """The pseudo-labels that the detector learns beside the labels; none or one."""
    name = detector.learn_pseudo_labels_of
    if name is None:
        return []
    makers = {found.name: found for found in detectors.values() if found.pseudo_labels is not None}
    if name not in makers or makers[name].train_on != detector.train_on:
        fitting = sorted(maker.name for maker in makers.values() if maker.train_on == detector.train_on)
        raise ValueError(f"learn_pseudo_labels_of: found {name!r}, expected one of {fitting}")
    maker = DetectorKeys.of(makers[name], lanes)
    same = {fold_key(fold): fold_key(fold) for fold in makers[name].inference.folds}
    return [dg.AssetDep(maker.pseudo_labels, partition_mapping=dg.StaticPartitionMapping(same))]
