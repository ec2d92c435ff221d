"""What is wrong with a deployment now.

Texts hold keys and ids, never messages of errors, which may hold names of patients.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg

from uveitis_assets.deployment.service_health import (
    UnhealthyError,
    check_code_server,
    check_web,
    silent_daemons,
)

_GB = 1e9
_PARTITION_TAGS = ("dagster/partition", "dagster/asset_partition_range_start")
_RANGE_END_TAG = "dagster/asset_partition_range_end"
_RETRY_TAG = "dagster/will_retry"
# Of batches, folds and splits. Other keys come from files, so that they may hold names.
_OWN_KEY = re.compile(r"(b\d+|fold\d+|train|val|test)([|_](b\d+|fold\d+|train|val|test))*")
_RUNS_READ = 200


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that needs a person; ``key`` tells whether it is the same as before.

    An event, such as a failed run, is reported once. Other conditions last until they are gone, and then that is told.
    """

    key: str
    text: str
    is_event: bool = False


def failed_runs(instance: dg.DagsterInstance, since: datetime) -> Iterator[Condition]:
    """Runs that failed since then and are not retried, oldest first."""
    records = instance.get_run_records(
        filters=dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=since), limit=_RUNS_READ
    )
    for record in reversed(records):
        run = record.dagster_run
        if run.tags.get(_RETRY_TAG) != "true":
            yield Condition(f"run:{run.run_id}", f"run {run.run_id[:8]} failed: {describe_run(run)}", is_event=True)


def describe_run(run: dg.DagsterRun) -> str:
    """Assets or job of a run, and its partitions where their keys are our own."""
    assets = sorted(key.to_user_string() for key in run.asset_selection or ())
    name = ", ".join(assets[:5]) + (f" and {len(assets) - 5} more" if len(assets) > 5 else "")
    first = next((run.tags[tag] for tag in _PARTITION_TAGS if tag in run.tags), None)
    if first is None:
        return name or run.job_name
    keys = [first] if _RANGE_END_TAG not in run.tags else [first, run.tags[_RANGE_END_TAG]]
    shown = "...".join(key if _OWN_KEY.fullmatch(key) else "(key not shown)" for key in keys)
    return f"{name or run.job_name}, partition {shown}"


def unseen_daemons(instance: dg.DagsterInstance) -> Iterator[Condition]:
    """Daemons whose heartbeat is missing or old."""
    for name, last in silent_daemons(instance).items():
        seen = "never seen" if last is None else f"last seen {_time(last)}"
        yield Condition(f"daemon:{name}", f"daemon {name} is silent, {seen}: docker/compose.sh logs daemon")


def missed_ticks(instance: dg.DagsterInstance, now: datetime, grace: timedelta) -> Iterator[Condition]:
    """Sensors and schedules that run and whose last tick failed or is overdue by more than ``grace``."""
    for state in sorted(instance.all_instigator_state(), key=lambda found: found.instigator_name):
        if not state.is_running:
            continue
        name, data = state.instigator_name, state.instigator_data
        ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
        if ticks and ticks[0].status.value == "FAILURE":
            yield Condition(f"tick:{name}", f"{name}: its last tick failed, {_time(ticks[0].timestamp)}")
            continue
        due = _due_at(data, now, grace)
        last = ticks[0].timestamp if ticks else getattr(data, "start_timestamp", None)
        if due is not None and last is not None and last < due.timestamp():
            yield Condition(f"tick:{name}", f"{name}: no tick since {_time(last)}: docker/compose.sh logs daemon")


def _due_at(data: Any, now: datetime, grace: timedelta) -> datetime | None:
    """The moment since when there has to be a tick."""
    interval = getattr(data, "min_interval", None)
    if interval is not None:
        return now - grace - timedelta(seconds=2 * interval)
    cron = getattr(data, "cron_schedule", None)
    if not isinstance(cron, str):
        return None
    # Windows between the times of the schedule, which are in UTC here; the last one that is over ended at such a time.
    windows = dg.TimeWindowPartitionsDefinition(
        start=now - timedelta(days=400), fmt="%Y-%m-%d %H:%M", cron_schedule=cron, timezone="UTC"
    )
    window = windows.get_prev_partition_window(now - grace)
    # A tick bears the time that it is for.
    return None if window is None else window.end - timedelta(seconds=1)


def low_disk(folders: Mapping[str, Path], least_free_gb: float) -> Iterator[Condition]:
    """File systems with less free space than that; one condition per folder."""
    for name, folder in folders.items():
        free = shutil.disk_usage(folder).free / _GB
        if free < least_free_gb:
            yield Condition(f"disk:{name}", f"disk of {name}: {free:.1f} GB free, expected {least_free_gb:g} GB")


def unhealthy_services(web: str | None, code_server: str | None) -> Iterator[Condition]:
    """The web server's address and host:port of the code server: what does not do its work when asked."""
    if web is not None and not _passes(partial(check_web, web)):
        yield Condition("service:webserver", "the web server does not read runs: docker/compose.sh logs webserver")
    if code_server is not None and not _passes(partial(check_code_server, code_server)):
        yield Condition("service:code-server", "the code server does not answer: docker/compose.sh logs code-server")


def _passes(check: Callable[[], None]) -> bool:
    try:
        check()
    except UnhealthyError:
        return False
    return True


def all_conditions(
    instance: dg.DagsterInstance,
    *,
    now: datetime,
    since: datetime,
    grace: timedelta,
    folders: Mapping[str, Path],
    least_free_gb: float,
    web: str | None,
    code_server: str | None,
) -> Sequence[Condition]:
    """Everything above; a database that does not answer is a condition beside the others."""
    found = [*low_disk(folders, least_free_gb), *unhealthy_services(web, code_server)]
    try:
        found += [*failed_runs(instance, since), *unseen_daemons(instance), *missed_ticks(instance, now, grace)]
    except Exception as error:
        # Any driver may be configured: each has errors of its own.
        found.append(Condition("service:database", f"the database does not answer ({type(error).__name__})"))
    return found


def _time(timestamp: float) -> str:
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M} UTC"
