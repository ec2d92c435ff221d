"""A run gets the device that its assets ask for, also where the code server is away when its turn comes.

Code server, daemon, queue and the commands that queue runs are real; the containers are not.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
import yaml

from uveitis_assets_tests.conftest import REPOSITORY
from uveitis_assets_tests.deployment import trained_lane
from uveitis_assets_tests.patience import patience

pytestmark = [pytest.mark.slow, pytest.mark.timeout(patience(300))]

_BIN = Path(sys.executable).parent


@pytest.fixture
def port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def home(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    server = {"host": "127.0.0.1", "port": port, "location_name": "lane"}
    (tmp_path / "workspace.yaml").write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}))
    _settings(tmp_path)
    return tmp_path


def _settings(home: Path, *, without_needs: bool = False) -> None:
    """The deployment's queue, or Dagster's own, which writes no need on runs."""
    settings = yaml.safe_load((REPOSITORY / "docker" / "dagster.yaml").read_text())
    kept = {name: settings[name] for name in ("telemetry", "run_coordinator", "concurrency")}
    kept["run_coordinator"]["config"] |= {"dequeue_interval_seconds": 1, "user_code_failure_retry_delay": 2}
    if without_needs:
        kept["run_coordinator"] = {"module": "dagster", "class": "QueuedRunCoordinator"}
    kept["run_launcher"] = {
        "module": "uveitis_assets_tests.deployment.recording_launcher",
        "class": "RecordingRunLauncher",
        "config": {"image": "none"},
    }
    (home / "dagster.yaml").write_text(yaml.safe_dump(kept))


@contextmanager
def _process(home: Path, name: str, *command: str) -> Iterator[None]:
    with (home / f"{name}.log").open("ab") as log:
        process = subprocess.Popen([_BIN / command[0], *command[1:]], stdout=log, stderr=subprocess.STDOUT, cwd=home)
        try:
            yield
        finally:
            process.terminate()
            process.wait(patience(60))


@contextmanager
def _code_server(home: Path, port: int) -> Iterator[None]:
    command = ("dagster", "api", "grpc", "--module-name", trained_lane.__name__, "--port", str(port))
    with _process(home, "code_server", *command, "--host", "127.0.0.1", "--location-name", "lane"):
        check = [_BIN / "dagster", "api", "grpc-health-check", "--port", str(port)]
        _wait(lambda: subprocess.run(check, capture_output=True, check=False).returncode == 0, home, "the code server")
        yield


def _daemon(home: Path) -> contextmanager[None]:
    return _process(home, "daemon", "dagster-daemon", "run", "--workspace", str(home / "workspace.yaml"))


def _queue(home: Path, job: str) -> None:
    command = [_BIN / "dagster", "job", "launch", "--workspace", home / "workspace.yaml", "--location", "lane"]
    subprocess.run([*command, "--job", job], check=True, cwd=home, timeout=patience(120))


def _wait(condition: Callable[[], bool], home: Path, what: str) -> None:
    deadline = time.monotonic() + patience(150)
    while not condition():
        logs = {path.name: path.read_text()[-3000:] for path in sorted(home.glob("*.log"))}
        assert time.monotonic() < deadline, (what, logs)
        time.sleep(0.5)


def _tags(instance: dg.DagsterInstance, job: str) -> dict[str, str]:
    [run] = instance.get_runs(dg.RunsFilter(job_name=job))
    return dict(run.tags)


def test_a_queued_training_gets_the_gpu_though_the_code_server_is_away_when_its_turn_comes(
    home: Path, port: int
) -> None:
    with _code_server(home, port):
        _queue(home, "training")
        _queue(home, "reporting")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert _tags(instance, "training")["uveitis/gpu_need"] == "preferred"
        assert _tags(instance, "reporting")["uveitis/gpu_need"] == "none"
        with _daemon(home):
            for job, device in (("training", "gpu"), ("reporting", "cpu")):
                _wait(lambda job=job: "uveitis/device" in _tags(instance, job), home, job)  # type: ignore[misc]
                assert _tags(instance, job)["uveitis/device"] == device


def test_a_run_of_unknown_need_waits_for_the_code_server(home: Path, port: int) -> None:
    _settings(home, without_needs=True)
    with _code_server(home, port):
        _queue(home, "training")
    _settings(home)
    with dg.DagsterInstance.from_config(str(home)) as instance, _daemon(home):
        [run] = instance.get_runs()

        def waits() -> int:
            messages = [entry.message for entry in instance.all_logs(run.run_id)]
            return sum("re-submitting the run into the queue" in message for message in messages)

        _wait(lambda: waits() >= 2, home, "the run is put back")
        assert "uveitis/device" not in _tags(instance, "training"), "it was not taken for a run without a need"
        with _code_server(home, port):
            _wait(lambda: "uveitis/device" in _tags(instance, "training"), home, "the run is launched")
        assert _tags(instance, "training")["uveitis/device"] == "gpu"
