"""Fixtures of the deployment's tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from uveitis_assets_tests.deployment.postgres_server import find_server
from uveitis_assets_tests.deployment.shell_host import RECORDING_DOCKER, Host


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host without a GPU."""
    (tmp_path / "bin").mkdir()
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "FAKE_RECORD": str(tmp_path / "record"),
        "FAKE_RUNTIMES": '{"runc":{"path":"runc"}}',
        "UVEITIS_DATA": str(tmp_path / "data"),
        "DAGSTER_HOME": str(tmp_path / "dagster_home"),
    }
    host = Host(tmp_path, environment)
    host.program("docker", RECORDING_DOCKER)
    return host


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """A fresh instance on disk, whose daemons never ran."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(home)) as made:
        yield made


@pytest.fixture(scope="session")
def postgres_programs() -> Path:
    """Folder of the programs of a Postgres server."""
    found = find_server()
    if found is None:
        pytest.skip("no Postgres server is installed: apt-get install postgresql")
    return found
