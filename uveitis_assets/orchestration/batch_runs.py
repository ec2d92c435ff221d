"""Runs recorded by the instance: keys in progress, and the states of keys that runs have tried."""

import json
import time
from collections.abc import Collection, Mapping, Sequence

import dagster as dg

from uveitis_assets.orchestration.partition_runs import RANGE_END_TAG, RANGE_START_TAG
from uveitis_assets.orchestration.request_planner import STATES_TAG, exhausted_keys

_PARTITION_TAG = "dagster/partition"
_RUNS_READ = 200
# A killed command line leaves its run unfinished for ever.
_ABANDONED_AFTER_S = 86400
_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def unfinished_runs(
    instance: dg.DagsterInstance, jobs: Collection[str], assets: Collection[dg.AssetKey]
) -> list[dg.DagsterRun]:
    """Unfinished runs, at most a day old, that make one of the assets.

    Those whose selection holds one of the assets; of runs without a selection, those of one of the jobs.
    """
    begun = time.time() - _ABANDONED_AFTER_S
    records = instance.get_run_records(filters=dg.RunsFilter(statuses=_UNFINISHED))
    recent = [record.dagster_run for record in records if record.create_timestamp.timestamp() > begun]
    return [
        run
        for run in recent
        if (run.job_name in jobs if run.asset_selection is None else not run.asset_selection.isdisjoint(assets))
    ]


def keys_in_progress(
    instance: dg.DagsterInstance, jobs: Collection[str], assets: Collection[dg.AssetKey], ordered: Sequence[str]
) -> set[str]:
    """Keys, of all those in order, that an unfinished run of the assets makes or will make."""
    return {key for run in unfinished_runs(instance, jobs, assets) for key in partitions_of(run, ordered)}


def partitions_of(run: dg.DagsterRun, ordered: Sequence[str]) -> set[str]:
    """Keys, of all those in order, that a run covers by its tags; all of them where it has no such tags."""
    first = run.tags.get(RANGE_START_TAG) or run.tags.get(_PARTITION_TAG)
    last = run.tags.get(RANGE_END_TAG) or first
    if first is None or last is None:
        return set(ordered)
    # By length first: fold2 comes before fold10.
    low, high = (len(first), first), (len(last), last)
    return {key for key in ordered if low <= (len(key), key) <= high}


def exhausted_batches(instance: dg.DagsterInstance, job_name: str, states: Mapping[str, str]) -> set[str]:
    """Batches whose present state the job's runs did not change.

    Found by ``exhausted_keys`` of the job's newest runs.
    """
    runs = instance.get_runs(filters=dg.RunsFilter(job_name=job_name, statuses=_FINISHED), limit=_RUNS_READ)
    return exhausted_keys(
        ((json.loads(run.tags.get(STATES_TAG, "{}")), run.status == dg.DagsterRunStatus.CANCELED) for run in runs),
        states,
    )
