"""What fundus lanes must not have in common because they would write the same files.

Compared when definitions are loaded, once each lane is valid by itself and no two lanes share a name
(orchestration/lane_names.py). Reads no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import PurePosixPath

from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.orchestration.lane_names import LaneConflictError


@dataclass(frozen=True, slots=True)
class PlacedLane:
    """A lane and where its fields stand, as ``file:line``; without places, messages name the lane alone.

    ``places`` has the keys ``name``, ``splits.folds`` and ``splits.pinned``.
    """

    lane: LaneConfiguration
    places: Mapping[str, str] = field(default_factory=dict)

    def at(self, field_name: str) -> str:
        """The field for messages."""
        place = self.places.get(field_name)
        return f"`{field_name}` of lane {self.lane.name}" + (f" at {place}" if place else "")


def check_lanes_compatible(lanes: Sequence[PlacedLane]) -> None:
    """Compare all lanes of a project.

    Raises:
        LaneConflictError: two lanes would write the same files, or one the splits file that another has pinned.
    """
    conflicts = [message for one, other in combinations(lanes, 2) for message in _conflicts_of(one, other)]
    for one in lanes:
        conflicts += [message for other in lanes for message in _pinned_files_written(one, other)]
    if conflicts:
        raise LaneConflictError("\n".join(conflicts))


def _conflicts_of(one: PlacedLane, other: PlacedLane) -> list[str]:
    conflicts = []
    tags = sorted(set(one.lane.dataset_tags) & set(other.lane.dataset_tags))
    if tags:
        conflicts.append(
            f"{other.at('name')}: expected image ids of its own, found that those of {one.at('name')} begin with "
            f"`{tags[0]}::` too, so that their artefacts would overwrite each other; rename one of the lanes"
        )
    ours, theirs = one.lane.splits, other.lane.splits
    if ours.name == theirs.name and ours.folds != theirs.folds:
        conflicts.append(
            f"{other.at('splits.folds')}: expected {ours.folds} as in {one.at('splits.folds')}, found {theirs.folds}: "
            f"both write splits/{ours.name}_<fold>.json; give both the same number of folds, or one of them another "
            "`splits.name`"
        )
    return conflicts


def _pinned_files_written(one: PlacedLane, other: PlacedLane) -> list[str]:
    """A message when the splits file that ``one`` has pinned is one that ``other`` writes."""
    pinned = one.lane.splits.pinned
    if pinned is None or str(PurePosixPath(pinned).parent) != "splits":
        return []
    if not re.fullmatch(re.escape(other.lane.splits.name) + r"_(\d+|\{fold\})\.json", PurePosixPath(pinned).name):
        return []
    return [
        f"{one.at('splits.pinned')}: found {pinned}, which the manifest of lane {other.lane.name} overwrites; copy the "
        "file to another folder, e.g. pinned/, and name that"
    ]
