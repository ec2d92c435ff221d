"""Dagster's run and event log storages on Postgres whose operations outlive the connection that they are at work on.

When a server dies, the statements at work fail, and nobody knows whether they were carried out. A run that meets this
would fail. Here its operations begin again on a new connection, for which connecting waits; in the end each is done
once, as if nothing had happened:

- what only reads is read again;
- what changes nothing when it is done twice is done again;
- for the others the repeat looks what the first attempt has left, and does the rest.

Only what a run's process does is repeated. Making runs, backfills, ticks and schedules, heartbeats, migrations, wiping
and limits of pools are not: daemons begin anew by themselves, and a person sees the error.
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import ParamSpec, TypeVar

import dagster as dg

# No public API of Dagster writes runs and events; these are the tables that its own statements write.
from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetEventTagsTable,
    SqlEventLogStorageTable,
)
from dagster._core.storage.runs.schema import RunTagsTable
from dagster._core.storage.tags import RUN_FAILURE_REASON_TAG
from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage
from sqlalchemy import ColumnElement, select
from sqlalchemy.exc import DBAPIError

# A repeat may begin for as long as a single connection is waited for.
REPEATING_S = 300.0
_BETWEEN_ATTEMPTS_S = 0.5
_ONLY_READING = ("all_", "can_", "fetch", "get_", "has_")

_P = ParamSpec("_P")
_R = TypeVar("_R")
_logger = logging.getLogger(__name__)


def retry_lost_connections(operation: Callable[[], _R], repeat: Callable[[], _R] | None = None) -> _R:
    """What ``operation`` returns, or ``repeat`` (the same operation, if there is none) after its connection died.

    Raises:
        sqlalchemy.exc.DBAPIError: another error than a dead connection, or connections kept dying for ``REPEATING_S``.
    """
    deadline = time.monotonic() + REPEATING_S
    attempt = operation
    while True:
        try:
            return attempt()
        except DBAPIError as error:
            # A server that answers and refuses would refuse again.
            if not error.connection_invalidated or time.monotonic() > deadline:
                raise
            _logger.warning("a connection to the database died, trying again: %s", str(error.orig).partition("\n")[0])
        attempt = repeat or operation
        time.sleep(_BETWEEN_ATTEMPTS_S)


def _outliving(*done_again: str) -> Callable[[type[_R]], type[_R]]:
    """Have a storage repeat these operations as they are, and those that only read: Dagster names them alike."""

    def decorate(storage: type[_R]) -> type[_R]:
        reads = [name for name in dir(storage) if name.startswith(_ONLY_READING)]
        for name in [*reads, *done_again]:
            operation = inspect.getattr_static(storage, name)
            if inspect.isfunction(operation):
                setattr(storage, name, _repeated(operation))
        return storage

    return decorate


def _repeated(operation: Callable[_P, _R]) -> Callable[_P, _R]:
    @functools.wraps(operation)
    def outliving(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return retry_lost_connections(partial(operation, *args, **kwargs))

    return outliving


@_outliving(
    # A snapshot that is there already is left as it is.
    "add_job_snapshot",
    "add_execution_plan_snapshot",
)
class RetryingRunStorage(PostgresRunStorage):
    """Runs and their tags."""

    def handle_run_event(self, run_id: str, event: dg.DagsterEvent, update_timestamp: datetime | None = None) -> None:
        """Set the run's status. A repeat sets it again, and the tag with the reason of a failure once."""
        handle = partial(super().handle_run_event, run_id, event, update_timestamp)

        def repeat() -> None:
            self._mend_tags(run_id, [RUN_FAILURE_REASON_TAG])
            handle()

        retry_lost_connections(handle, repeat)

    def add_run_tags(self, run_id: str, new_tags: Mapping[str, str]) -> None:
        """Add tags to the run. A repeat adds those that are missing where runs are looked up by tag."""
        add = partial(super().add_run_tags, run_id, new_tags)

        def repeat() -> None:
            self._mend_tags(run_id, list(new_tags))
            add()

        retry_lost_connections(add, repeat)

    def _mend_tags(self, run_id: str, keys: Sequence[str]) -> None:
        """Write the rows of these tags as the run itself has them: an attempt may have written only one of both."""
        run = self._get_run_by_id(run_id)
        rows = [{"run_id": run_id, "key": key, "value": run.tags[key]} for key in keys if run and key in run.tags]
        with self.connect() as connection:
            transaction = connection.execution_options(isolation_level="READ COMMITTED")
            with transaction.begin():
                transaction.execute(
                    RunTagsTable.delete().where(RunTagsTable.c.run_id == run_id, RunTagsTable.c.key.in_(keys))
                )
                if rows:
                    transaction.execute(RunTagsTable.insert(), rows)


