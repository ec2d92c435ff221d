"""A database that is away for a moment is waited for; one that refuses is not."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import psycopg2
import pytest
import sqlalchemy
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.pool import Pool

from uveitis_assets.deployment import patient_postgres
from uveitis_assets.deployment.patient_postgres import connect_patiently, refuse_dead_connection

URL = "postgresql+psycopg2://dagster:secret@127.0.0.1:1/dagster"
AWAY = 'connection to server at "postgres", port 5432 failed: Connection refused'
STARTING = f"{AWAY.rpartition(':')[0]}: FATAL:  the database system is starting up"
WRONG_PASSWORD = f'{AWAY.rpartition(":")[0]}: FATAL:  password authentication failed for user "dagster"'


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """Patience in this process while a test lasts, as opening the storage gives it, and no real waiting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patient_postgres, "_BETWEEN_CALLS_S", 0.0)
        patch.setattr(patient_postgres, "PATIENCE_S", 0.2)
        event.listen(Engine, "do_connect", connect_patiently)
        yield
        event.remove(Engine, "do_connect", connect_patiently)


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


def test_patience_ends() -> None:
    with pytest.raises(sqlalchemy.exc.OperationalError, match="Connection refused"):
        sqlalchemy.create_engine(URL).connect()


def test_other_databases_are_none_of_its_business() -> None:
    with sqlalchemy.create_engine("sqlite://").connect() as connection:
        assert connection.scalar(sqlalchemy.text("SELECT 1")) == 1


class _Kept:
    """A connection of psycopg2 to a server that has ended."""

    __module__ = "psycopg2.extensions"
    OperationalError, InterfaceError = psycopg2.OperationalError, psycopg2.InterfaceError

    def cursor(self) -> Any:
        raise psycopg2.InterfaceError("connection already closed")


def test_a_kept_connection_that_died_with_its_server_is_replaced_before_it_is_used_again() -> None:
    record = SimpleNamespace(info={})
    refuse_dead_connection(_Kept(), record, None)
    with pytest.raises(sqlalchemy.exc.InvalidatePoolError):
        refuse_dead_connection(_Kept(), record, None)


def test_the_deployments_settings_open_this_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    event.remove(Engine, "do_connect", connect_patiently)
    monkeypatch.setenv("POSTGRES_PASSWORD", "secret")
    # Without tables to make, opening connects to nothing.
    (tmp_path / "dagster.yaml").write_text(
        """
        telemetry: {enabled: false}
        storage:
          custom:
            module: uveitis_assets.deployment.patient_postgres
            class: PatientPostgresStorage
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
    with dg.DagsterInstance.from_config(str(tmp_path)):
        assert event.contains(Engine, "do_connect", connect_patiently)
        assert event.contains(Pool, "checkout", refuse_dead_connection)
