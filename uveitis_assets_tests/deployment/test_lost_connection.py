"""A run whose connection to its database breaks in the middle of a statement is retried and finishes.

Everything but the engine is the deployment's: launcher, run monitoring and retries of a real daemon, and a real server.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy
import yaml
from sqlalchemy.exc import OperationalError

from uveitis_assets_tests.conftest import REPOSITORY
from uveitis_assets_tests.deployment import retried_lane
from uveitis_assets_tests.deployment.postgres_server import Server, serve
from uveitis_assets_tests.deployment.process_containers import SERVER_VARIABLE, URL_VARIABLE
from uveitis_assets_tests.patience import patience

pytestmark = [pytest.mark.slow, pytest.mark.timeout(patience(180))]

# Before anything is made, when something is made, and when nothing is left to do.
_SUCCESS = dg.DagsterEventType.RUN_SUCCESS
_BREAKS = ("before STEP_START", "after ASSET_MATERIALIZATION", f"after {_SUCCESS.value}")
_UNDISTURBED = "never"


@pytest.fixture(scope="module")
def server(postgres_programs: Path) -> Iterator[Server]:
    with serve(postgres_programs) as made:
        yield made


@pytest.fixture
def home(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An instance with the deployment's settings for storage, monitoring and retries."""
    monkeypatch.setenv(URL_VARIABLE, server.url)
    monkeypatch.setenv(SERVER_VARIABLE, str(server.folder))
    monkeypatch.setenv(retried_lane.BREAKS_VARIABLE, str(tmp_path / "breaks"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    settings = yaml.safe_load((REPOSITORY / "docker" / "dagster.yaml").read_text())
    kept = {name: settings[name] for name in ("telemetry", "storage", "run_monitoring", "run_retries")}
    kept["storage"]["custom"]["config"] = {"postgres_url": {"env": URL_VARIABLE}}
    kept["run_monitoring"]["poll_interval_seconds"] = 1
    kept["run_queue"] = {"dequeue_interval_seconds": 1}
    kept["run_launcher"] = {
        "module": "uveitis_assets_tests.deployment.process_containers",
        "class": "ProcessRunLauncher",
        "config": {"image": "none", "run_variables": {"BREAK_AT": "[A-Za-z_ ]+"}},
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(kept))
    return tmp_path


@contextmanager
def _daemon(home: Path) -> Iterator[None]:
    program = Path(sys.executable).with_name("dagster-daemon")
    with (home / "daemon.log").open("wb") as log:
        command = [program, "run", "--module-name", retried_lane.__name__]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.terminate()
            process.wait(patience(60))


def _runs(instance: dg.DagsterInstance, at: str) -> list[dg.DagsterRun]:
    """The run whose wire breaks there and its retries, oldest first."""
    return list(reversed(instance.get_runs(dg.RunsFilter(tags={"break_at": at}))))


def _wait_for_success(instance: dg.DagsterInstance, home: Path) -> None:
    waited_for = [*_BREAKS, _UNDISTURBED]
    deadline = time.monotonic() + patience(120)
    while waited_for:
        waited_for = [
            at for at in waited_for if not any(run.status is dg.DagsterRunStatus.SUCCESS for run in _runs(instance, at))
        ]
        assert time.monotonic() < deadline, (waited_for, (home / "daemon.log").read_text()[-4000:])
        time.sleep(0.5)


def _events(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Counter[tuple[str, str | None, str | None]]:
    """Events of the run's steps and its success: kind, step and partition."""
    events = [entry.get_dagster_event() for entry in instance.all_logs(run.run_id) if entry.is_dagster_event]
    return Counter(
        (event.event_type_value, event.step_key, event.partition)
        for event in events
        if event.step_key is not None or event.event_type is _SUCCESS
    )


def test_a_run_that_loses_its_database_is_retried_and_leaves_every_event_once(home: Path) -> None:
    (home / "breaks").write_text("\n".join([*_BREAKS, _UNDISTURBED]))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        with _daemon(home):
            _wait_for_success(instance, home)
        [undisturbed] = _runs(instance, _UNDISTURBED)
        expected = _events(instance, undisturbed)
        assert expected["ASSET_MATERIALIZATION", "pictures", "left"] == 1
        assert expected[_SUCCESS.value, None, None] == 1
        for at in _BREAKS:
            failed, retry = _runs(instance, at)
            assert failed.status is dg.DagsterRunStatus.FAILURE
            messages = [entry.message for entry in instance.all_logs(failed.run_id)]
            assert any("The run lost its connection to Dagster's database" in message for message in messages)
            assert retry.parent_run_id == failed.run_id
            assert _events(instance, retry) == expected, at


def test_kept_connections_are_replaced_after_a_crash_and_other_processes_than_runs_get_errors(
    home: Path, server: Server
) -> None:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        # As the web server does: its connections are kept.
        instance.optimize_for_webserver(statement_timeout=50, pool_recycle=3600, max_overflow=1)
        count = instance.get_runs_count()
        server.kill()
        server.start()
        assert instance.get_runs_count() == count
        with pytest.raises(OperationalError, match="statement timeout"):
            instance.run_storage.fetchall(sqlalchemy.select(sqlalchemy.func.pg_sleep(20)))
