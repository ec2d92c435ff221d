"""The deployment's launcher on an engine whose containers are processes of this machine.

A run's environment may name the event at which its wire breaks (``BREAK_AT=after STEP_START``: the event is stored, and
the answer lost). Each such wire breaks once, so that the retry of the run, which copies its tags, keeps its connection.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import docker

from uveitis_assets.launcher import GpuDockerRunLauncher
from uveitis_assets_tests.deployment.breaking_wire import Moment, Wire
from uveitis_assets_tests.launcher.fake_engine import FakeContainer, FakeEngine

# Of the database, as the instance's settings read it.
URL_VARIABLE = "TEST_DATABASE_URL"
# Folder of the server's socket, in which wires listen too.
SERVER_VARIABLE = "TEST_DATABASE_FOLDER"
_processes = multiprocessing.get_context("forkserver")
# Without it each run would import Dagster first, which takes longer than the run.
_processes.set_forkserver_preload(["dagster", "dagster_postgres", "uveitis_assets_tests.deployment.retried_lane"])


class ProcessContainer(FakeContainer):
    """A container whose program is a process."""

    def start(self) -> None:
        self._process = _processes.Process(target=_run, args=(self.id, self.options["command"], self.environment))
        self._process.start()
        self.status = "running"

    def refresh(self) -> None:
        code = self._process.exitcode
        if code is not None:
            self.status = "exited"
            self.attrs["State"] = {"Status": "exited", "ExitCode": code}


class ProcessEngine(FakeEngine):
    """Stands for the docker client and the engine behind it."""

    def create(self, **options: Any) -> ProcessContainer:
        container = ProcessContainer(self, f"c{os.getpid()}-{next(_numbers)}", options)
        self.all.append(container)
        return container

    def get(self, container_id: str) -> FakeContainer:
        container = super().get(container_id)
        assert isinstance(container, ProcessContainer)
        container.refresh()
        return container


_numbers = itertools.count()
_engine = ProcessEngine()


class ProcessRunLauncher(GpuDockerRunLauncher):
    """The deployment's launcher, connected to that engine."""

    def __init__(self, *args: Any, **config: Any) -> None:
        docker.from_env = docker.client.from_env = lambda: _engine
        super().__init__(*args, **config)


def _run(name: str, command: Sequence[str], environment: dict[str, str]) -> None:
    """What the container executes: ``dagster api execute_run ...``, with its database at the other end of the wire."""
    os.environ.update(environment)
    if "BREAK_AT" in environment:
        server = Path(os.environ[SERVER_VARIABLE])
        wire = Wire(server, server / name, _break_once(environment["BREAK_AT"], server))
        os.environ[URL_VARIABLE] = wire.url
    sys.argv = list(command)
    runpy.run_module("dagster", run_name="__main__")


def _break_once(at: str, folder: Path) -> Callable[[str], Moment | None]:
    """Break the wire at the first statement that stores such an event, unless that happened before."""
    mark = folder / f"broke {at}"
    moment, _, kind = at.partition(" ")

    def breaks(statement: str) -> Moment | None:
        if not kind or mark.exists() or not statement.startswith("INSERT INTO event_logs") or kind not in statement:
            return None
        mark.touch()
        return Moment(moment)

    return breaks
