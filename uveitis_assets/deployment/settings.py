"""The settings of a deployment: docker/.env, and docker/dagster.yaml for the containers of runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from uveitis_assets.launcher.container_options import ContainerSettings

_OURS = "UVEITIS_"
_REPOSITORY = Path(__file__).resolve().parents[2]


class SettingsError(ValueError):
    """The settings file is not one that docker/prepare.sh wrote; the message names what is missing."""


@dataclass(frozen=True, slots=True)
class DeploymentSettings:
    """Folders of the host, the uid and gid that own them, and the names of image and deployment."""

    file: Path
    deployment: str
    image: str
    url: str
    uid: int
    gid: int
    socket: Path
    data: Path
    raw: Path
    state: Path
    secrets: Path
    instance_file: Path

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read lines of NAME=value, with or without the prefix UVEITIS_; comments and other names are skipped.

        The launcher's configuration is that of dagster.yaml beside the file, else of docker/dagster.yaml.

        Raises:
            SettingsError: the file cannot be read, a name is missing, or a number is none.
        """
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"{file}: it cannot be read: {error}; call this as its owner, or name the file that "
                "docker/prepare.sh wrote"
            ) from None
        entries = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
        values = {name.removeprefix(_OURS): value for name, _, value in entries}
        beside = file.resolve().parent / "dagster.yaml"
        instance_file = beside if beside.is_file() else _REPOSITORY / "docker/dagster.yaml"
        try:
            return cls(
                instance_file=instance_file,
                file=file,
                deployment=values["DEPLOYMENT"],
                image=values["IMAGE_TAG"],
                url=f"http://127.0.0.1:{_number(values, 'PORT')}",
                uid=_number(values, "UID"),
                gid=_number(values, "GID"),
                socket=Path(values["DOCKER_SOCKET"]),
                data=Path(values["DATA"]),
                raw=Path(values["RAW"]),
                state=Path(values["STATE"]),
                secrets=Path(values["SECRETS"]),
            )
        except KeyError as error:
            raise SettingsError(
                f"{file}: found no {error.args[0]}; delete the file and call docker/prepare.sh again"
            ) from None
        except ValueError as error:
            raise SettingsError(f"{file}: {error}; correct it, or delete the file and call docker/prepare.sh") from None

    @property
    def launcher(self) -> Mapping[str, Any]:
        """``run_launcher.config`` of dagster.yaml.

        Raises:
            SettingsError: the file cannot be read, or has none.
        """
        return _launcher_configuration(self.instance_file)

    @property
    def container_settings(self) -> ContainerSettings:
        """Settings of run containers on this host, as the launcher has them.

        Raises:
            SettingsError: dagster.yaml cannot be read, or names a variable that compose does not give to the daemon.
        """
        configured = self.launcher
        return ContainerSettings(
            deployment=self._value(configured.get("deployment", "uveitis")),
            user=self._value(configured.get("user", f"{self.uid}:{self.gid}")),
            gpu_runtime=str(configured.get("gpu_runtime", "nvidia")),
            volumes=tuple(self._value(volume) for volume in configured.get("volumes", ())),
            read_only_volumes=tuple(self._value(volume) for volume in configured.get("read_only_volumes", ())),
            secrets=tuple(configured.get("secrets", ())),
            secrets_folder=self._value(configured.get("secrets_folder", str(self.secrets))),
        )

    @property
    def container_options(self) -> dict[str, Any]:
        """Further options of run containers: ``container_kwargs`` of the launcher."""
        return dict(self.launcher.get("container_kwargs") or {})

    def _value(self, configured: Any) -> str:
        """A text, or the value that compose gives to the variable behind ``env``."""
        if not isinstance(configured, Mapping):
            return str(configured)
        # As docker/compose.yaml derives them.
        given = {
            "DEPLOYMENT": self.deployment,
            "USER": f"{self.uid}:{self.gid}",
            "DATA_MOUNT": f"{self.data}:{self.data}",
            "RAW_MOUNT": f"{self.raw}:{self.raw}",
            "STATE_MOUNT": f"{self.state}/dagster:/state",
            "SECRETS_FOLDER": str(self.secrets),
        }
        name = str(configured.get("env"))
        if name.removeprefix(_OURS) not in given:
            raise SettingsError(
                f"{self.instance_file}: {name}: expected a variable that docker/compose.yaml gives to the daemon, one "
                f"of {', '.join(_OURS + one for one in sorted(given))}; correct the file"
            )
        return given[name.removeprefix(_OURS)]


def _launcher_configuration(file: Path) -> Mapping[str, Any]:
    """``run_launcher.config`` of a dagster.yaml; raises SettingsError where the file has none."""
    try:
        configuration = yaml.safe_load(file.read_text(encoding="utf-8"))["run_launcher"]["config"]
    except FileNotFoundError:
        raise SettingsError(f"{file}: found no such file; call this in the repository's folder") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{file}: it cannot be read: {error}; correct the file") from None
    except (KeyError, TypeError):
        configuration = None
    if not isinstance(configuration, Mapping):
        raise SettingsError(f"{file}: expected run_launcher with config, found none; correct the file")
    return configuration


def _number(values: Mapping[str, str], name: str) -> int:
    try:
        return int(values[name])
    except ValueError:
        raise ValueError(f"{name}: expected a whole number, found {values[name]!r}") from None
