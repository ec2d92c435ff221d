"""Base class of all components that become lanes, and the lookup of a project's other lanes."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Self, TypeVar

import dagster as dg
from pydantic import BaseModel

from uveitis_assets.configuration import Configuration
from uveitis_assets.orchestration.lane_names import NamedLane, check_names_unique, field_places

ConfigurationT = TypeVar("ConfigurationT", bound=Configuration)


@dataclass
class LaneComponent(dg.Component, Generic[ConfigurationT]):
    """A lane of one family.

    A family sets the class variables, and implements ``lane_name`` and ``lane_definitions``.

    Attributes:
        configuration: the validated attributes of the defs.yaml.
        places: ``file:line`` of each of ``placed_fields``.
        kind: what messages call such a lane, e.g. ``detector``.
        model: schema of the attributes.
        placed_fields: fields of the attributes that messages about several lanes refer to.
    """

    configuration: ConfigurationT
    places: Mapping[str, str] = field(default_factory=dict)
    kind: ClassVar[str]
    model: ClassVar[type[Configuration]] = Configuration
    placed_fields: ClassVar[tuple[str, ...]] = ("name",)

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """Schema of the attributes."""
        return cls.model

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        """Take the validated attributes and where they stand in the defs.yaml.

        Raises:
            TypeError: the attributes are of another model.
        """
        if not isinstance(attributes, cls.model):
            raise TypeError(f"{context.path}: expected the attributes of {cls.__name__}, found {attributes!r}")
        return cls(attributes, field_places(context, *cls.placed_fields))  # type: ignore[arg-type]

    @property
    @abstractmethod
    def lane_name(self) -> str | None:
        """Prefix of the lane's asset keys and its group; None for an asset that all lanes share."""

    @property
    def named(self) -> NamedLane | None:
        """The lane's name among those of all families, and where its defs.yaml sets it."""
        if self.lane_name is None:
            return None
        return NamedLane(self.kind, self.lane_name, self.places.get("name", ""))

    @abstractmethod
    def lane_definitions(
        self, context: dg.ComponentLoadContext, lanes: "Sequence[LaneComponent[Any]]"
    ) -> dg.Definitions:
        """Assets, checks, jobs, sensors and schedules of the lane, beside all lanes of the project."""

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The lane's definitions, once no two lanes of the project share a name.

        Raises:
            LaneConflictError: lanes of any family share a name; the message names both files.
        """
        lanes: list[LaneComponent[Any]] = context.component_tree.get_all_components(
            LaneComponent  # type: ignore[type-abstract]
        )
        check_lane_names(lanes)
        return self.lane_definitions(context, lanes)


def check_lane_names(lanes: Iterable[LaneComponent[Any]]) -> None:
    """Refuse lanes that share a name.

    Raises:
        LaneConflictError: the message names both files.
    """
    check_names_unique([lane.named for lane in lanes if lane.named is not None])


def lane_configurations(lanes: Iterable[LaneComponent[Any]], family: type[ConfigurationT]) -> dict[str, ConfigurationT]:
    """Configurations of those lanes that are of one family, by lane name.

    A family's ``keys.py`` makes keys of them, so that other families refer to its assets without importing more.
    """
    return {
        lane.lane_name: lane.configuration
        for lane in lanes
        if lane.lane_name is not None and isinstance(lane.configuration, family)
    }
