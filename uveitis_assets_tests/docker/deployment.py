"""A small deployment on a real engine: code location in a container, daemon and webserver beside it, SQLite between.

Run containers and the host share DAGSTER_HOME under one path, so that SQLite serves both.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import docker
import yaml
from dagster_graphql import DagsterGraphQLClient
from docker.errors import NotFound

from uveitis_assets_tests.conftest import REPOSITORY
from uveitis_assets_tests.docker.engine import build_image, ensure_base_image, free_port
from uveitis_assets_tests.patience import patience

IMAGE = "uveitis-assets-test-run:latest"
LOCATION = "in_a_container"
DEPLOYMENT = "uveitis-assets-tests"
SECRET = "a tracker key that nobody may read from the engine"
_RUN_IMAGE = Path(__file__).with_name("run_image")
_START_S = 90
_FINISHED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


def build_run_image(client: docker.DockerClient, work: Path) -> None:
    """Build the image of code location and runs; layers are cached by the engine."""
    ensure_base_image(client)
    context = work / "context"
    context.mkdir()
    for source in (*_RUN_IMAGE.iterdir(), REPOSITORY / "constraints.txt"):
        if source.is_file():
            shutil.copy(source, context)
    build_image(IMAGE, context)


@dataclass
class Deployment:
    """The running services and the folders that they share with the run containers."""

    client: docker.DockerClient
    home: Path
    shared: Path
    instance: dg.DagsterInstance
    graphql: DagsterGraphQLClient
    logs: tuple[Path, ...]

    def submit(self, asset: str, tags: Mapping[str, str] | None = None) -> str:
        """Ask for a run of one asset as the UI does; returns the run id."""
        return self._submit("__ASSET_JOB", tags, asset_selection=[asset])

    def submit_job(self, job: str, tags: Mapping[str, str] | None = None) -> str:
        """Ask for a run of a whole job; returns the run id."""
        return self._submit(job, tags)

    def _submit(self, job: str, tags: Mapping[str, str] | None, **selection: Any) -> str:
        return self.graphql.submit_job_execution(
            job,
            repository_location_name=LOCATION,
            repository_name="__repository__",
            run_config={},
            tags=dict(tags or {}),
            **selection,
        )

    def run(self, run_id: str) -> dg.DagsterRun:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run

    def finished(self, run_id: str) -> dg.DagsterRun:
        """The run after its end, however it ended."""
        self.wait(f"the end of run {run_id}", lambda: self.run(run_id).status in _FINISHED)
        return self.run(run_id)

    def wait(self, what: str, condition: Callable[[], object], limit_s: float = 90) -> None:
        deadline = time.monotonic() + patience(limit_s)
        while not condition():
            if time.monotonic() > deadline:
                tails = "\n".join(log.read_text(errors="replace")[-4000:] for log in self.logs)
                statuses = [(run.run_id, run.status, run.tags) for run in self.instance.get_runs(limit=5)]
                raise AssertionError(f"waited {patience(limit_s)} s for {what}; runs: {statuses}; logs:\n{tails}")
            time.sleep(0.2)

    def container(self, run_id: str) -> Any:
        """The run's container, once it runs or has run."""

        def _started() -> bool:
            container_id = self.run(run_id).tags.get("docker/container_id")
            if container_id is None:
                return False
            try:
                return bool(self.client.containers.get(container_id).status != "created")
            except NotFound:
                return False

        self.wait(f"the container of run {run_id}", _started)
        return self.client.containers.get(self.run(run_id).tags["docker/container_id"])

    def messages(self, run_id: str) -> list[str]:
        """All messages of the run's event log; a failure's own text among them."""
        logs = self.instance.all_logs(run_id)
        return [entry.dagster_event.message or "" if entry.dagster_event else entry.message for entry in logs]

    def metadata(self, asset: str) -> dict[str, Any]:
        """Metadata of the asset's latest materialization."""
        event = self.instance.get_latest_materialization_event(dg.AssetKey(asset))
        assert event is not None
        assert event.asset_materialization is not None
        return {key: value.value for key, value in event.asset_materialization.metadata.items()}


