"""The component FundusDataset: a defs.yaml becomes a lane of assets, checks, jobs, sensors and a schedule."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import dagster as dg
from pydantic import BaseModel

from uveitis_assets.components.lane_assets import lane_assets
from uveitis_assets.components.lane_attributes import LaneAttributes
from uveitis_assets.components.lane_automation import lane_jobs, lane_schedule, lane_sensors
from uveitis_assets.components.lane_checks import lane_checks
from uveitis_assets.fundus.configuration import LaneConfiguration
from uveitis_assets.fundus.lane_conflicts import NamedLane, PlacedLane, refuse_conflicts

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
        refuse_conflicts([component.placed for component in context.component_tree.get_all_components(FundusDataset)])
        return dg.Definitions(
            assets=lane_assets(self.lane),
            asset_checks=lane_checks(self.lane),
            jobs=lane_jobs(self.lane),
            sensors=lane_sensors(self.lane),
            schedules=[lane_schedule(self.lane)],
        )


def field_places(context: dg.ComponentLoadContext, *names: str) -> dict[str, str]:
    """``file:line`` of each field of a defs.yaml, or of the nearest one around it where it has its default."""
    positions = context.resolution_context.source_position_tree
    if positions is None:
        return {}
    return {name: str(positions.lookup_closest_and_path(["attributes", *name.split(".")], None)[0]) for name in names}
