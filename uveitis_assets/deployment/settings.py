"""The settings that ``docker/prepare.sh`` wrote for compose, read by the checks of the deployment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from uveitis_assets.launcher.container_options import ContainerSettings

_OURS = "UVEITIS_"


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

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read lines of NAME=value, with or without the prefix UVEITIS_; comments and other names are skipped.

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
        try:
            return cls(
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
    def container_settings(self) -> ContainerSettings:
        """Settings of run containers on this host, as the launcher of docker/dagster.yaml has them."""
        return ContainerSettings(
            deployment=self.deployment,
            user=f"{self.uid}:{self.gid}",
            gpu_runtime="nvidia",
            volumes=(f"{self.data}:{self.data}", f"{self.state}/dagster:/state"),
            read_only_volumes=(f"{self.raw}:{self.raw}",),
            secrets=("postgres_password", "uveitis_wandb_key"),
            secrets_folder=str(self.secrets),
        )


def _number(values: Mapping[str, str], name: str) -> int:
    try:
        return int(values[name])
    except ValueError:
        raise ValueError(f"{name}: expected a whole number, found {values[name]!r}") from None
