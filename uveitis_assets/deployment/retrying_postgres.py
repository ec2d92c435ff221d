"""Dagster's Postgres storage for a database that may restart or crash while runs are at work: connecting waits for it,
connections that died with it are replaced, and what was going on is repeated (``outliving_storages``).

An event that cannot be written fails its run, and by itself Dagster tries to connect for eleven seconds only. Nothing
else is changed; ``docker/dagster.yaml`` names the class.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from dagster_postgres import DagsterPostgresStorage, PostgresScheduleStorage
from dagster_postgres.utils import pg_url_from_config
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import Pool

from uveitis_assets.deployment.retrying_storages import RetryingEventLogStorage, RetryingRunStorage

if TYPE_CHECKING:
    # Private, for annotations only.
    from dagster._serdes import ConfigurableClassData
    from dagster_postgres.auth import PgTokenProvider

# Dagster calls six times before it gives up: five minutes.
PATIENCE_S = 50.0
_BETWEEN_CALLS_S = 0.5
# What a server that answers says while it comes or goes. Its other refusals, such as a wrong password, stay refusals.
_COMING_OR_GOING = ("is starting up", "is shutting down", "is not yet accepting connections", "in recovery mode")


class RetryingPostgresStorage(DagsterPostgresStorage):
    """``DagsterPostgresStorage`` whose process waits up to five minutes for a database that is away or goes away."""

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
        token_provider: PgTokenProvider | None = None,
    ) -> None:
        # Dagster's own storages stay unused: without tables to make they connect to nothing.
        super().__init__(postgres_url, False, inst_data, token_provider)
        self.should_autocreate_tables = should_autocreate_tables
        self._run_storage = RetryingRunStorage(postgres_url, should_autocreate_tables, None, token_provider)
        self._event_log_storage = RetryingEventLogStorage(postgres_url, should_autocreate_tables, None, token_provider)
        # Only daemons and people write schedules.
        self._schedule_storage = PostgresScheduleStorage(postgres_url, should_autocreate_tables, None, token_provider)

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """Have connections wait, and make the storage that ``config_value`` describes."""
        for target, moment, listener in _LISTENERS:
            if not event.contains(target, moment, listener):
                event.listen(target, moment, listener)
        return cls(
            postgres_url=pg_url_from_config(config_value),
            should_autocreate_tables=config_value.get("should_autocreate_tables", True),
            inst_data=inst_data,
        )


def connect_patiently(dialect: Any, _record: Any, positional: Sequence[Any], named: dict[str, Any]) -> Any:
    """Connect as SQLAlchemy does, trying again for a while where no Postgres answers; other databases are left to it.

    Raises:
        psycopg2.OperationalError: the server refused, or there was none for ``PATIENCE_S`` seconds.
    """
    if dialect.name != "postgresql":
        return None
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return dialect.connect(*positional, **named)
        except dialect.loaded_dbapi.OperationalError as error:
            said = str(error)
            refused = "FATAL" in said and not any(words in said for words in _COMING_OR_GOING)
            if refused or time.monotonic() > deadline:
                raise
        time.sleep(_BETWEEN_CALLS_S)


def refuse_dead_connection(connection: Any, record: Any, _proxy: Any) -> None:
    """Ask a kept Postgres connection for a sign of life before it is used again; only the web server keeps any.

    Raises:
        sqlalchemy.exc.InvalidatePoolError: it died with a server that restarted; SQLAlchemy makes new ones.
    """
    if not type(connection).__module__.startswith("psycopg2"):
        return
    # The mark goes with the connection that it was put on.
    if not record.info.get("was_used"):
        record.info["was_used"] = True
        return
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except (connection.OperationalError, connection.InterfaceError):
        raise InvalidatePoolError from None


_LISTENERS: tuple[tuple[type, str, Callable[..., Any]], ...] = (
    (Engine, "do_connect", connect_patiently),
    (Pool, "checkout", refuse_dead_connection),
)
