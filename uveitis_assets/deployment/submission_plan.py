"""Runs of a submission: assets of one lane and partitioning together, upstream runs first.

Plain functions on names; ``submit`` asks the deployment for its assets and launches the runs.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

from uveitis_assets.deployment.webserver import DeployedAsset

_HIDDEN_JOB = "__ASSET_JOB"
_PARTITION_TAG = "dagster/partition"
_RANGE_START_TAG = "dagster/asset_partition_range_start"
_RANGE_END_TAG = "dagster/asset_partition_range_end"


class SubmissionError(ValueError):
    """The submission names an unknown asset or partition; the message lists what exists."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Partitions that the user asked for; at most one of the four is set."""

    partition: str | None = None
    partition_range: str | None = None
    missing: bool = False
    everything: bool = False

    def check(self) -> None:
        """Raise SubmissionError when more than one is set, or the range is malformed."""
        given = [self.partition is not None, self.partition_range is not None, self.missing, self.everything]
        if sum(given) > 1:
            raise SubmissionError("give one of --partition, --partition-range, --missing and --all")
        if self.partition_range is not None:
            ends = self.partition_range.split("...")
            if len(ends) > 2 or not all(ends):
                raise SubmissionError(f"{self.partition_range}: expected a range as first...last")

    @property
    def is_open(self) -> bool:
        """Whether the user named no partition at all."""
        return self == Wanted()


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run: assets of one lane over one partition, a range of them, or none."""

    assets: tuple[DeployedAsset, ...]
    job: str
    tags: Mapping[str, str]
    what: str


def select_assets(assets: Sequence[DeployedAsset], names: Sequence[str]) -> list[DeployedAsset]:
    """Assets of these names; a lane's name means all of its assets. Sorted by key, each once.

    Raises:
        SubmissionError: a name is neither an asset nor a lane.
    """
    chosen: dict[str, DeployedAsset] = {}
    for name in names:
        found = [asset for asset in assets if name in {asset.key, asset.lane}]
        if not found:
            known = sorted({asset.key for asset in assets} | {asset.lane for asset in assets})
            near = difflib.get_close_matches(name, known, n=3) or sorted({asset.lane for asset in assets})
            raise SubmissionError(f"{name}: found no such asset or lane; expected for example {', '.join(near)}")
        chosen |= {asset.key: asset for asset in found}
    return [chosen[key] for key in sorted(chosen)]


def plan_stages(
    assets: Sequence[DeployedAsset],
    whole_lanes: set[str],
    wanted: Wanted,
    longest: int,
    materialized: Callable[[DeployedAsset], set[str]],
) -> list[list[PlannedRun]]:
    """Runs in stages: those of a stage may run side by side, and read what the stages before made.

    Args:
        assets: selected by the user.
        whole_lanes: lanes that were named as a whole; their assets without the wanted partition are left out.
        wanted: partitions.
        longest: most partitions of one run.
        materialized: partitions of an asset that exist (``{""}`` for one without partitions); asked for --missing.

    Raises:
        SubmissionError: a partition is unknown, or none was named for partitioned assets.
    """
    runs: list[list[PlannedRun]] = []
    for group in _groups(assets):
        first = group[0]
        if not first.is_partitioned:
            if wanted.missing and all(materialized(asset) for asset in group):
                continue
            if (wanted.partition or wanted.partition_range) and first.lane in whole_lanes:
                continue
            runs.append([_planned(group, None, None)])
            continue
        keys = _wanted_partitions(group, wanted, materialized, lenient=first.lane in whole_lanes)
        limits = [asset.longest_range for asset in group if asset.longest_range is not None]
        ranges = _neighbours(first.partitions, keys, min([longest, *limits]))
        if ranges:
            runs.append([_planned(group, start, end) for start, end in ranges])
    if not runs and (wanted.partition or wanted.partition_range):
        raise SubmissionError(
            f"{wanted.partition or wanted.partition_range}: no asset of {', '.join(sorted(whole_lanes))} has this "
            "partition"
        )
    return runs


def _groups(assets: Sequence[DeployedAsset]) -> list[tuple[DeployedAsset, ...]]:
    """Assets that share runs, in an order in which each group comes after those it reads from."""
    by_key = {asset.key: asset for asset in assets}
    level: dict[str, int] = {}
    order = TopologicalSorter({key: by_key[key].upstream & by_key.keys() for key in sorted(by_key)}).static_order()
    for key in order:
        levels = [0]
        for upstream in by_key[key].upstream & by_key.keys():
            same_runs = _run_identity(by_key[upstream]) == _run_identity(by_key[key])
            levels.append(level[upstream] + (0 if same_runs else 1))
        level[key] = max(levels)
    groups: dict[tuple[object, ...], list[DeployedAsset]] = {}
    for key in sorted(by_key, key=lambda key: (level[key], key)):
        groups.setdefault((level[key], _run_identity(by_key[key])), []).append(by_key[key])
    return [tuple(group) for group in groups.values()]


def _run_identity(asset: DeployedAsset) -> tuple[object, ...]:
    return (asset.lane, asset.location, asset.partitions_name, asset.partitions)


def _wanted_partitions(
    group: Sequence[DeployedAsset],
    wanted: Wanted,
    materialized: Callable[[DeployedAsset], set[str]],
    *,
    lenient: bool,
) -> set[str]:
    first = group[0]
    partitions = list(first.partitions)
    if not partitions:
        raise SubmissionError(
            f"{first.key}: no partition is registered; land images and wait for the lane's sensor, or call "
            f"`uveitis-assets register {first.lane}` in the code server's container"
        )
    if wanted.is_open:
        raise SubmissionError(
            f"{first.key} has partitions {partitions[0]} to {partitions[-1]}: give --partition, --partition-range, "
            "--missing or --all"
        )
    if wanted.everything:
        return set(partitions)
    if wanted.missing:
        existing = [materialized(asset) for asset in group]
        return {key for key in partitions if not all(key in made for made in existing)}
    ends = [wanted.partition] if wanted.partition is not None else (wanted.partition_range or "").split("...")
    for end in ends:
        if end not in partitions:
            if lenient:
                return set()
            near = difflib.get_close_matches(str(end), partitions, n=3) or [partitions[0], partitions[-1]]
            raise SubmissionError(f"{first.key}: found no partition {end}; expected for example {', '.join(near)}")
    start, stop = partitions.index(str(ends[0])), partitions.index(str(ends[-1]))
    if start > stop:
        raise SubmissionError(f"{wanted.partition_range}: {ends[0]} comes after {ends[-1]}")
    return set(partitions[start : stop + 1])


def _neighbours(ordered: Sequence[str], wanted: set[str], longest: int) -> list[tuple[str, str]]:
    ranges: list[list[str]] = []
    previous = -2
    for index, key in enumerate(ordered):
        if key not in wanted:
            continue
        if index == previous + 1 and len(ranges[-1]) < longest:
            ranges[-1].append(key)
        else:
            ranges.append([key])
        previous = index
    return [(keys[0], keys[-1]) for keys in ranges]


def _planned(group: tuple[DeployedAsset, ...], start: str | None, end: str | None) -> PlannedRun:
    # A job of the code location brings its tags, and with them its limits; the hidden one takes any assets.
    shared = set.intersection(*(set(asset.jobs) for asset in group)) - {_HIDDEN_JOB}
    tags: dict[str, str] = {}
    if start is not None and start == end:
        tags[_PARTITION_TAG] = start
        if len(group[0].dimensions) > 1:
            parts = zip(sorted(group[0].dimensions), start.split("|"), strict=True)
            tags |= {f"{_PARTITION_TAG}/{dimension}": part for dimension, part in parts}
    elif start is not None and end is not None:
        tags |= {_RANGE_START_TAG: start, _RANGE_END_TAG: end}
    names = ", ".join(asset.key for asset in group)
    span = "" if start is None else f"[{start}]" if start == end else f"[{start}...{end}]"
    return PlannedRun(assets=group, job=min(shared, default=_HIDDEN_JOB), tags=tags, what=f"{names}{span}")
