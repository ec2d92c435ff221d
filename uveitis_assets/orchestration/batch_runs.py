"""Runs of batches as the instance sees them: what is in progress, what was tried, what to request.

Which batches need a run is told by their books (fundus/stale_batches.py) or by the newest materializations, never by
who noticed it: a crash between noticing and running loses nothing. A run bears the state of each of its batches as a
tag, so that attempts are counted per batch and state, whoever asked for them.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import dagster as dg

from uveitis_assets.orchestration.partition_runs import RANGE_END_TAG, RANGE_START_TAG, contiguous_ranges, range_tags

ATTEMPTS = 3
STATES_TAG = "uveitis/batch_states"
BECAUSE_TAG = "uveitis/requested_because"
_PARTITION_TAG = "dagster/partition"
_RUNS_LOOKED_AT = 200
# A killed command line leaves its run unfinished for ever.
_ABANDONED_AFTER_S = 86400
_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def recent_unfinished_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Unfinished runs of at most a day."""
    begun = time.time() - _ABANDONED_AFTER_S
    records = instance.get_run_records(filters=dg.RunsFilter(statuses=_UNFINISHED))
    return [record.dagster_run for record in records if record.create_timestamp.timestamp() > begun]


def partitions_of(run: dg.DagsterRun, ordered: Sequence[str]) -> set[str]:
    """Which of the keys, given in their order, a run is about; all of them where it does not tell."""
    first = run.tags.get(RANGE_START_TAG) or run.tags.get(_PARTITION_TAG)
    last = run.tags.get(RANGE_END_TAG) or first
    if first is None or last is None:
        return set(ordered)
    # By length first: fold2 comes before fold10.
    low, high = (len(first), first), (len(last), last)
    return {key for key in ordered if low <= (len(key), key) <= high}


def exhausted_batches(instance: dg.DagsterInstance, job_name: str, states: Mapping[str, str]) -> set[str]:
    """Batches whose present state the job tried ``ATTEMPTS`` times, or whose run somebody cancelled."""
    finished = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    runs = instance.get_runs(filters=dg.RunsFilter(job_name=job_name, statuses=finished), limit=_RUNS_LOOKED_AT)
    tried: Counter[str] = Counter()
    for run in runs:
        for batch, state in json.loads(run.tags.get(STATES_TAG, "{}")).items():
            if states.get(batch) == state:
                tried[batch] += ATTEMPTS if run.status == dg.DagsterRunStatus.CANCELED else 1
    return {batch for batch, times in tried.items() if times >= ATTEMPTS}


def range_requests(
    ordered: Sequence[str],
    wanted: set[str],
    assets: Sequence[dg.AssetKey],
    *,
    longest: int,
    why: str,
    states: Mapping[str, str],
) -> Iterator[dg.RunRequest]:
    """One run per range of neighbouring wanted batches, none longer than ``longest``."""
    for first, last in contiguous_ranges(ordered, wanted, longest):
        inside = {batch: states[batch] for batch in ordered if first <= batch <= last and batch in states}
        yield dg.RunRequest(
            asset_selection=list(assets),
            tags={**range_tags(first, last), BECAUSE_TAG: why, STATES_TAG: json.dumps(inside)},
        )
