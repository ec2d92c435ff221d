"""Checks without the engine: folders, secrets, disk space, DAGSTER_HOME, SAM 2, the web server."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from uveitis_assets.deployment.findings import Finding, failure, ok, warning
from uveitis_assets.deployment.graphql_client import WebserverError
from uveitis_assets.deployment.webserver import Webserver

if TYPE_CHECKING:
    from uveitis_assets.deployment.settings import DeploymentSettings

_GB = 1e9
_DISK_FAILURE_GB = 5.0
_DISK_WARNING_GB = 20.0
_WHAT_PREPARING_MAKES = {
    "postgres_password": "makes one for a new deployment; the password of a database that is there has to be restored",
    "smtp_password": "makes an empty file, for alerts that need none",
    "alert_webhook": "makes an empty file, for alerts that need none",
    "uveitis_wandb_key": "makes an empty file, or copies the key from the file that WANDB_KEY_FILE names",
}
_MAY_BE_EMPTY = {"uveitis_wandb_key", "smtp_password", "alert_webhook"}


def check_folders(settings: DeploymentSettings) -> list[Finding]:
    """Whether the mounted folders and secrets exist and belong to the deployment's user."""
    findings = []
    for name, folder in (
        ("data", settings.data),
        ("raw images", settings.raw),
        ("state", settings.state / "dagster"),
        ("Postgres", settings.state / "postgres"),
        ("engine proxy", settings.state / "engine"),
        ("monitor", settings.state / "monitor"),
        ("secrets", settings.secrets),
    ):
        findings.append(_check_folder(name, folder, settings))
    if settings.raw.resolve().is_relative_to(settings.data.resolve()):
        findings.append(
            failure(
                "raw images",
                f"{settings.raw} lies inside {settings.data}, which runs may write to",
                f"move the raw images out and set UVEITIS_RAW in {settings.file}",
            )
        )
    # Those of runs, and those that the monitor mounts.
    names = dict.fromkeys((*settings.container_settings.secrets, "smtp_password", "alert_webhook"))
    return findings + [_check_secret(name, settings) for name in names]


def _check_folder(name: str, folder: Path, settings: DeploymentSettings) -> Finding:
    check = f"folder: {name}"
    try:
        found = folder.stat()
    except PermissionError:
        return warning(check, f"{folder}: may not be looked at by uid {os.getuid()}", "call this with sudo")
    except FileNotFoundError:
        return failure(
            check, f"{folder}: found no folder", f"mkdir -p {folder} && chown {settings.uid}:{settings.gid} {folder}"
        )
    if not stat.S_ISDIR(found.st_mode):
        return failure(check, f"{folder}: found a file", f"move it away and make a folder, or change {settings.file}")
    if name != "raw images" and found.st_uid != settings.uid:
        return failure(
            check,
            f"{folder}: belongs to uid {found.st_uid}, containers run as {settings.uid}",
            f"chown -R {settings.uid}:{settings.gid} {folder}",
        )
    return ok(check, str(folder))


def _check_secret(name: str, settings: DeploymentSettings) -> Finding:
    check, file = f"secret: {name}", settings.secrets / name
    remedy = f"write the secret to it, and chown {settings.uid}:{settings.gid} {file} && chmod 600 {file}"
    if name in _WHAT_PREPARING_MAKES:
        remedy = f"SETTINGS_FILE={settings.file} docker/prepare.sh {_WHAT_PREPARING_MAKES[name]}"
    try:
        found = file.stat()
    except PermissionError:
        return warning(check, f"{file}: may not be looked at by uid {os.getuid()}", "call this with sudo")
    except FileNotFoundError:
        return failure(check, f"{file}: found no file, and containers mount it", remedy)
    if found.st_size == 0 and name not in _MAY_BE_EMPTY:
        return failure(check, f"{file}: is empty", remedy)
    if found.st_uid != settings.uid or stat.S_IMODE(found.st_mode) & 0o077:
        return failure(
            check,
            f"{file}: belongs to uid {found.st_uid} with mode {stat.S_IMODE(found.st_mode):03o}",
            f"chown {settings.uid}:{settings.gid} {file} && chmod 600 {file}",
        )
    return ok(check, "readable by its owner only" if found.st_size else "empty")


