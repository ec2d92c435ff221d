"""The settings that ``docker/prepare.sh`` wrote for compose, read again by whoever checks the deployment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from uveitis_assets.launcher.container_options import ContainerSettings


class SettingsError(ValueError):
    """The settings file is not one that docker/prepare.sh wrote; the message says what it lacks."""


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
        """Read lines of NAME=value; comments and names that are not needed are skipped.

        Raises:
            SettingsError: a name is missing or a number is none.
            OSError: the file cannot be read.
        """
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        values = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
        try:
            return cls(
                file=file,
                deployment=values["UVEITIS_DEPLOYMENT"],
                image=values["IMAGE_TAG"],
                url=f"http://127.0.0.1:{int(values['PORT'])}",
                uid=int(values["UVEITIS_UID"]),
                gid=int(values["UVEITIS_GID"]),
                socket=Path(values["DOCKER_SOCKET"]),
                data=Path(values["UVEITIS_DATA"]),
                raw=Path(values["UVEITIS_RAW"]),
                state=Path(values["UVEITIS_STATE"]),
                secrets=Path(values["UVEITIS_SECRETS"]),
            )
        except KeyError as error:
            raise SettingsError(
                f"{file}: found no {error.args[0]}; delete the file and call docker/prepare.sh again"
            ) from None
        except ValueError as error:
            raise SettingsError(f"{file}: {error}; correct the number, or delete the file and prepare again") from None

    @property
    def container_settings(self) -> ContainerSettings:
        """How the launcher of docker/dagster.yaml makes run containers on this host."""
        return ContainerSettings(
            deployment=self.deployment,
            user=f"{self.uid}:{self.gid}",
            gpu_runtime="nvidia",
            volumes=(f"{self.data}:/data", f"{self.state}/dagster:/state"),
            read_only_volumes=(f"{self.raw}:/raw",),
            secrets=("postgres_password",),
            secrets_folder=str(self.secrets),
        )
