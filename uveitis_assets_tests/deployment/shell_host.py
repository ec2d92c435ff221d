"""A host for the scripts under docker/, with a docker that records its arguments."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from uveitis_assets_tests.conftest import REPOSITORY
from uveitis_assets_tests.patience import patience

DOCKER = REPOSITORY / "docker"
RECORDING_DOCKER = """\
#!/bin/sh
if [ "$1" = info ]; then echo "$FAKE_RUNTIMES"; exit 0; fi
printf 'BUILDKIT=%s\\n' "${DOCKER_BUILDKIT:-}" >"$FAKE_RECORD"
printf '%s\\n' "$@" >>"$FAKE_RECORD"
"""


@dataclass
class Host:
    """A host with a docker that records, and with or without an NVIDIA GPU."""

    root: Path
    environment: dict[str, str]

    def call(self, script: str, *arguments: str, **variables: str) -> list[str]:
        """Run the script; returns the arguments that docker got."""
        done = self.run(script, *arguments, **variables)
        assert done.returncode == 0, done.stderr
        return (self.root / "record").read_text().splitlines()[1:]

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [DOCKER / script, *arguments],
            env=self.environment | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=patience(60),
            stdin=subprocess.DEVNULL,
        )

    def add_gpu(self) -> None:
        self.program("nvidia-smi", "#!/bin/sh\necho 'GPU 0: a test'\n")
        self.environment["FAKE_RUNTIMES"] = '{"nvidia":{"path":"nvidia-container-runtime"},"runc":{"path":"runc"}}'

    def program(self, name: str, text: str) -> None:
        path = self.root / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
