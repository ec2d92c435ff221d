"""Fixtures of the deployment's tests."""

import os
from pathlib import Path

import pytest

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