@contextmanager
def deploy(client: docker.DockerClient, work: Path) -> Iterator[Deployment]:
    """Start code location, daemon and webserver; stop them and remove this deployment's containers at the end."""
    folders = {name: work / name for name in ("home", "shared", "raw", "secrets", "logs")}
    for folder in folders.values():
        folder.mkdir()
    (folders["raw"] / "image.png").write_text("pixels")
    (folders["secrets"] / "tracker_key").write_text(SECRET)
    code_port, web_port = free_port(), free_port()
    (folders["home"] / "dagster.yaml").write_text(yaml.safe_dump(_instance_settings(folders)))
    workspace = {"load_from": [{"grpc_server": {"host": "127.0.0.1", "port": code_port, "location_name": LOCATION}}]}
    (folders["home"] / "workspace.yaml").write_text(yaml.safe_dump(workspace))

    code = client.containers.run(
        IMAGE,
        ["dagster", "api", "grpc", "-h", "127.0.0.1", "-p", str(code_port), "-f", "/code/code_location.py"],
        detach=True,
        network_mode="host",
        environment={"DAGSTER_CURRENT_IMAGE": IMAGE},
        labels={"uveitis-assets-tests/role": "code location"},
    )
    processes: list[subprocess.Popen[bytes]] = []
    try:
        logs = tuple(folders["logs"] / name for name in ("dagster-daemon", "dagster-webserver"))
        arguments = (["run"], ["-h", "127.0.0.1", "-p", str(web_port)])
        _wait_for_port(code_port, lambda: _is_running(code), lambda: code.logs().decode(errors="replace"))
        # Opened first: two services that create the same SQLite tables at once leave them with two schema versions.
        with dg.DagsterInstance.from_config(str(folders["home"])) as instance:
            for log, own in zip(logs, arguments, strict=True):
                # Only the daemon may reach the engine; the web server has no need of it.
                engine = {} if log.name == "dagster-daemon" else {"DOCKER_HOST": f"unix://{work}/no-engine.sock"}
                processes.append(_service(log, own, folders["home"], engine))
            _wait_for_port(web_port, lambda: processes[1].poll() is None, logs[1].read_text)
            yield Deployment(
                client=client,
                home=folders["home"],
                shared=folders["shared"],
                instance=instance,
                graphql=DagsterGraphQLClient("127.0.0.1", port_number=web_port),
                logs=logs,
            )
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        code.remove(force=True)
        for left in client.containers.list(all=True, filters={"label": f"uveitis/deployment={DEPLOYMENT}"}):
            left.remove(force=True)


def _instance_settings(folders: Mapping[str, Path]) -> dict[str, Any]:
    return {
        "telemetry": {"enabled": False},
        "run_launcher": {
            "module": "uveitis_assets.launcher",
            "class": "GpuDockerRunLauncher",
            "config": {
                "deployment": DEPLOYMENT,
                "volumes": [f"{folders[name]}:{folders[name]}" for name in ("home", "shared")],
                "read_only_volumes": [f"{folders['raw']}:/data/raw"],
                "secrets": ["tracker_key"],
                "secrets_folder": str(folders["secrets"]),
                "env_vars": [f"SHARED_FOLDER={folders['shared']}"],
                "container_kwargs": {"mem_limit": "1g", "shm_size": "96m", "labels": {"team": "retina"}},
                "run_variables": {"OWN_VARIABLE": "[0-9]"},
            },
        },
        "run_monitoring": {"enabled": True, "poll_interval_seconds": 2, "free_slots_after_run_end_seconds": 5},
        "run_retries": {"enabled": True, "max_retries": 1, "retry_on_asset_or_op_failure": False},
        "concurrency": {"pools": {"granularity": "op", "default_limit": 1}},
    }


def _service(log: Path, arguments: list[str], home: Path, engine: Mapping[str, str]) -> subprocess.Popen[bytes]:
    program = Path(sys.executable).parent / log.name
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, str(program), *arguments, "-w", str(home / "workspace.yaml")],
            env=os.environ | {"DAGSTER_HOME": str(home), "PYTHONPATH": str(REPOSITORY)} | engine,
            cwd=home,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A group of its own: the daemon's children end with it.
            start_new_session=True,
        )


def _wait_for_port(port: int, is_alive: Callable[[], bool], log: Callable[[], str]) -> None:
    deadline = time.monotonic() + patience(_START_S)
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if not is_alive() or time.monotonic() > deadline:
            raise AssertionError(f"nothing listens on port {port} after at most {_START_S} s:\n{log()[-4000:]}")
        time.sleep(0.2)


def _is_running(container: Any) -> bool:
    container.reload()
    return bool(container.status == "running")


def overrides(**options: Any) -> dict[str, str]:
    """The tag with which a run sets options of its container."""
    return {"docker/container_kwargs": json.dumps(options)}