@_outliving(
    # A partition that is there already, or gone already, is left so.
    "add_dynamic_partitions",
    "delete_dynamic_partition",
    # What is cached is written over.
    "update_asset_cached_status_data",
    "wipe_asset_cached_status",
    # A claim looks first whether the step waits in line already, and whether it has a place already.
    "claim_concurrency_slot",
)
class RetryingEventLogStorage(PostgresEventLogStorage):
    """Events, what is known of assets, partitions, and places in pools."""

    def store_event(self, event: dg.EventLogEntry) -> None:
        """Store an event and what follows from it. A repeat goes on with the row that the first attempt has left."""
        retry_lost_connections(partial(super().store_event, event), partial(self._finish_storing, event))

    def store_event_batch(self, events: Sequence[dg.EventLogEntry]) -> None:
        """Store several events. A repeat does so one by one."""

        def repeat() -> None:
            for event in events:
                self._finish_storing(event)

        retry_lost_connections(partial(super().store_event_batch, events), repeat)

    def _finish_storing(self, event: dg.EventLogEntry) -> None:
        # The row stays the one that it is: sensors and the UI may have read it, and would take another for news.
        event_id = self._id_of(event)
        if event_id is None:
            super().store_event(event)
            return
        if event.dagster_event and event.dagster_event_type in ASSET_EVENTS and event.dagster_event.asset_key:
            with self.index_transaction() as connection:
                connection.execute(AssetEventTagsTable.delete().where(AssetEventTagsTable.c.event_id == event_id))
                self._store_asset_event_tags(connection, [event], [event_id])
                self._store_asset_event(connection, event, event_id)
        if event.dagster_event_type in ASSET_CHECK_EVENTS and not self._has_check_of(event_id):
            self.store_asset_check_event(event, event_id)

    def _id_of(self, event: dg.EventLogEntry) -> int | None:
        # The text has the time of the event in microseconds: no other event of the run has the same.
        log, row = SqlEventLogStorageTable.c, self._event_to_row(event)
        return self._first(log.id, log.run_id == row["run_id"], log.event == row["event"])

    def _has_check_of(self, event_id: int) -> bool:
        checks = AssetCheckExecutionsTable.c
        return self._first(checks.id, checks.evaluation_event_storage_id == event_id) is not None

    def _first(self, column: ColumnElement[int], *conditions: ColumnElement[bool]) -> int | None:
        with self.index_connection() as connection:
            return connection.execute(select(column).where(*conditions).limit(1)).scalar()

    def free_concurrency_slot_for_step(self, run_id: str, step_key: str) -> None:
        """Give a step's place in a pool to the next in line. A repeat first calls whom the first attempt left there."""
        self._free(partial(super().free_concurrency_slot_for_step, run_id, step_key))

    def free_concurrency_slots_for_run(self, run_id: str) -> None:
        """Give all places of a run to the next in line, likewise."""
        self._free(partial(super().free_concurrency_slots_for_run, run_id))

    def _free(self, free: Callable[[], None]) -> None:
        def repeat() -> None:
            self._assign_free_slots()
            free()

        retry_lost_connections(free, repeat)

    def _assign_free_slots(self) -> None:
        # Who is in line waits to be called, and does not look for a free place.
        for pool in self.get_concurrency_infos(list(self.get_concurrency_keys())).values():
            assigned = sum(step.assigned_timestamp is not None for step in pool.pending_steps)
            self.assign_pending_steps([pool.concurrency_key] * (pool.slot_count - assigned))

    def initialize_concurrency_limit_to_default(self, concurrency_key: str) -> bool:
        """Give a new pool the default limit. A repeat leaves one that has become known as it is."""
        initialize = partial(super().initialize_concurrency_limit_to_default, concurrency_key)
        return retry_lost_connections(initialize, lambda: self._is_limited(concurrency_key) or initialize())

    def _is_limited(self, concurrency_key: str) -> bool:
        return any(limit.name == concurrency_key for limit in self.get_pool_limits())
