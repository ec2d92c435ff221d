"""The deployment on a real engine: the image of this repository and docker/compose.yaml, started as a user does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker

from uveitis_assets.deployment.graphql_client import WebserverError
from uveitis_assets.deployment.settings import DeploymentSettings
from uveitis_assets.deployment.webserver import Webserver
from uveitis_assets_tests.conftest import REPOSITORY
from uveitis_assets_tests.docker.engine import BASE_IMAGE, ToolMissingError, build_image, ensure_base_image, free_port
from uveitis_assets_tests.patience import patience

IMAGE = "uveitis-assets-test:latest"
POSTGRES_IMAGE = "uveitis-assets-test-postgres:latest"
DEPLOYMENT = "uveitis-stack-test"
# As root nobody on this host: what belongs to it was written by the deployment's containers.
OWNER = (4711, 4711) if os.geteuid() == 0 else (os.getuid(), os.getgid())
TRACKING_KEY = "0123456789abcdef" * 2 + "01234567"
FINISHED = {"SUCCESS", "FAILURE", "CANCELED"}
_UP_S = 180
_RUNS = """
{ runsOrError(limit: 100) { ... on Runs { results {
    runId status jobName creationTime startTime endTime parentRunId tags { key value } } } } }
"""


def build_images(client: docker.DockerClient) -> None:
    """Build the deployment's image, and one of Postgres for hosts without a registry; layers are cached."""
    ensure_base_image(client)
    build_image(IMAGE, REPOSITORY, dockerfile=REPOSITORY / "docker/Dockerfile", arguments={"BASE_IMAGE": BASE_IMAGE})
    build_image(POSTGRES_IMAGE, Path(__file__).with_name("postgres_image"))


