"""Options of every run container: user, mounts, secrets, shared memory, dropped rights.

The deployment declares its mounts here and only here, so that code locations and runs cannot disagree about them.
Everything is fresh per call: no table is shared between two runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from docker.types import Mount

from uveitis_assets.launcher.gpu import DEVICE_TAG, device_environment, device_options
from uveitis_assets.launcher.overrides import merge_deep
from uveitis_assets.launcher.refusal import LaunchRefusedError

DEPLOYMENT_LABEL = "uveitis/deployment"
# The user of the image, in place of the launcher's own.
IMAGE_USER = "image"
# Data loaders pass batches through /dev/shm; the engine's own default of 64 MB kills them. Only used pages count.
_DEFAULT_SHM_SIZE = "8g"

_SET_BY_THE_LAUNCHER = {
    "volumes": "declare mounts in the launcher's volumes and read_only_volumes",
    "mounts": "declare mounts in the launcher's volumes and read_only_volumes",
    "volumes_from": "declare mounts in the launcher's volumes and read_only_volumes",
    "tmpfs": "declare mounts in the launcher's volumes and read_only_volumes",
    "user": "set the launcher's user",
    "runtime": "the tag uveitis/gpu asks for a GPU",
    "device_requests": "the tag uveitis/gpu asks for a GPU",
    "devices": "the tag uveitis/gpu asks for a GPU",
    "privileged": "run containers give up their rights",
    "cap_add": "run containers give up their rights",
    "cap_drop": "run containers give up their rights",
    "security_opt": "run containers give up their rights",
    "pid_mode": "run containers are kept apart from the host",
    "ipc_mode": "run containers are kept apart from the host; raise shm_size",
    "network_mode": "use the launcher's networks",
    "auto_remove": "the log and the reason of a death are read from the stopped container, and retention removes it",
    "remove": "the log and the reason of a death are read from the stopped container, and retention removes it",
}
_SOCKET_FOLDERS = {"/", "/run", "/var", "/var/run"}
_SOCKETS = {"docker.sock", "containerd.sock", "podman.sock"}
_SECRET_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class ContainerSettings:
    """Settings of every container; the fields are those of ``dagster.yaml``."""

    deployment: str
    user: str
    gpu_runtime: str
    volumes: tuple[str, ...]
    read_only_volumes: tuple[str, ...]
    secrets: tuple[str, ...]
    secrets_folder: str | None

    def check(self) -> None:
        """Raise ValueError for an invalid mount or secret, before any container is made."""
        build_mounts(self)


def own_user() -> str:
    """``uid:gid`` of this process, so that the files of runs belong to the user of the daemon."""
    return f"{os.getuid()}:{os.getgid()}"


def build_mounts(settings: ContainerSettings) -> list[Mount]:
    """Mounts of every run container. The engine refuses, and does not create, a missing host folder.

    Raises:
        ValueError: a volume is not ``source:target`` or reaches the engine's socket, or a secret has no folder.
    """
    mounts = [_parse_volume(text, read_only=False) for text in settings.volumes]
    mounts += [_parse_volume(text, read_only=True) for text in settings.read_only_volumes]
    for name in settings.secrets:
        if not _SECRET_NAME.fullmatch(name):
            raise ValueError(f"secrets: {name!r} is not a name of small letters, digits and underscores")
        if settings.secrets_folder is None:
            raise ValueError(f"secrets: {name} is named, but secrets_folder, the host folder of its file, is not set")
        source = str(PurePosixPath(settings.secrets_folder) / name)
        mounts.append(_parse_volume(f"{source}:/run/secrets/{name}", read_only=True))
    targets = [mount["Target"] for mount in mounts]
    for target in targets:
        if targets.count(target) > 1:
            raise ValueError(f"volumes: {target} is mounted more than once; declare each target once")
    return mounts


def check_deployment_options(options: Mapping[str, Any]) -> None:
    """Refuse ``container_kwargs`` of the deployment or a code location that the launcher decides itself.

    Raises:
        LaunchRefusedError: names the option and what to do in its place.
    """
    for option, instead in _SET_BY_THE_LAUNCHER.items():
        if option in options:
            raise LaunchRefusedError(
                f"container_kwargs of the launcher or the code location set {option!r}: {instead}. Remove the option."
            )


def build_options(
    settings: ContainerSettings, deployment_options: Mapping[str, Any], overrides: Mapping[str, Any], device: str
) -> dict[str, Any]:
    """Options of ``containers.create`` for one run, with the run's overrides laid over the deployment's.

    The keys that Dagster's launcher passes itself (image, command, environment, network) are not among them.
    """
    base = deepcopy(dict(deployment_options))
    labels = base.pop("labels", {})
    base["labels"] = dict.fromkeys(labels, "") if isinstance(labels, list) else labels
    options = merge_deep(base, deepcopy({key: value for key, value in overrides.items() if key != "environment"}))
    options["labels"] |= {DEPLOYMENT_LABEL: settings.deployment, DEVICE_TAG: device}
    options.setdefault("shm_size", _DEFAULT_SHM_SIZE)
    if "mem_limit" in options and ("memswap_limit" not in options or "mem_limit" in overrides):
        # Without it the engine grants as much swap again, and training crawls instead of being named out of memory.
        options["memswap_limit"] = overrides.get("memswap_limit", options["mem_limit"])
    if settings.user != IMAGE_USER:
        options["user"] = settings.user
    mounts = build_mounts(settings)
    if mounts:
        options["mounts"] = mounts
    options["cap_drop"] = ["ALL"]
    options["security_opt"] = ["no-new-privileges:true"]
    return options | device_options(device, settings.gpu_runtime)


def build_environment(
    settings: ContainerSettings, deployment_environment: Sequence[str], overrides: Mapping[str, Any], device: str
) -> list[str]:
    """Variables of one run as KEY=VALUE, or KEY for the launcher's own value; later ones replace earlier."""
    # A user without an entry in the image's /etc/passwd has neither a home folder nor a name, and libraries ask.
    homeless = [] if settings.user == IMAGE_USER else ["HOME=/tmp", "USER=uveitis"]
    secrets = [f"{name.upper()}_FILE=/run/secrets/{name}" for name in settings.secrets]
    own = [f"{key}={value}" for key, value in overrides.get("environment", {}).items()]
    return [*homeless, *deployment_environment, *secrets, *own, *device_environment(device)]


def _parse_volume(text: str, *, read_only: bool) -> Mount:
    source, _, target = text.partition(":")
    mode = ""
    if ":" in target:
        target, _, mode = target.partition(":")
    if not source or not target.startswith("/") or ".." in PurePosixPath(target).parts or mode not in {"", "ro", "rw"}:
        raise ValueError(f"volumes: {text!r} is not source:/target, with :ro at most after it")
    if read_only and mode == "rw":
        raise ValueError(f"read_only_volumes: {text!r} asks to be writable; declare it in volumes or drop ':rw'")
    is_folder = source.startswith("/")
    if not is_folder and "/" in source:
        raise ValueError(f"volumes: {source!r} is a relative folder; the engine needs the host's absolute path")
    if is_folder:
        source = os.path.normpath(source)
        if source in _SOCKET_FOLDERS or PurePosixPath(source).name in _SOCKETS:
            raise ValueError(f"volumes: {text!r} would hand the engine's socket, and with it the host, to the runs")
    return Mount(
        target=target, source=source, type="bind" if is_folder else "volume", read_only=read_only or mode == "ro"
    )
