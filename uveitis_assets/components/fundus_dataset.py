"""Component FundusDataset: turns a defs.yaml into a lane of assets, checks, jobs and automation."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from uveitis_assets.components.fundus.assets import lane_assets
from uveitis_assets.components.fundus.attributes import LaneAttributes
from uveitis_assets.components.fundus.automation import lane_jobs, lane_schedule, lane_sensors
from uveitis_assets.components.fundus.checks import lane_checks
from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.components.fundus.lane_conflicts import PlacedLane, check_lanes_compatible
from uveitis_assets.orchestration.lane_component import LaneComponent


class FundusDataset(LaneComponent[LaneConfiguration]):
    """A landing folder of fundus images as a lane of partitioned assets, from manifest to COCO labels."""

    kind = "fundus lane"
    model = LaneAttributes
    placed_fields = ("name", "splits.folds", "splits.pinned")

    @property
    def lane_name(self) -> str:
        return self.configuration.name

    @property
    def placed(self) -> PlacedLane:
        """The lane and where its defs.yaml sets what other lanes may contradict."""
        return PlacedLane(self.configuration, self.places)

    def lane_definitions(self, context: dg.ComponentLoadContext, lanes: Sequence[LaneComponent[Any]]) -> dg.Definitions:
        """Assets, checks, jobs, sensors and schedule of the lane.

        Raises:
            LaneConflictError: the lanes of the project cannot be used together.
        """
        check_lanes_compatible([lane.placed for lane in lanes if isinstance(lane, FundusDataset)])
        lane = self.configuration
        return dg.Definitions(
            assets=lane_assets(lane),
            asset_checks=lane_checks(lane),
            jobs=lane_jobs(lane),
            sensors=lane_sensors(lane),
            schedules=[lane_schedule(lane)],
        )
