"""The GPU need of a run, from its tags and those of its assets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any

import dagster as dg

from uveitis_assets.launcher.refusal import LaunchRefusedError

NEED_TAG = "uveitis/gpu"
# Written when a run is queued; the user's own tag is another one, because re-executions copy both.
QUEUED_NEED_TAG = "uveitis/gpu_need"


class GpuNeed(StrEnum):
    """What a run or an asset asks for, weakest first."""

    NONE = "none"
    PREFERRED = "preferred"
    REQUIRED_IF_DECLARED = "required-if-declared"
    REQUIRED = "required"

    def on(self, gpu_devices: Collection[str]) -> GpuNeed:
        """The need on a deployment that declares these GPUs: one of none, preferred and required."""
        if self is not GpuNeed.REQUIRED_IF_DECLARED:
            return self
        return GpuNeed.REQUIRED if gpu_devices else GpuNeed.PREFERRED


_WEAKEST_FIRST = list(GpuNeed)


def resolve_need(run_tags: Mapping[str, str], asset_tags: Mapping[str, Mapping[str, str]]) -> GpuNeed:
    """The run's own ``uveitis/gpu`` tag, else the strongest need of its assets (name to tags), else none.

    Raises:
        LaunchRefusedError: a tag holds a value that is none of ``GpuNeed``.
    """
    if NEED_TAG in run_tags:
        return _parse_need(run_tags[NEED_TAG], "the run")
    needs = [_parse_need(tags[NEED_TAG], f"asset {name}") for name, tags in asset_tags.items() if NEED_TAG in tags]
    return max(needs, key=_WEAKEST_FIRST.index, default=GpuNeed.NONE)


def find_need(run: dg.DagsterRun, workspace: Any) -> GpuNeed | None:
    """The need of a run from its tags and the workspace's assets; None while its code location is away.

    The run's own tag comes first, then what its assets say now, then what was written when it was queued. A run that
    was re-executed while the code was away keeps its parent's need, whose assets include its own.

    Raises:
        LaunchRefusedError: a tag holds a value that is none of ``GpuNeed``.
    """
    if NEED_TAG in run.tags:
        return resolve_need(run.tags, {})
    if _knows_assets(run, workspace):
        return resolve_need({}, _asset_tags(run, workspace.asset_graph))
    written = run.tags.get(QUEUED_NEED_TAG)
    return None if written is None else _parse_need(written, "the queued run")


def _knows_assets(run: dg.DagsterRun, workspace: Any) -> bool:
    if workspace is None:
        return False
    origin = run.remote_job_origin
    # A run that comes from no code location has no assets to ask for.
    return origin is None or bool(workspace.has_code_location(origin.location_name))


def _asset_tags(run: dg.DagsterRun, graph: Any) -> dict[str, Mapping[str, str]]:
    """Tags of the assets that the run selects, by name; a run without assets has none."""
    selected = run.asset_selection
    keys = graph.asset_keys_for_job(run.job_name) if selected is None else selected
    return {key.to_user_string(): graph.get(key).tags for key in sorted(keys) if graph.has(key)}


def _parse_need(value: str, where: str) -> GpuNeed:
    try:
        return GpuNeed(value)
    except ValueError:
        expected = ", ".join(reversed(_WEAKEST_FIRST))
        raise LaunchRefusedError(
            f"Tag {NEED_TAG} of {where} is {value!r}; expected one of {expected}. Correct the tag and launch again."
        ) from None
