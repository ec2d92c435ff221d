"""A database that is away for a moment is waited for, and one that refuses is not."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import psycopg2
import pytest
import sqlalchemy
from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage
from sqlalchemy import event
from sqlalchemy.pool import QueuePool

from uveitis_assets.deployment import retrying_postgres
from uveitis_assets.deployment.retrying_postgres import LISTENERS, RetryingPostgresStorage

URL = "postgresql+psycopg2://dagster:secret@127.0.0.1:1/dagster"
AWAY = 'connection to server at "postgres", port 5432 failed: Connection refused'
STARTING = f"{AWAY.rpartition(':')[0]}: FATAL:  the database system is starting up"
WRONG_PASSWORD = f'{AWAY.rpartition(":")[0]}: FATAL:  password authentication failed for user "dagster"'


@pytest.fixture(autouse=True)
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The functions registered in this process while a test lasts, as opening the storage does, and short waits."""
    _stop_listening()
    monkeypatch.setattr(retrying_postgres, "CONNECT_INTERVAL_S", 0.0)
    monkeypatch.setattr(retrying_postgres, "CONNECT_TIMEOUT_S", 0.2)
    for target, moment, function in LISTENERS:
        event.listen(target, moment, function)
    yield
    _stop_listening()


def _stop_listening() -> None:
    """Whether this test registered them, or an earlier one of the process that opened the storage."""
    for target, moment, function in LISTENERS:
        if event.contains(target, moment, function):
            event.remove(target, moment, function)


def _server(monkeypatch: pytest.MonkeyPatch, answers: list[str]) -> list[str]:
    """A psycopg2 that fails with each of the answers, then reaches a server; returns what is left of them."""

    def connect(*_: Any, **__: Any) -> Any:
        if answers:
            raise psycopg2.OperationalError(answers.pop(0))
        raise ConnectionAbortedError("reached")

    monkeypatch.setattr(psycopg2, "connect", connect)
    return answers


def test_a_database_that_restarts_is_reached_once_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    left = _server(monkeypatch, [AWAY, AWAY, STARTING, STARTING])
    with pytest.raises(ConnectionAbortedError, match="reached"):
        sqlalchemy.create_engine(URL).connect()
    assert left == []


def test_a_refusal_is_passed_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    left = _server(monkeypatch, [WRONG_PASSWORD, AWAY])
    with pytest.raises(sqlalchemy.exc.OperationalError, match="password authentication failed"):
        sqlalchemy.create_engine(URL).connect()
    assert left == [AWAY]


def test_waiting_for_a_database_ends() -> None:
    with pytest.raises(sqlalchemy.exc.OperationalError, match="Connection refused"):
        sqlalchemy.create_engine(URL).connect()


def test_other_databases_are_connected_to_as_before() -> None:
    with sqlalchemy.create_engine("sqlite://").connect() as connection:
        assert connection.scalar(sqlalchemy.text("SELECT 1")) == 1


class _Connection:
    """A connection of psycopg2 to a server that may end; each counts how often it was tested."""

    __module__ = "psycopg2.extensions"
    OperationalError, InterfaceError = psycopg2.OperationalError, psycopg2.InterfaceError

    def __init__(self) -> None:
        self.died_of: Exception | None = None
        self.asked: list[str] = []

    def cursor(self) -> Any:
        @contextmanager
        def opened() -> Iterator[Any]:
            yield SimpleNamespace(execute=self._execute)

        return opened()

    def _execute(self, statement: str) -> None:
        self.asked.append(statement)
        if self.died_of is not None:
            raise self.died_of

    def rollback(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize(
    "error", [psycopg2.OperationalError("server closed the connection"), psycopg2.InterfaceError("connection closed")]
)
def test_kept_connections_that_died_with_their_server_are_replaced_before_they_are_used_again(error: Exception) -> None:
    made: list[_Connection] = []

    def connect() -> Any:
        made.append(_Connection())
        return made[-1]

    pool = QueuePool(connect, pool_size=2)
    both = pool.connect(), pool.connect()
    assert [one.dbapi_connection for one in both] == made
    assert [one.asked for one in made] == [[], []], "new connections are not tested"
    for one in both:
        one.close()
    pool.connect().close()
    assert len(made) == 2, "a living connection is used again"
    assert sum(len(one.asked) for one in made) == 1

    for one in made:
        one.died_of = error
    # Connections are invalid when older than the one that was found dead; the clock may be too coarse to tell.
    time.sleep(0.02)
    fresh = pool.connect(), pool.connect()
    assert [one.dbapi_connection for one in fresh] == made[2:]
    assert len(made) == 4
    assert sum(len(one.asked) for one in made) == 2, "one dead connection is enough for all"


def test_kept_connections_of_other_databases_are_not_tested() -> None:
    pool = QueuePool(lambda: sqlite3.connect(":memory:"), pool_size=1)
    kept = pool.connect()
    first = kept.dbapi_connection
    kept.close()
    with closing(pool.connect()) as again:
        assert again.dbapi_connection is first


def test_the_deployments_settings_open_this_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stop_listening()
    monkeypatch.setenv("POSTGRES_PASSWORD", "secret")
    # Without tables to make, opening connects to nothing.
    (tmp_path / "dagster.yaml").write_text(
        """
        telemetry: {enabled: false}
        storage:
          custom:
            module: uveitis_assets.deployment.retrying_postgres
            class: RetryingPostgresStorage
            config:
              should_autocreate_tables: false
              postgres_db:
                scheme: postgresql+psycopg2
                hostname: postgres
                db_name: dagster
                username: dagster
                password: {env: POSTGRES_PASSWORD}
        """
    )
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert all(event.contains(*listener) for listener in LISTENERS)
        assert isinstance(instance.run_storage, PostgresRunStorage)
        assert isinstance(instance.event_log_storage, PostgresEventLogStorage)


def test_the_former_name_of_the_storage_still_opens_it() -> None:
    from uveitis_assets.deployment.patient_postgres import PatientPostgresStorage

    assert PatientPostgresStorage is RetryingPostgresStorage
