"""Check this host, from engine to disk space, and print what is wrong with its remedy.

With the settings of a deployment (docker/.env) it checks the deployment, else what a single machine needs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from uveitis_assets.deployment.engine_checks import (
    START_THE_ENGINE,
    check_engine,
    check_gpu_runtime,
    check_image,
    check_run_container,
)
from uveitis_assets.deployment.findings import Finding, failure
from uveitis_assets.deployment.host_checks import (
    check_dagster_home,
    check_disk_space,
    check_folders,
    check_sam2_checkpoint,
    check_webserver,
)
from uveitis_assets.deployment.settings import DeploymentSettings, SettingsError

if TYPE_CHECKING:
    from docker import DockerClient

_COLOURS = {"ok": "green", "warning": "yellow", "failure": "red"}


def diagnose_single_machine(data: Path) -> Iterator[Finding]:
    """Checks of what ``make dev`` and in-place runs need."""
    yield check_dagster_home(os.environ)
    yield check_sam2_checkpoint(data)
    yield check_disk_space(data, "data")


def diagnose_deployment(settings: DeploymentSettings) -> Iterator[Finding]:
    """Checks of what docker/compose.yaml and run containers need, as far as they can be made."""
    yield from check_folders(settings)
    yield check_disk_space(settings.data, "data")
    yield check_disk_space(settings.state, "state")
    yield check_sam2_checkpoint(settings.data)
    client = _connect(settings.socket)
    if isinstance(client, Finding):
        yield client
        return
    try:
        yield from diagnose_engine(client, settings)
    finally:
        client.close()
    yield from check_webserver(settings.url)


def diagnose_engine(client: DockerClient, settings: DeploymentSettings) -> Iterator[Finding]:
    """Checks of engine, GPU runtime, image, and a container with the options of a run."""
    engine = check_engine(client)
    yield engine
    if engine.verdict == "failure":
        return
    yield check_gpu_runtime(client, settings.container_settings.gpu_runtime)
    yield check_disk_space(Path(client.info()["DockerRootDir"]), "images and containers")
    image = check_image(client, settings.image)
    yield image
    if image.verdict != "failure":
        variables = [f"UVEITIS_DATA={settings.data}", f"UVEITIS_RAW={settings.raw}"]
        yield from check_run_container(
            client, settings.image, settings.container_settings, variables, settings.container_options
        )


def examine(settings_file: Path, data: Path, console: Console) -> bool:
    """Print a table of all findings and then the remedies; return whether nothing failed.

    Args:
        settings_file: of the deployment; where it is missing, a single machine is checked.
        data: root of the artefacts of a single machine.
        console: where to print.
    """
    with console.status("Checking"):
        if settings_file.is_file():
            try:
                findings = list(diagnose_deployment(DeploymentSettings.read(settings_file)))
            except SettingsError as error:
                findings = [failure("settings", str(error), "see docs/how-to/deploy.md")]
        else:
            findings = list(diagnose_single_machine(data))
    subject = f"the deployment of {settings_file}" if settings_file.is_file() else "this machine, without Docker"
    _print(findings, subject, console)
    return all(finding.verdict != "failure" for finding in findings)


def _print(findings: Sequence[Finding], subject: str, console: Console) -> None:
    table = Table("check", "", title=f"Checked {subject}", title_justify="left")
    table.add_column("found", overflow="fold")
    for finding in findings:
        colour = _COLOURS[finding.verdict]
        table.add_row(escape(finding.check), f"[{colour}]{finding.verdict}[/{colour}]", escape(finding.detail))
    console.print(table)
    for finding in findings:
        if finding.remedy:
            text = f"{finding.check}: {finding.remedy}"
            console.print(text, style=_COLOURS[finding.verdict], markup=False, highlight=False, soft_wrap=True)


def _connect(socket: Path) -> DockerClient | Finding:
    import docker
    from docker.errors import DockerException

    try:
        client: DockerClient = docker.DockerClient(base_url=f"unix://{socket}", timeout=120)
    except DockerException as error:
        return failure("engine", f"{socket}: {error}", START_THE_ENGINE)
    return client
