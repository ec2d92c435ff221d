"""Remove old finished runs with their events and output; what the UI shows of assets stays.

A run stays, however old, while it holds the newest materialization of an asset's partition or the newest result of a
check: without its events the partition would count as missing and be made again. Its output is removed all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

import dagster as dg

_FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_PAGE = 200


@dataclass(slots=True)
class Removal:
    """Ids of runs that were or, in a dry run, would be removed, and of those that lose their output only."""

    runs: list[str] = field(default_factory=list)
    outputs_only: list[str] = field(default_factory=list)


def remove_old_runs(instance: dg.DagsterInstance, before: datetime, *, dry_run: bool) -> Removal:
    """Remove runs that ended before then; killed in between, it can be called again.

    Args:
        instance: of the deployment or of a single machine.
        before: with a time zone.
        dry_run: say what would be removed, and remove nothing.
    """
    removal = Removal()
    for run_id in _old_runs(instance, before):
        if _is_needed(instance, run_id):
            removal.outputs_only.append(run_id)
        else:
            removal.runs.append(run_id)
    if not dry_run:
        for run_id in (*removal.runs, *removal.outputs_only):
            instance.compute_log_manager.delete_logs(prefix=[run_id])
        for run_id in removal.runs:
            instance.delete_run(run_id)
    return removal


def _old_runs(instance: dg.DagsterInstance, before: datetime) -> Iterator[str]:
    """Ids of finished runs that changed last before then, oldest first."""
    cursor = None
    while True:
        records = instance.get_run_records(
            filters=dg.RunsFilter(statuses=_FINISHED, created_before=before), limit=_PAGE, ascending=True, cursor=cursor
        )
        for record in records:
            if record.update_timestamp < before:
                yield record.dagster_run.run_id
        if len(records) < _PAGE:
            return
        cursor = records[-1].dagster_run.run_id


def _is_needed(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether the run holds the newest materialization of a partition, or the newest result of a check."""
    made = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION).records
    for record in made:
        materialization = record.asset_materialization
        if materialization is None:
            continue
        partition = materialization.partition
        wanted = dg.AssetRecordsFilter(
            asset_key=materialization.asset_key, asset_partitions=None if partition is None else [partition]
        )
        newest = instance.fetch_materializations(wanted, limit=1).records
        if newest and newest[0].run_id == run_id:
            return True
    checked = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION).records
    for record in checked:
        event = record.event_log_entry.dagster_event
        if event is None:
            continue
        key = event.asset_check_evaluation_data.asset_check_key
        latest = instance.event_log_storage.get_latest_asset_check_execution_by_key([key]).get(key)
        if latest is not None and latest.run_id == run_id:
            return True
    return False
