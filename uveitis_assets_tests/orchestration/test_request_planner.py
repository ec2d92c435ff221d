"""Which runs are requested for wanted keys: ranges, limits, keys in progress, and attempts per state."""

import json
from itertools import pairwise

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uveitis_assets.orchestration.partition_runs import RANGE_END_TAG, RANGE_START_TAG
from uveitis_assets.orchestration.request_planner import (
    ATTEMPTS,
    BECAUSE_TAG,
    STATES_TAG,
    RequestPlan,
    Wanted,
    exhausted_keys,
    plan_requests,
)

KEYS = [f"b{number:05d}" for number in range(1, 31)]
UPSTREAM, DOWNSTREAM = dg.AssetKey(["lane", "manifest"]), dg.AssetKey(["lane", "tiles"])
ALL = (UPSTREAM, DOWNSTREAM)
some_keys = st.sets(st.sampled_from(KEYS))


def covered(plan: RequestPlan, ordered: list[str]) -> list[str]:
    """Keys of all runs, run by run."""
    return [key for one in plan.ranges for key in ordered[ordered.index(one.first) : ordered.index(one.last) + 1]]


@given(
    first=some_keys,
    second=some_keys,
    busy=some_keys,
    exhausted=some_keys,
    longest=st.integers(1, 12),
    most_keys=st.none() | st.integers(0, 30),
    n_known=st.integers(0, 30),
)
def test_each_wanted_key_is_requested_once_by_its_first_reason_or_waits_for_one_cause(
    first: set[str],
    second: set[str],
    busy: set[str],
    exhausted: set[str],
    longest: int,
    most_keys: int | None,
    n_known: int,
) -> None:
    ordered = KEYS[:n_known]
    wanted = [Wanted(first, ALL, "new"), Wanted(second, (UPSTREAM,), "changed")]
    limits = {"longest": longest, "most_keys": most_keys}
    plan = plan_requests(wanted, busy, exhausted, ordered=ordered, states={key: f"of {key}" for key in KEYS}, **limits)

    known = first.union(second).intersection(ordered)
    assert set(plan.busy) == known & busy
    assert set(plan.exhausted) == known & exhausted - busy
    ready = [key for key in ordered if key in first - busy - exhausted]
    ready += [key for key in ordered if key in second - first - busy - exhausted]
    n_runs_of = len(ready) if most_keys is None else most_keys
    assert covered(plan, ordered) == ready[:n_runs_of]
    assert sorted(plan.later) == sorted(ready[n_runs_of:])
    for one in plan.ranges:
        keys = ordered[ordered.index(one.first) : ordered.index(one.last) + 1]
        assert len(keys) <= longest
        assert (one.assets, one.reason) == ((ALL, "new") if keys[0] in first else ((UPSTREAM,), "changed"))
        assert one.states == {key: f"of {key}" for key in keys}


@given(wanted=some_keys, longest=st.integers(1, 12))
def test_neighbours_are_in_one_run_unless_it_is_full(wanted: set[str], longest: int) -> None:
    plan = plan_requests([Wanted(wanted, ALL, "new")], ordered=KEYS, longest=longest)
    for one, following in pairwise(plan.ranges):
        full = KEYS.index(one.last) - KEYS.index(one.first) + 1 == longest
        assert KEYS.index(following.first) > KEYS.index(one.last) + 1 or full


def test_five_hundred_keys_a_tick_are_the_most_unless_there_is_no_limit() -> None:
    keys = [f"b{number:05d}" for number in range(1, 1201)]
    wanted = [Wanted(keys, ALL, "new")]
    plan = plan_requests(wanted, ordered=keys, longest=200)
    assert [(one.first, one.last) for one in plan.ranges] == [
        ("b00001", "b00200"),
        ("b00201", "b00400"),
        ("b00401", "b00500"),
    ]
    assert plan.later == tuple(keys[500:])
    assert len(plan_requests(wanted, ordered=keys, longest=200, most_keys=None).ranges) == 6


def test_keys_are_neighbours_by_their_order_of_registration_and_not_by_their_spelling() -> None:
    folds = [f"fold{number}" for number in range(12)]
    plan = plan_requests([Wanted({"fold9", "fold10", "fold2"}, ALL, "new")], ordered=folds, longest=5)
    assert [(one.first, one.last) for one in plan.ranges] == [("fold2", "fold2"), ("fold9", "fold10")]


def test_a_run_carries_its_range_its_assets_its_reason_and_the_states_of_its_keys() -> None:
    states = {"b00002": "x", "b00004": "y"}
    plan = plan_requests([Wanted(KEYS[1:3], ALL, "files changed")], ordered=KEYS, longest=5, states=states)
    (request,) = plan.run_requests
    assert request.asset_selection == list(ALL)
    assert request.run_key is None
    assert request.tags == {
        RANGE_START_TAG: "b00002",
        RANGE_END_TAG: "b00003",
        BECAUSE_TAG: "files changed",
        STATES_TAG: json.dumps({"b00002": "x"}),
    }


def test_a_run_of_a_whole_job_carries_further_tags_and_no_empty_states() -> None:
    (whole,) = plan_requests([Wanted(KEYS, (), "newer tiles")], ordered=KEYS, longest=len(KEYS)).ranges
    request = whole.run_request("once", {"upstream": "7"})
    assert request.run_key == "once"
    assert request.asset_selection is None
    assert request.tags == {
        "upstream": "7",
        RANGE_START_TAG: KEYS[0],
        RANGE_END_TAG: KEYS[-1],
        BECAUSE_TAG: "newer tiles",
    }


def test_what_keeps_keys_waiting_is_named_with_the_remedy_and_ten_keys_at_most() -> None:
    plan = plan_requests([Wanted(KEYS[:13], ALL, "new")], KEYS[:12], KEYS[12:], ordered=KEYS, longest=5)
    reason = plan.skip_reason("run lane_job")
    assert reason is not None
    assert reason.skip_message == (
        f"runs of {', '.join(KEYS[:10])} and 2 more are in progress; "
        f"runs of {KEYS[12]} were cancelled or did not help 3 times: fix the cause and run lane_job"
    )
    assert plan_requests([Wanted(KEYS, ALL, "new")], KEYS[:12], ordered=KEYS, longest=5).skip_reason("wait") is None
    nothing = plan_requests([], ordered=KEYS, longest=5).skip_reason("wait", "all is made")
    assert nothing is not None
    assert nothing.skip_message == "all is made"


@given(
    runs=st.lists(
        st.tuples(st.dictionaries(st.sampled_from(KEYS[:4]), st.sampled_from("xy")), st.booleans()), max_size=8
    ),
    present=st.dictionaries(st.sampled_from(KEYS[:4]), st.sampled_from("xy")),
)
def test_a_state_is_given_up_after_three_runs_or_a_cancelled_one_and_another_state_is_not(
    runs: list[tuple[dict[str, str], bool]], present: dict[str, str]
) -> None:
    found = exhausted_keys(runs, present)
    for key, state in present.items():
        ends = [cancelled for tried, cancelled in runs if tried.get(key) == state]
        assert (key in found) == (any(ends) or len(ends) >= ATTEMPTS)
    assert found <= present.keys()


@pytest.mark.parametrize("wanted", [[], [Wanted((), ALL, "new")], [Wanted({"unknown"}, ALL, "new")]])
def test_nothing_is_requested_for_no_keys_and_for_keys_that_are_not_registered(wanted: list[Wanted]) -> None:
    assert plan_requests(wanted, ordered=KEYS, longest=5) == RequestPlan()
