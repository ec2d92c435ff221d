"""Services that restart while a run is at work, and artefacts that are right all the same."""

import time
from pathlib import Path
from typing import Any

import pytest

from uveitis_assets.deployment.retrying_postgres import LOST_CONNECTION_EXIT_CODE
from uveitis_assets.sample import write_fgadr
from uveitis_assets_tests.docker.in_place import artefacts, make_fgadr_in_place
from uveitis_assets_tests.docker.stack import Stack
from uveitis_assets_tests.patience import patience

pytestmark = [pytest.mark.docker, pytest.mark.timeout(patience(1800))]

# The run's step is done within seconds, and Dagster by itself gives up on its database after about eleven.
_OUTAGE_S = 40


def _land_new_images(stack: Stack, work: Path, number: int, size: int = 256) -> None:
    write_fgadr(work / "drawn", 6, number, size)
    for file in sorted((work / "drawn").rglob("*.png"), reverse=True):
        file.rename(file.with_name(f"{number}{file.name}"))
    stack.land(work / "drawn")
    stack.stop_sensors("fgadr")
    stack.in_code_server("uveitis-assets", "register", "fgadr")


def _at_work(stack: Stack, known: set[str]) -> dict[str, Any]:
    def started() -> dict[str, Any] | None:
        runs = [run for run in stack.runs() if run["runId"] not in known and run["status"] == "STARTED"]
        return runs[0] if runs else None

    return dict(stack.wait("a run at work", started))


def _runs(stack: Stack, known: set[str]) -> list[tuple[str, str]]:
    return [(run["jobName"], run["status"]) for run in stack.runs() if run["runId"] not in known]


def _check_artefacts(stack: Stack, work: Path) -> None:
    made = artefacts(stack.settings.data, "fgadr")
    assert artefacts(make_fgadr_in_place(stack.settings, work / "in_place"), "fgadr") == made
    assert list(stack.settings.data.rglob("*.partial")) == []


def test_a_submission_goes_on_after_restarts_of_daemon_web_server_and_code_server(stack: Stack, tmp_path: Path) -> None:
    _land_new_images(stack, tmp_path, 3)
    known = {run["runId"] for run in stack.runs()}
    submission = stack.start_submit("fgadr", "--all")
    run = _at_work(stack, known)
    with stack.slowed(run):
        restarted = stack.compose("restart", "daemon", "webserver", "code-server")
        assert restarted.returncode == 0, restarted.stderr
        stack.wait_until_healthy()
        assert stack.run(run["runId"])["status"] == "STARTED"
    output, _ = submission.communicate(timeout=patience(300))
    assert submission.returncode == 0, output
    expected = [("fgadr_lane", "SUCCESS"), ("fgadr_labels", "SUCCESS")]
    assert _runs(stack, known) == expected, "each ran once, and none was retried"
    _check_artefacts(stack, tmp_path)


def test_a_submission_succeeds_though_postgres_restarts_and_crashes(stack: Stack, tmp_path: Path) -> None:
    _land_new_images(stack, tmp_path, 5, 1024)
    known = {run["runId"] for run in stack.runs()}
    submission = stack.start_submit("fgadr", "--all")
    run = _at_work(stack, known)
    with stack.slowed(run):
        restarted = stack.compose("restart", "postgres")
        assert restarted.returncode == 0, restarted.stderr
        stack.wait_until_healthy()
        killed = stack.compose("kill", "postgres")
        assert killed.returncode == 0, killed.stderr
    time.sleep(_OUTAGE_S)
    # Or the crash came in the middle of a statement: the run is then retried.
    container = stack.container(run)
    assert container.status == "running" or container.attrs["State"]["ExitCode"] == LOST_CONNECTION_EXIT_CODE
    started = stack.compose("start", "postgres")
    assert started.returncode == 0, started.stderr
    output, _ = submission.communicate(timeout=patience(300))
    assert submission.returncode == 0, output
    stack.wait_until_healthy()
    succeeded = [job for job, status in _runs(stack, known) if status == "SUCCESS"]
    assert succeeded == ["fgadr_lane", "fgadr_labels"]
    _check_artefacts(stack, tmp_path)


@pytest.mark.parametrize(
    ("service", "check"),
    [
        ("webserver", ["healthcheck.sh", "web"]),
        ("code-server", ["healthcheck.sh", "code-server"]),
        # Daemons note a heartbeat every 30 s.
        ("daemon", ["healthcheck.sh", "daemon", "60"]),
        ("stop-gate", ["healthcheck.sh", "engine-proxy"]),
        ("postgres", ["pg_isready", "--username", "dagster", "--dbname", "dagster", "--host", "127.0.0.1"]),
    ],
)
def test_a_frozen_service_is_unhealthy(stack: Stack, service: str, check: list[str]) -> None:
    container = stack.service(service)

    def is_healthy() -> bool:
        return bool(container.exec_run(check).exit_code == 0)

    stack.wait(f"{service} to be healthy", is_healthy)
    assert container.exec_run(["sh", "-c", "kill -STOP -1"]).exit_code == 0
    # Process 1 takes this signal from outside only; in Postgres' container it is the server.
    container.kill(signal="SIGSTOP")
    try:
        stack.wait(f"{service} to be unhealthy", lambda: not is_healthy())
    finally:
        container.kill(signal="SIGCONT")
        assert container.exec_run(["sh", "-c", "kill -CONT -1"]).exit_code == 0
    stack.wait(f"{service} to be healthy again", is_healthy)
