"""The component FundusDataset: a defs.yaml becomes a lane of assets, checks, jobs, sensors and a schedule."""

from dataclasses import dataclass
from typing import Self

import dagster as dg
from pydantic import BaseModel

from uveitis_assets.components.lane_assets import lane_assets
from uveitis_assets.components.lane_attributes import LaneAttributes
from uveitis_assets.components.lane_automation import lane_jobs, lane_schedule, lane_sensors
from uveitis_assets.components.lane_checks import lane_checks
from uveitis_assets.fundus.configuration import LaneConfiguration


@dataclass
class FundusDataset(dg.Component):
    """A landing folder of fundus images as a lane of partitioned assets, from manifest to COCO labels."""

    lane: LaneConfiguration

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """Schema of the attributes."""
        return LaneAttributes

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        """Take the validated attributes."""
        if not isinstance(attributes, LaneConfiguration):
            raise TypeError(f"{context.path}: expected the attributes of a FundusDataset, found {attributes!r}")
        return cls(attributes)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Assets, checks, jobs, sensors and schedule of the lane."""
        return dg.Definitions(
            assets=lane_assets(self.lane),
            asset_checks=lane_checks(self.lane),
            jobs=lane_jobs(self.lane),
            sensors=lane_sensors(self.lane),
            schedules=[lane_schedule(self.lane)],
        )
