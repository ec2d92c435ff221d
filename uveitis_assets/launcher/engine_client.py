"""The Docker engine that this process reaches, by the settings of its environment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import docker
from docker.errors import DockerException

# docker-py passes lost connections on as those of its HTTP library, which are OSErrors.
ENGINE_ERRORS = (DockerException, OSError)


@contextmanager
def docker_client() -> Iterator[Any]:
    """A client of the engine that is closed afterwards."""
    client = docker.from_env()
    try:
        yield client
    finally:
        client.close()


def reaches_engine() -> bool:
    """Whether an engine answers this process."""
    try:
        with docker_client() as client:
            return bool(client.ping())
    except ENGINE_ERRORS:
        return False
