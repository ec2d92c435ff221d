"""Commands of a host that only operates a deployment start without torch and without what reads images."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "cv2", "sam2", "timm", "matplotlib"}:
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Missing())
from uveitis_assets.cli import app
app()
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("submit", "uwf700", "--url", "http://127.0.0.1:9"), "no web server answers"),
        (("doctor",), "disk space: data"),
        (("backup", "backups"), "expected the settings that docker/prepare.sh wrote"),
        (("restore", "nothing"), "expected backup.json, found none"),
        (("alert-test", "alerts.yaml"), "found no such file"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_the_command_does_its_work(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT, *arguments],
        cwd=tmp_path,
        env=os.environ | {"UVEITIS_DATA": str(tmp_path), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said in done.stdout, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
