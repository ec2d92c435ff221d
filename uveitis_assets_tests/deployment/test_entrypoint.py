"""The image's entrypoint, executed here without the image."""

import os
import subprocess
from pathlib import Path

from uveitis_assets_tests.conftest import REPOSITORY
from uveitis_assets_tests.patience import patience


def _enter(home: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (home / "dagster.yaml").touch()
    return subprocess.run(
        ["sh", str(REPOSITORY / "docker" / "entrypoint.sh"), *command],
        env={"PATH": os.environ["PATH"], "DAGSTER_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(30),
    )


def test_a_file_that_is_not_the_databases_secret_does_not_become_its_password(tmp_path: Path):
    (tmp_path / "other").write_text("key of the tracker")
    done = _enter(tmp_path, "env", POSTGRES_PASSWORD_FILE=str(tmp_path / "other"))
    assert done.returncode == 78
    assert f"POSTGRES_PASSWORD_FILE={tmp_path / 'other'}: expected /run/secrets/postgres_password" in done.stderr
    assert "key of the tracker" not in done.stdout + done.stderr


def test_without_a_database_the_command_is_executed_as_it_is(tmp_path: Path):
    done = _enter(tmp_path, "env")
    assert done.returncode == 0
    assert "POSTGRES_PASSWORD" not in done.stdout
