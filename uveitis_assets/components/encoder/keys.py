"""Name of an encoder's asset.

Other families of lanes import this name only, not the asset itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import dagster as dg

from uveitis_assets.detection.pretraining.configuration import EncoderPretrainingConfiguration
from uveitis_assets.orchestration.lane_component import LaneComponent, lane_configurations


@dataclass(frozen=True)
class EncoderKeys:
    """Key of one encoder."""

    name: str

    @classmethod
    def of_project(cls, lanes: Iterable[LaneComponent[Any]]) -> "dict[str, EncoderKeys]":
        """Keys of all encoders of the project, by name."""
        return {name: cls(name) for name in lane_configurations(lanes, EncoderPretrainingConfiguration)}

    @property
    def encoder(self) -> dg.AssetKey:
        return dg.AssetKey([self.name, "encoder"])
