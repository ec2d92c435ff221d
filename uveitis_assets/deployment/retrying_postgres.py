"""Dagster's Postgres storage for a database that may restart or crash during runs.

Connecting waits for the database, kept connections that died with it are replaced, and a run whose connection breaks
in the middle of a statement ends at once. Whether that statement was carried out is unknown, so the run is not
continued: run monitoring finds its dead container and ``run_retries`` starts the run again, which resumes its stages
as after any other kill.

By itself Dagster tries to connect for eleven seconds only, and a run whose events cannot be written ends as a failure
of the asset that was being materialized, which is not retried. ``docker/dagster.yaml`` names the class.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import pg_url_from_config
from sqlalchemy import event
from sqlalchemy.engine import Engine, ExceptionContext
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import Pool

# Dagster calls six times before it gives up: five minutes.
CONNECT_TIMEOUT_S = 50.0
CONNECT_INTERVAL_S = 0.5
# Answers of a server that is starting or stopping. Its other refusals, such as a wrong password, are final.
_STARTING_OR_STOPPING = ("is starting up", "is shutting down", "is not yet accepting connections", "in recovery mode")
# Dagster's launchers set it in the containers of runs, and only there.
RUN_PROCESS_VARIABLE = "DAGSTER_RUN_JOB_NAME"
# sysexits.h: a temporary failure.
LOST_CONNECTION_EXIT_CODE = 75


class RetryingPostgresStorage(DagsterPostgresStorage):
    """``DagsterPostgresStorage`` whose processes wait up to five minutes for a database that is away."""

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Mapping[str, Any]) -> Self:
        """Register the functions below for this process, and make the storage that ``config_value`` describes."""
        for target, moment, function in LISTENERS:
            if not event.contains(target, moment, function):
                event.listen(target, moment, function)
        return cls(
            postgres_url=pg_url_from_config(config_value),
            should_autocreate_tables=config_value.get("should_autocreate_tables", True),
            inst_data=inst_data,
        )


def connect_when_available(dialect: Any, _record: Any, positional: Sequence[Any], named: dict[str, Any]) -> Any:
    """Connect as SQLAlchemy does, and try again while no Postgres answers; for Postgres only.

    Raises:
        psycopg2.OperationalError: the server refused, or there was none for ``CONNECT_TIMEOUT_S`` seconds.
    """
    if dialect.name != "postgresql":
        return None
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while True:
        try:
            return dialect.connect(*positional, **named)
        except dialect.loaded_dbapi.OperationalError as error:
            message = str(error)
            refused = "FATAL" in message and not any(answer in message for answer in _STARTING_OR_STOPPING)
            if refused or time.monotonic() > deadline:
                raise
        time.sleep(CONNECT_INTERVAL_S)


def replace_dead_connection(connection: Any, record: Any, _proxy: Any) -> None:
    """Test a kept Postgres connection before it is used again; only the web server keeps any.

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


def end_run_on_lost_connection(context: ExceptionContext) -> None:
    """End this process with code 75 if it is a run whose connection broke during a statement.

    Other processes (daemon, web server, commands) see the error: they try again by themselves, or show it.
    """
    if RUN_PROCESS_VARIABLE not in os.environ or not context.is_disconnect or context.connection is None:
        return
    if context.dialect.name != "postgresql":
        return
    reason = str(context.original_exception).partition("\n")[0]
    message = f"The connection to Dagster's database was lost: {reason}. This run ends here and is retried.\n"
    os.write(2, message.encode())
    # Without cleaning up: an orderly end would write further events, which no longer follow from those in the database.
    os._exit(LOST_CONNECTION_EXIT_CODE)


LISTENERS: tuple[tuple[type, str, Callable[..., Any]], ...] = (
    (Engine, "do_connect", connect_when_available),
    (Pool, "checkout", replace_dead_connection),
    (Engine, "handle_error", end_run_on_lost_connection),
)
