"""Component LesionDetector: turns a defs.yaml into a lane of checkpoint, evaluation and predictions."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from uveitis_assets.components.detector.assets import detector_assets
from uveitis_assets.components.detector.automation import detector_jobs, predictions_sensor
from uveitis_assets.components.detector.checks import detector_checks
from uveitis_assets.components.detector.keys import DetectorKeys
from uveitis_assets.components.detector.upstream import Project
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration
from uveitis_assets.orchestration.lane_component import LaneComponent


class LesionDetector(LaneComponent[DetectorLaneConfiguration]):
    """A lesion detector that learns from one fundus lane and predicts the batches of one."""

    kind = "detector"
    model = DetectorLaneConfiguration

    @property
    def lane_name(self) -> str:
        return self.configuration.name

    def lane_definitions(self, context: dg.ComponentLoadContext, lanes: Sequence[LaneComponent[Any]]) -> dg.Definitions:
        """Assets, checks, jobs and sensor of the lane.

        Raises:
            ValueError: the lanes or the detector that it names do not fit; the message names the file.
        """
        detector, project = self.configuration, Project.of(lanes)
        try:
            keys = DetectorKeys.of(detector, project.lanes)
            upstream = [*project.first_weights(detector, keys), *project.learned_pseudo_labels(detector)]
        except ValueError as error:
            raise ValueError(f"{context.path / 'defs.yaml'}: {error}") from error
        return dg.Definitions(
            assets=detector_assets(detector, keys, upstream),
            asset_checks=detector_checks(detector, keys),
            jobs=detector_jobs(detector, keys),
            sensors=[predictions_sensor(detector, keys)],
        )
