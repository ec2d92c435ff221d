"""Plans the runs of a sensor or schedule: ranges of wanted keys, less those in progress or given up.

Which keys need a run follows from the artefacts' indexes or from the newest materializations, not from a list of what
was noticed: a crash between noticing and running loses nothing. A run carries the state of each of its keys as a tag,
so that attempts are counted per key and state, be they of a sensor or of a schedule.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import dagster as dg

from uveitis_assets.messages import enumeration
from uveitis_assets.orchestration.partition_runs import contiguous_ranges, range_tags

ATTEMPTS = 3
MOST_KEYS_PER_TICK = 500
STATES_TAG = "uveitis/batch_states"
BECAUSE_TAG = "uveitis/requested_because"
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Wanted:
    """Partition keys that need a run of some assets, and why; without assets, of all assets of the job."""

    keys: Collection[str]
    assets: tuple[dg.AssetKey, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """One run over all keys from first to last."""

    first: str
    last: str
    assets: tuple[dg.AssetKey, ...]
    reason: str
    states: Mapping[str, str] = field(default_factory=dict)

    def run_request(self, run_key: str | None = None, tags: Mapping[str, str] | None = None) -> dg.RunRequest:
        """What a sensor or schedule returns, with further tags."""
        states = {STATES_TAG: json.dumps(self.states)} if self.states else {}
        return dg.RunRequest(
            run_key=run_key,
            asset_selection=list(self.assets) or None,
            tags={**(tags or {}), **range_tags(self.first, self.last), BECAUSE_TAG: self.reason, **states},
        )


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """The runs to request, and the wanted keys that are not requested, in order.

    ``busy`` keys wait for a run in progress, ``exhausted`` ones were tried in vain, ``later`` ones exceed the limit.
    """

    ranges: tuple[RangeRequest, ...] = ()
    busy: tuple[str, ...] = ()
    exhausted: tuple[str, ...] = ()
    later: tuple[str, ...] = ()

    @property
    def run_requests(self) -> list[dg.RunRequest]:
        return [one.run_request() for one in self.ranges]

    def skip_reason(self, remedy: str, nothing_wanted: str = "nothing needs a run") -> dg.SkipReason | None:
        """Why no run is requested: what keeps the wanted keys waiting, or that none is wanted; None if one is.

        Args:
            remedy: what to do about exhausted keys, once the cause is fixed.
            nothing_wanted: the reason where no key is wanted.
        """
        if self.ranges:
            return None
        reasons = [f"runs of {enumeration(self.busy, _SHOWN)} are in progress"] if self.busy else []
        if self.exhausted:
            reasons.append(
                f"runs of {enumeration(self.exhausted, _SHOWN)} were cancelled or did not help {ATTEMPTS} times: fix "
                f"the cause and {remedy}"
            )
        return dg.SkipReason("; ".join(reasons) or nothing_wanted)


def plan_requests(
    wanted: Sequence[Wanted],
    busy: Collection[str] = (),
    exhausted: Collection[str] = (),
    *,
    ordered: Sequence[str],
    longest: int,
    states: Mapping[str, str] | None = None,
    most_keys: int | None = MOST_KEYS_PER_TICK,
) -> RequestPlan:
    """Plan runs over ranges of neighbouring wanted keys.

    Args:
        wanted: keys by the assets and the reason of their runs; a key in several of them belongs to the first.
        busy: keys that a run in progress makes.
        exhausted: keys whose present state was tried often enough.
        ordered: all keys in the order of their registration; wanted keys that are not among them are left out.
        longest: most keys of one run.
        states: state of keys, which their runs carry.
        most_keys: most keys of all runs together; None for no limit.

    Returns:
        The runs in the order of ``wanted``, then of the keys.
    """
    taken: set[str] = set()
    waiting: dict[str, list[str]] = {"busy": [], "exhausted": [], "later": []}
    ranges: list[RangeRequest] = []
    n_planned = 0
    for one in wanted:
        keys = set(one.keys) - taken
        taken |= keys
        ready: set[str] = set()
        for key in ordered:
            if key not in keys:
                continue
            if key in busy:
                waiting["busy"].append(key)
            elif key in exhausted:
                waiting["exhausted"].append(key)
            elif most_keys is not None and n_planned == most_keys:
                waiting["later"].append(key)
            else:
                ready.add(key)
                n_planned += 1
        ranges += _ranges(one, ready, ordered, longest, states or {})
    return RequestPlan(tuple(ranges), **{name: tuple(sorted(keys)) for name, keys in waiting.items()})


def exhausted_keys(attempts: Iterable[tuple[Mapping[str, str], bool]], states: Mapping[str, str]) -> set[str]:
    """Keys whose present state was tried ``ATTEMPTS`` times, or whose run was cancelled.

    Args:
        attempts: of each finished run, the states of its keys and whether it was cancelled.
        states: the present state of each key that still needs a run.
    """
    tried: Counter[str] = Counter()
    for tried_states, cancelled in attempts:
        for key, state in tried_states.items():
            if states.get(key) == state:
                tried[key] += ATTEMPTS if cancelled else 1
    return {key for key, times in tried.items() if times >= ATTEMPTS}


def _ranges(
    one: Wanted, ready: set[str], ordered: Sequence[str], longest: int, states: Mapping[str, str]
) -> list[RangeRequest]:
    position = {key: number for number, key in enumerate(ordered)} if ready else {}
    return [
        RangeRequest(
            first,
            last,
            one.assets,
            one.reason,
            {key: states[key] for key in ordered[position[first] : position[last] + 1] if key in states},
        )
        for first, last in contiguous_ranges(ordered, ready, longest)
    ]
