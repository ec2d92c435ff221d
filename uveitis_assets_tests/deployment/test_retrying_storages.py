"""Runs that outlive the death of any of their connections, and a log that looks as if nothing had happened."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
import dagster_postgres
import psycopg2
import pytest
import sqlalchemy
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError

from uveitis_assets.deployment import retrying_postgres as patient_postgres
from uveitis_assets.deployment import retrying_storages as outliving_storages
from uveitis_assets.deployment.retrying_storages import (
    RetryingEventLogStorage,
    RetryingRunStorage,
    retry_lost_connections,
)
from uveitis_assets_tests.deployment import interrupted_job
from uveitis_assets_tests.deployment.breaking_postgres import Moment, Server, Wire, find_server, serve
from uveitis_assets_tests.deployment.disturbed_deployment import AtEveryStatement, AtNumber, Breaks, Crashes, Deployment

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    programs = find_server()
    if programs is None:
        pytest.skip("no Postgres server is installed: apt-get install postgresql")
    with serve(programs) as made:
        yield made


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outliving_storages, "_BETWEEN_ATTEMPTS_S", 0.0)
    monkeypatch.setattr(patient_postgres, "_BETWEEN_CALLS_S", 0.02)
    monkeypatch.setattr(dagster_postgres.utils, "calculate_delay", lambda **_: 0.0)


@pytest.fixture(scope="module")
def deployment(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    wire = Wire(server)
    made = Deployment(server, wire, tmp_path_factory.mktemp("home"))
    made.open().dispose()
    # The first run of all has no earlier one to refer to.
    made.run(interrupted_job.show_and_tear, Breaks())
    yield made
    wire.close()


def test_an_undisturbed_run_leaves_what_the_others_are_held_to(deployment: Deployment) -> None:
    shown, _ = deployment.undisturbed(interrupted_job.show)
    assert shown["status"] == ["SUCCESS"]
    # One of each partition by itself, and one of each by the result; one observation.
    assert sum('"event_type_value": "ASSET_MATERIALIZATION"' in event for event in shown["events"]) == 4
    assert {key for _, _, key, _ in shown["tags"]} == {"dagster/data_version"}, "Dagster looks up no other"
    assert [check[2:5] for check in shown["checks"]] == [("in_focus", None, "SUCCEEDED")]
    assert [asset for asset, _ in shown["assets"]] == ['["pictures"]']
    assert shown["places in pools"] == [(interrupted_job.POOL, None, None)], "taken and given back"
    assert shown["lines"] == []
    torn, _ = deployment.undisturbed(interrupted_job.show_and_tear)
    assert torn["status"] == ["FAILURE"]
    assert {("dagster/failure_reason", "STEP_FAILURE"), ("dagster/will_retry", "false")} <= set(torn["run tags"])


# The run that fails writes all that one does that succeeds, but for the word. Dying before a statement leaves the
# database as dying after the statement before it does, and the next test does both.
def test_a_run_outlives_the_death_of_its_connection_at_any_statement(deployment: Deployment) -> None:
    job = interrupted_job.show_and_tear
    expected, heard = deployment.undisturbed(job)
    broken = 0
    for number in range(1, max(heard) + 1):
        breaks = AtNumber(number, Moment.AFTER)
        assert deployment.left_behind(deployment.run(job, breaks)) == expected, f"statement {number} of each operation"
        broken += breaks.broken
    assert broken == sum(heard) > 100, "each statement was met"


@pytest.mark.parametrize("moment", Moment)
def test_a_run_outlives_connections_that_die_again_while_it_repeats(deployment: Deployment, moment: Moment) -> None:
    expected, _ = deployment.undisturbed(interrupted_job.show)
    breaks = AtEveryStatement(moment)
    assert deployment.left_behind(deployment.run(interrupted_job.show, breaks)) == expected
    assert breaks.broken > 60


@pytest.mark.parametrize("moment", Moment)
def test_a_run_outlives_servers_that_are_killed(deployment: Deployment, server: Server, moment: Moment) -> None:
    expected, _ = deployment.undisturbed(interrupted_job.show)
    breaks = Crashes(31, moment, server.crash)
    assert deployment.left_behind(deployment.run(interrupted_job.show, breaks)) == expected
    assert breaks.broken > 3


def _at_each_number() -> Iterator[Breaks]:
    """A wire that breaks at the first statement of what follows, the second, until none is left, in both ways."""
    for moment in Moment:
        for number in itertools.count(1):
            breaks = AtNumber(number, moment)
            yield breaks
            if not breaks.broken:
                assert number > 1
                break


# Dagster stores the first kind in one statement, and the second one by one.
@pytest.mark.parametrize(
    "kind", [dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED]
)
def test_events_stored_in_a_batch_stand_once_in_the_log(deployment: Deployment, kind: dg.DagsterEventType) -> None:
    run_id = deployment.run(interrupted_job.show, Breaks())
    with deployment.open() as instance:
        events = instance.all_logs(run_id, of_type=kind)

        def store(copy: str, breaks: Breaks) -> Mapping[str, Any]:
            with breaks.at_work(deployment.wire):
                instance.event_log_storage.store_event_batch([event._replace(run_id=copy) for event in events])
            return deployment.left_behind(copy)

        expected = store(f"{run_id}-whole", Breaks())
        assert len(expected["events"]) == len(events) > 0
        for number, breaks in enumerate(_at_each_number()):
            assert store(f"{run_id}-{number}", breaks) == expected


@pytest.mark.parametrize("of", ["step", "run"])
def test_a_freed_place_in_a_pool_goes_to_the_next_in_line(deployment: Deployment, of: str) -> None:
    with deployment.open() as instance:
        line = instance.event_log_storage
        for breaks in _at_each_number():
            line.set_concurrency_slots("line", 1)
            assert line.claim_concurrency_slot("line", "first", "step").is_claimed
            assert not line.claim_concurrency_slot("line", "second", "step").is_claimed
            with breaks.at_work(deployment.wire):
                if of == "step":
                    line.free_concurrency_slot_for_step("first", "step")
                else:
                    line.free_concurrency_slots_for_run("first")
            assert line.claim_concurrency_slot("line", "second", "step").is_claimed
            line.free_concurrency_slots_for_run("second")
            assert line.get_concurrency_info("line").claimed_slots == []
        line.delete_concurrency_limit("line")


def test_a_run_begins_though_connections_die_while_its_storage_opens(deployment: Deployment) -> None:
    for breaks in _at_each_number():
        with breaks.at_work(deployment.wire), deployment.open() as instance:
            assert instance.get_runs_count() >= 0


def test_the_web_servers_kept_connections_are_replaced_after_a_crash(deployment: Deployment, server: Server) -> None:
    with deployment.open() as instance:
        instance.optimize_for_webserver(statement_timeout=15_000, pool_recycle=3600, max_overflow=1)
        count = instance.get_runs_count()
        server.crash()
        assert instance.get_runs_count() == count
        for moment in Moment:
            breaks = AtEveryStatement(moment)
            with breaks.at_work(deployment.wire):
                assert instance.get_runs_count() == count
            assert breaks.broken


def test_a_statement_that_takes_too_long_is_not_repeated(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    with deployment.open() as instance:
        instance.optimize_for_webserver(statement_timeout=50, pool_recycle=3600, max_overflow=1)
        storage = instance.run_storage
        assert isinstance(storage, RetryingRunStorage)
        with pytest.raises(OperationalError, match="statement timeout"):
            storage.fetchall(sqlalchemy.select(sqlalchemy.func.pg_sleep(20)))
    assert "trying again" not in caplog.text


def _error(kind: type[DBAPIError], *, dead: bool) -> DBAPIError:
    return kind("SELECT 1", {}, psycopg2.OperationalError("it says\nwhy"), connection_invalidated=dead)


@pytest.mark.parametrize("kind", [OperationalError, IntegrityError, InterfaceError])
def test_what_a_living_server_refuses_is_refused_at_once(kind: type[DBAPIError]) -> None:
    attempts = iter([_error(kind, dead=False)])

    def operate() -> None:
        raise next(attempts)

    with pytest.raises(kind, match="it says"):
        retry_lost_connections(operate)


def test_repeating_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outliving_storages, "REPEATING_S", 0.05)
    attempts = 0

    def operate() -> None:
        nonlocal attempts
        attempts += 1
        raise _error(OperationalError, dead=True)

    with pytest.raises(OperationalError, match="it says"):
        retry_lost_connections(operate)
    assert attempts > 2


@pytest.mark.parametrize(
    ("storage", "not_repeated"),
    [
        (
            RetryingRunStorage,
            # What makes runs and backfills, or is the daemons' own.
            {"add_run", "add_historical_run", "add_backfill", "update_backfill", "set_cursor_values"}
            | {"add_daemon_heartbeat", "wipe_daemon_heartbeats", "replace_job_origin", "add_run_telemetry"}
            # What calls operations that are repeated, and what sends nothing.
            | {"add_snapshot", "connect", "dispose", "optimize_for_webserver", "register_instance"}
            | {"supports_run_telemetry"}
            # What a person does.
            | {"delete_run", "wipe", "migrate", "optimize", "upgrade", "mark_index_built", "alembic_version"},
        ),
        (
            RetryingEventLogStorage,
            # Parts of operations that are repeated.
            {"add_pending_step", "assign_pending_steps", "check_concurrency_claim", "enable_secondary_index"}
            | {"store_asset_event", "store_asset_event_tags", "store_asset_check_event"}
            # What sends nothing by itself.
            | {"prepare_insert_event", "prepare_insert_event_batch", "watch", "end_watch", "dispose"}
            | {"run_connection", "index_connection", "index_transaction", "register_instance"}
            | {"optimize_for_webserver", "default_run_scoped_event_tailer_offset"}
            # What a person does.
            | {"set_concurrency_slots", "delete_concurrency_limit", "wipe", "wipe_asset", "wipe_asset_partitions"}
            | {"delete_events", "delete_events_for_run", "update_event_log_record"}
            | {"upgrade", "reindex_events", "reindex_assets", "alembic_version"},
        ),
    ],
)
def test_each_operation_of_dagsters_storages_is_repeated_or_named_here(storage: type, not_repeated: set[str]) -> None:
    [dagsters] = storage.__bases__
    operations = {name for name, _ in inspect.getmembers(dagsters, inspect.isfunction) if not name.startswith("_")}
    left = {name for name in operations if getattr(storage, name) is getattr(dagsters, name)}
    assert left - {"create_clean_storage"} == not_repeated