@dataclass(frozen=True)
class Stack:
    """A running deployment."""

    client: docker.DockerClient
    settings: DeploymentSettings

    def compose(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Call docker compose on this deployment."""
        return _compose(self.settings.file, *arguments)

    def in_code_server(self, *command: str) -> str:
        """Output of a command in the code server's container."""
        done = self.compose("exec", "-T", "code-server", "entrypoint.sh", *command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Call `uveitis-assets submit` as a user of this host does, and wait for its end."""
        process = self.start_submit(*arguments)
        output, _ = process.communicate(timeout=patience(300))
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def start_submit(self, *arguments: str) -> subprocess.Popen[str]:
        """The same without waiting."""
        command = [sys.executable, "-m", "uveitis_assets.cli", "submit", *arguments]
        environment = os.environ | {"UVEITIS_URL": self.settings.url, "PYTHONPATH": str(REPOSITORY)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def stop_sensors(self, lane: str) -> None:
        """From here on the lane runs by command only."""
        for sensor in (f"{lane}_landing", f"{lane}_labels_refresh"):
            self.in_code_server("dagster", "sensor", "stop", sensor, "--workspace", "/opt/uveitis/workspace.yaml")

    def land(self, source: Path) -> None:
        """Copy files into the folder of raw images, as their owner."""
        for file in sorted(source.rglob("*")):
            target = self.settings.raw / file.relative_to(source)
            if file.is_dir():
                target.mkdir(exist_ok=True)
            else:
                shutil.copy(file, target)
            os.chown(target, *OWNER)

    def land_under_new_names(self, source: Path, mark: str) -> None:
        """Land drawn images beside others: ``Uveitis-001.jpg`` becomes ``Uveitis-<mark>-001.jpg``."""
        renamed = source.with_name(f"{source.name}-{mark}")
        for file in sorted(found for found in source.rglob("*") if found.is_file()):
            target = renamed / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target.with_name(file.name.replace("-", f"-{mark}-", 1)))
        self.land(renamed)

    def graphql(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Data of an answer of the web server."""
        request = urllib.request.Request(
            f"{self.settings.url}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=patience(60)) as answer:
            return dict(json.load(answer)["data"])

    def runs(self) -> list[dict[str, Any]]:
        """All runs with their tags as a mapping, oldest first."""
        results = self.graphql(_RUNS, {})["runsOrError"]["results"]
        for run in results:
            run["tags"] = {tag["key"]: tag["value"] for tag in run["tags"]}
        return sorted(results, key=lambda run: float(run["creationTime"]))

    def run(self, run_id: str) -> dict[str, Any]:
        """One run, as ``runs`` returns it."""
        return next(run for run in self.runs() if run["runId"] == run_id)

    def wait(self, what: str, condition: Callable[[], Any], limit_s: float = 240) -> Any:
        """What the condition returns once it is true; the services' logs when it does not come true."""
        deadline = time.monotonic() + patience(limit_s)
        while True:
            try:
                found = condition()
            except (OSError, WebserverError):
                found = None
            if found:
                return found
            if time.monotonic() > deadline:
                logs = self.compose("logs", "--tail", "40").stdout
                raise AssertionError(f"waited {limit_s} s for {what}; logs:\n{logs[-8000:]}")
            time.sleep(0.3)

    def wait_until_healthy(self) -> None:
        webserver = Webserver(self.settings.url)
        self.wait("the daemons", lambda: (health := webserver.daemons()) and all(health.values()))
        self.wait("the code location", webserver.assets)

    def containers(self) -> list[Any]:
        """Containers of the services and of all runs, stopped ones included."""
        services = self.client.containers.list(all=True, filters={"label": f"com.docker.compose.project={DEPLOYMENT}"})
        return services + self.run_containers()

    def container(self, run: Mapping[str, Any]) -> Any:
        """The container of a run."""
        [found] = self.client.containers.list(all=True, filters={"label": f"dagster/run_id={run['runId']}"})
        return found

    @contextmanager
    def slowed(self, run: Mapping[str, Any]) -> Iterator[None]:
        """Give the run's container a twentieth of a processor, so that it is still at work when the block ends."""
        container = self.container(run)
        container.update(cpu_period=100_000, cpu_quota=5_000)
        try:
            yield
        finally:
            container.update(cpu_quota=-1)

    def service(self, name: str) -> Any:
        """Container of a service of the compose file."""
        labels = [f"com.docker.compose.project={DEPLOYMENT}", f"com.docker.compose.service={name}"]
        [container] = self.client.containers.list(filters={"label": labels})
        return container

    def run_containers(self) -> list[Any]:
        return list(self.client.containers.list(all=True, filters={"label": f"uveitis/deployment={DEPLOYMENT}"}))


@contextmanager
def bring_up(client: docker.DockerClient, work: Path) -> Iterator[Stack]:
    """Prepare a host in ``work``, start the stack, and take it down with all its containers at the end."""
    settings_file = work / "env"
    (work / "tracking_key").write_text(TRACKING_KEY)
    variables = {
        "SETTINGS_FILE": str(settings_file),
        "UVEITIS_HOME": str(work / "home"),
        "UVEITIS_UID": str(OWNER[0]),
        "UVEITIS_GID": str(OWNER[1]),
        "UVEITIS_DEPLOYMENT": DEPLOYMENT,
        "IMAGE_TAG": IMAGE,
        "POSTGRES_IMAGE": POSTGRES_IMAGE,
        "PORT": str(free_port()),
        "UVEITIS_WORKERS": "2",
        "WANDB_KEY_FILE": str(work / "tracking_key"),
    }
    subprocess.run([REPOSITORY / "docker/prepare.sh"], env=_plain_environment() | variables, check=True)
    stack = Stack(client, DeploymentSettings.read(settings_file))
    try:
        up = stack.compose("up", "-d")
        assert up.returncode == 0, up.stdout + up.stderr + stack.compose("logs").stdout
        stack.wait_until_healthy()
        yield stack
    finally:
        stack.compose("down", "--timeout", "5")
        for container in stack.run_containers():
            container.remove(force=True)


def _compose(settings_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*_compose_command(), "--env-file", str(settings_file), "-f", str(REPOSITORY / "docker/compose.yaml")]
    return subprocess.run(
        [*command, *arguments],
        env=_plain_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(_UP_S),
    )


def _compose_command() -> list[str]:
    """`docker compose`, or the program that came before it.

    Raises:
        ToolMissingError: neither is installed.
    """
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if plugin.returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise ToolMissingError("docker compose is missing: apt-get install -y docker-compose")


def _plain_environment() -> Mapping[str, str]:
    """Variables without those of this project, which would win over the settings file."""
    ours = ("UVEITIS_", "IMAGE_TAG", "POSTGRES_IMAGE", "PORT", "DOCKER_GID", "DOCKER_SOCKET")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}
