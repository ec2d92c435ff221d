"""The GPU need of a run, from its tags and those of its assets."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from uveitis_assets.launcher.refusal import LaunchRefusedError

NEED_TAG = "uveitis/gpu"


class GpuNeed(StrEnum):
    """What a run or an asset asks for, weakest first."""

    NONE = "none"
    PREFERRED = "preferred"
    REQUIRED = "required"


_WEAKEST_FIRST = list(GpuNeed)


def resolve_need(run_tags: Mapping[str, str], asset_tags: Mapping[str, Mapping[str, str]]) -> GpuNeed:
    """The run's own ``uveitis/gpu`` tag, else the strongest need of its assets (name to tags), else none.

    Raises:
        LaunchRefusedError: a tag holds another value than ``required``, ``preferred`` or ``none``.
    """
    if NEED_TAG in run_tags:
        return _parse_need(run_tags[NEED_TAG], "the run")
    needs = [_parse_need(tags[NEED_TAG], f"asset {name}") for name, tags in asset_tags.items() if NEED_TAG in tags]
    return max(needs, key=_WEAKEST_FIRST.index, default=GpuNeed.NONE)


def _parse_need(value: str, where: str) -> GpuNeed:
    try:
        return GpuNeed(value)
    except ValueError:
        expected = ", ".join(reversed(_WEAKEST_FIRST))
        raise LaunchRefusedError(
            f"Tag {NEED_TAG} of {where} is {value!r}; expected one of {expected}. Correct the tag and launch again."
        ) from None
