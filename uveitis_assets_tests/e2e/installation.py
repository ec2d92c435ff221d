"""A user's installation in a temporary folder: data, DAGSTER_HOME and real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg

from uveitis_assets_tests.components.running_platform import artefacts
from uveitis_assets_tests.patience import patience

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@dataclass
class Installation:
    """Folders and environment of one installation; ``environment`` overrides single variables."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / "dagster.yaml", self.home)

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def raw(self) -> Path:
        return Path(self.environment.get("UVEITIS_RAW", self.data / "raw"))

    def variables(self) -> dict[str, str]:
        """The environment of a process; the test runner's own settings do not leak into it."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("UVEITIS_", "DAGSTER_"))}
        return inherited | {
            "DAGSTER_HOME": str(self.home),
            "UVEITIS_DATA": str(self.data),
            "UVEITIS_WORKERS": "1",
            "COLUMNS": "80",
            **self.environment,
        }

    def start(self, *command: str, cwd: Path = REPOSITORY) -> subprocess.Popen[str]:
        """Start a program of the virtual environment in a session of its own."""
        return subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            env=self.variables(),
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str, cwd: Path = REPOSITORY, timeout_s: float = 120) -> tuple[int, str]:
        """Run a program to its end; exit code and everything it printed."""
        process = self.start(*command, cwd=cwd)
        output, _ = process.communicate(timeout=patience(timeout_s))
        return process.returncode, output

    def succeed(self, *command: str, cwd: Path = REPOSITORY, timeout_s: float = 120) -> str:
        code, output = self.run(*command, cwd=cwd, timeout_s=timeout_s)
        assert code == 0, f"{' '.join(command)} ended with {code}:\n{output[-6000:]}"
        return output

    def materialize(self, select: str, *partition: str, module: str = "uveitis_assets.definitions") -> str:
        return self.succeed("dagster", "asset", "materialize", "-m", module, "--select", select, *partition)

    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.home))

    def artefacts(self) -> dict[str, bytes]:
        """Content of everything that was made, by path relative to the data folder."""
        return artefacts(self.data)


def land(sample: Path, raw: Path, names: list[str]) -> None:
    """Copy files, given by their path below the sample, into a raw folder."""
    for name in names:
        target = raw / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(sample / name, target)
