"""The component FundusDataset: a defs.yaml becomes a lane of assets, checks, jobs, sensors and a schedule."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import dagster as dg
from pydantic import BaseModel

from uveitis_assets.components.fundus.assets import lane_assets
from uveitis_assets.components.fundus.attributes import LaneAttributes
from uveitis_assets.components.fundus.automation import lane_jobs, lane_schedule, lane_sensors
from uveitis_assets.components.fundus.checks import lane_checks
from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.components.fundus.lane_conflicts import PlacedLane, check_lanes_compatible
from uveitis_assets.orchestration.lane_names import NamedLane, field_places

_COMPARED_FIELDS = ("name", "splits.folds", "splits.pinned")


@dataclass
class FundusDataset(dg.Component):
    """A landing folder of fundus images as a lane of partitioned assets, from manifest to COCO labels."""

    lane: LaneConfiguration
    places: Mapping[str, str] = field(default_factory=dict)

    @property
    def placed(self) -> PlacedLane:
        """The lane and where its defs.yaml says what other lanes may contradict."""
        return PlacedLane(self.lane, self.places)

    @property
    def named(self) -> NamedLane:
        """The lane's name among those of all kinds of lanes."""
        return NamedLane("fundus lane", self.lane.name, self.places.get("name", ""))

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """Schema of the attributes."""
        return LaneAttributes

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        """Take the validated attributes."""
        if not isinstance(attributes, LaneConfiguration):
            raise TypeError(f"{context.path}: expected the attributes of a FundusDataset, found {attributes!r}")
        return cls(attributes, field_places(context, *_COMPARED_FIELDS))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Assets, checks, jobs, sensors and schedule of the lane.

        Raises:
            LaneConflictError: the lanes of the project cannot be used together.
        """
        check_lanes_compatible(
            [component.placed for component in context.component_tree.get_all_components(FundusDataset)]
        )
        return dg.Definitions(
            assets=lane_assets(self.lane),
            asset_checks=lane_checks(self.lane),
            jobs=lane_jobs(self.lane),
            sensors=lane_sensors(self.lane),
            schedules=[lane_schedule(self.lane)],
        )
