"""The deployment's database container, and whether anything else of the deployment is at work."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

from uveitis_assets.deployment.postgres_tools import PostgresTools

if TYPE_CHECKING:
    from uveitis_assets.deployment.settings import DeploymentSettings

_DATABASE = "postgres"


class ServicesError(RuntimeError):
    """The deployment is not in the state that a command needs; the message says how to bring it there."""


def find_database(settings: DeploymentSettings) -> PostgresTools:
    """Programs of Postgres in the running database container.

    Raises:
        ServicesError: the engine does not answer, or the database does not run.
    """
    containers = _list(settings, _of_service(settings, _DATABASE))
    if not containers:
        raise ServicesError(
            f"{settings.deployment}: found no running database; start it with docker/compose.sh up -d {_DATABASE}"
        )
    return PostgresTools.in_container(containers[0], _docker(settings))


def check_at_rest(settings: DeploymentSettings) -> None:
    """See that no service but the database, and no run, is at work.

    Raises:
        ServicesError: something is, or the engine does not answer.
    """
    project = _list(settings, [f"label=com.docker.compose.project={settings.deployment}"])
    services = set(project) - set(_list(settings, _of_service(settings, _DATABASE)))
    runs = set(_list(settings, [f"label=uveitis/deployment={settings.deployment}"])) - services
    if services or runs:
        raise ServicesError(
            f"{settings.deployment}: found {len(services)} services and {len(runs)} runs at work, expected the "
            f"database alone; nothing was changed. Call docker/compose.sh down, then docker/compose.sh up -d "
            f"{_DATABASE}, and let runs end or stop them"
        )


def _of_service(settings: DeploymentSettings, service: str) -> list[str]:
    return [
        f"label=com.docker.compose.project={settings.deployment}",
        f"label=com.docker.compose.service={service}",
    ]


def _docker(settings: DeploymentSettings) -> list[str]:
    return ["docker", "--host", f"unix://{settings.socket}"]


def _list(settings: DeploymentSettings, filters: Sequence[str]) -> list[str]:
    """Ids of running containers."""
    command = [*_docker(settings), "ps", "--quiet", "--no-trunc"]
    for one in filters:
        command += ["--filter", one]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ServicesError("docker: found no such program; install Docker's client") from None
    if done.returncode != 0:
        raise ServicesError(f"{settings.socket}: the engine does not answer: {done.stderr.strip()}")
    return done.stdout.split()
