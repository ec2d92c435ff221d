"""The deployment's launcher on an engine in memory, whose containers run nothing."""

from typing import Any

import docker

from uveitis_assets.launcher import GpuDockerRunLauncher
from uveitis_assets_tests.launcher.fake_engine import FakeEngine

_engine = FakeEngine()


class RecordingRunLauncher(GpuDockerRunLauncher):
    """Writes devices on runs as the deployment does."""

    def __init__(self, *args: Any, **config: Any) -> None:
        docker.from_env = docker.client.from_env = lambda: _engine
        super().__init__(*args, **config)
