"""Names of lanes and where their defs.yaml sets them; no two lanes share one."""

from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg


def field_places(context: dg.ComponentLoadContext, *names: str) -> dict[str, str]:
    """``file:line`` of each field of a defs.yaml.

    A field that has its default gets the place of the nearest field around it.
    """
    positions = context.resolution_context.source_position_tree
    if positions is None:
        return {}
    return {name: str(positions.lookup_closest_and_path(["attributes", *name.split(".")], None)[0]) for name in names}


class LaneConflictError(ValueError):
    """Lanes that cannot be used together; the message names them, their files and what to change."""


@dataclass(frozen=True, slots=True)
class NamedLane:
    """A lane of any family, such as ``detector``, and where its name stands, as ``file:line``."""

    kind: str
    name: str
    place: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} at {self.place}"


def check_names_unique(lanes: Sequence[NamedLane]) -> None:
    """Compare the names of all lanes of a project, whatever their family.

    Raises:
        LaneConflictError: two have one name, and with it one prefix of asset keys and one group.
    """
    first: dict[str, NamedLane] = {}
    conflicts = [
        f"{lane}: expected a name of its own, found that of {first[lane.name]}; rename one of them"
        for lane in lanes
        if first.setdefault(lane.name, lane) is not lane
    ]
    if conflicts:
        raise LaneConflictError("\n".join(conflicts))