def check_disk_space(folder: Path, what: str) -> Finding:
    """Free space of the file system of ``folder``, or of its nearest parent that exists."""
    check = f"disk space: {what}"
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / _GB
    detail = f"{free:.0f} GB free at {folder}"
    remedy = "free some space, or move the folder to a larger disk"
    if free < _DISK_FAILURE_GB:
        return failure(check, detail, remedy)
    return warning(check, detail, remedy) if free < _DISK_WARNING_GB else ok(check, detail)


def check_dagster_home(environment: Mapping[str, str]) -> Finding:
    """Whether DAGSTER_HOME of a single machine is set, absolute, with settings, and its storage opens."""
    check = "DAGSTER_HOME"
    home = environment.get("DAGSTER_HOME")
    if not home:
        return failure(check, "is not set", "export DAGSTER_HOME=$PWD/.dagster_home, as `make dev` does")
    if not Path(home).is_absolute():
        return failure(check, f"{home}: is relative", f"export DAGSTER_HOME={Path(home).resolve()}")
    if not (Path(home) / "dagster.yaml").is_file():
        return failure(
            check, f"{home}: holds no dagster.yaml", f"mkdir -p {home} && cp dagster.yaml {home}/ in the repository"
        )
    if not os.access(home, os.W_OK):
        return failure(check, f"{home}: may not be written by uid {os.getuid()}", f"chown {os.getuid()} {home}")
    import dagster as dg

    try:
        with dg.DagsterInstance.from_config(home) as instance:
            count = instance.get_runs_count()
    except Exception as error:
        # Any storage, with any driver, may be configured: each has errors of its own.
        return failure(
            check,
            f"{home}: the storage does not open: {type(error).__name__}: {error}",
            f"correct {home}/dagster.yaml; after an upgrade of Dagster call `dagster instance migrate`",
        )
    return ok(check, f"{home}, {count} runs")


def check_sam2_checkpoint(data: Path) -> Finding:
    """Whether the SAM 2 checkpoints of the lanes that use it are there."""
    from uveitis_assets.components.fundus.lanes import LanesError, load_lanes

    check = "SAM 2 checkpoint"
    wanted: dict[Path, list[str]] = {}
    try:
        configured = load_lanes()
    except LanesError as error:
        return failure(check, str(error), "correct the lane's defs.yaml")
    for name, lane in configured.items():
        tags = ("", *lane.roi.method_by_dataset)
        if any("sam2_prompted" in lane.roi.methods_for(tag) for tag in tags):
            wanted.setdefault(data / lane.roi.sam2.checkpoint, []).append(name)
    if not wanted:
        return ok(check, "no lane uses SAM 2")
    for file, lanes in sorted(wanted.items()):
        try:
            size = file.stat().st_size
        except PermissionError:
            return warning(check, f"{file}: may not be looked at by uid {os.getuid()}", "call this with sudo")
        except FileNotFoundError:
            size = 0
        if size == 0:
            return failure(
                check,
                f"{file}: found no checkpoint for {', '.join(lanes)}",
                f"UVEITIS_DATA={data} docker/sam2_weights.sh",
            )
    return ok(check, ", ".join(str(file) for file in sorted(wanted)))


def check_webserver(url: str) -> list[Finding]:
    """Whether web server, database, code server and daemons answer."""
    try:
        webserver = Webserver(url)
        daemons = webserver.daemons()
    except WebserverError as error:
        return [failure("web server", str(error), "docker/compose.sh logs webserver postgres")]
    findings = [ok("web server", f"{url}, with its database")]
    unhealthy = sorted(name for name, healthy in daemons.items() if not healthy)
    if unhealthy:
        findings.append(failure("daemon", f"not running: {', '.join(unhealthy)}", "docker/compose.sh logs daemon"))
    else:
        findings.append(ok("daemon", f"{len(daemons)} running"))
    try:
        count = len(webserver.assets())
    except WebserverError as error:
        findings.append(failure("code server", str(error), "docker/compose.sh logs code-server"))
    else:
        findings.append(ok("code server", f"{count} assets"))
    return findings
