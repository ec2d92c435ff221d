"""docker/prepare.sh: settings, folders and secrets of a deployment."""

import getpass
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from uveitis_assets_tests.deployment.shell_host import Host


@pytest.fixture
def engine_socket(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        yield path


def _settings(host: Host) -> dict[str, str]:
    lines = (host.root / "env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def _prepare(host: Host, engine_socket: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    own = {
        "SETTINGS_FILE": str(host.root / "env"),
        "UVEITIS_HOME": str(host.root / "home"),
        "UVEITIS_DATA": "",
        "UVEITIS_UID": "4321",
        "UVEITIS_GID": "4322",
        "DOCKER_SOCKET": str(engine_socket),
    }
    return host.run("prepare.sh", **(own | variables))


def test_preparing_makes_a_password_that_only_its_owner_can_read(host: Host, engine_socket: Path) -> None:
    done = _prepare(host, engine_socket)
    assert done.returncode == 0, done.stderr
    password = host.root / "home/secrets/postgres_password"
    assert len(password.read_text()) == 48
    assert stat.S_IMODE(password.stat().st_mode) == 0o600
    settings = _settings(host)
    assert password.read_text() not in (host.root / "env").read_text() + done.stdout + done.stderr
    assert settings["UVEITIS_UID"] == "4321"
    assert settings["DOCKER_GID"] == str(engine_socket.stat().st_gid)
    if getpass.getuser() == "root":
        assert (password.stat().st_uid, password.stat().st_gid) == (4321, 4322)


def test_preparing_twice_changes_nothing(host: Host, engine_socket: Path) -> None:
    _prepare(host, engine_socket)
    before = (host.root / "env").read_bytes(), (host.root / "home/secrets/postgres_password").read_bytes()
    assert _prepare(host, engine_socket, PORT="9999").returncode == 0
    assert ((host.root / "env").read_bytes(), (host.root / "home/secrets/postgres_password").read_bytes()) == before
    (host.root / "env").unlink()
    assert _prepare(host, engine_socket, PORT="9999").returncode == 0
    assert _settings(host)["PORT"] == "9999"
    assert (host.root / "home/secrets/postgres_password").read_bytes() == before[1]


def test_preparing_again_makes_the_secrets_that_an_older_version_did_not(host: Host, engine_socket: Path) -> None:
    folder = {"UVEITIS_SECRETS": str(host.root / "kept apart")}
    assert _prepare(host, engine_socket, **folder).returncode == 0
    password = (host.root / "kept apart/postgres_password").read_bytes()
    settings = (host.root / "env").read_bytes()
    secret = host.root / "kept apart/uveitis_wandb_key"
    secret.unlink()
    # The folder, uid and gid are those of the deployment, whatever the second call's variables say.
    done = _prepare(host, engine_socket, UVEITIS_UID="77")
    assert done.returncode == 0, done.stderr
    assert secret.read_bytes() == b""
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    if getpass.getuser() == "root":
        assert (secret.stat().st_uid, secret.stat().st_gid) == (4321, 4322)
    assert (host.root / "env").read_bytes() == settings
    assert (host.root / "kept apart/postgres_password").read_bytes() == password
    assert not (host.root / "home/secrets").exists()


def test_a_tracking_key_given_later_fills_the_empty_file_and_replaces_no_other_key(
    host: Host, engine_socket: Path
) -> None:
    assert _prepare(host, engine_socket).returncode == 0
    secret, key = host.root / "home/secrets/uveitis_wandb_key", host.root / "key"
    assert secret.read_bytes() == b""
    key.write_text("0123456789\n")
    done = _prepare(host, engine_socket, WANDB_KEY_FILE=str(key))
    assert done.returncode == 0, done.stderr
    assert secret.read_text() == "0123456789\n"
    key.write_text("9876543210\n")
    done = _prepare(host, engine_socket, WANDB_KEY_FILE=str(key))
    assert f"{secret} holds another key than {key}" in done.stdout
    assert secret.read_text() == "0123456789\n"
    done = _prepare(host, engine_socket, WANDB_KEY_FILE=str(host.root / "none"))
    assert (done.returncode, "found no such file" in done.stderr) == (2, True)


def test_a_lost_password_of_a_database_is_not_replaced(host: Host, engine_socket: Path) -> None:
    assert _prepare(host, engine_socket).returncode == 0
    (host.root / "home/state/postgres/pgdata").mkdir()
    (host.root / "home/secrets/postgres_password").unlink()
    done = _prepare(host, engine_socket)
    assert (done.returncode, "Restore the file" in done.stderr) == (2, True)
    assert not (host.root / "home/secrets/postgres_password").exists()


def test_the_tracking_key_is_copied_to_the_secrets_and_an_empty_file_stands_for_none(
    host: Host, engine_socket: Path
) -> None:
    (host.root / "key").write_text("0123456789\n")
    done = _prepare(host, engine_socket, WANDB_KEY_FILE=str(host.root / "key"))
    assert done.returncode == 0, done.stderr
    secret = host.root / "home/secrets/uveitis_wandb_key"
    assert secret.read_text() == "0123456789\n"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert "0123456789" not in (host.root / "env").read_text() + done.stdout + done.stderr

    (host.root / "env").unlink()
    assert _prepare(host, engine_socket).returncode == 0
    assert secret.read_text() == "0123456789\n", "what is there stays"
    secret.unlink()
    (host.root / "env").unlink()
    assert _prepare(host, engine_socket).returncode == 0
    assert secret.read_text() == ""
    if getpass.getuser() == "root":
        assert (secret.stat().st_uid, secret.stat().st_gid) == (4321, 4322)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"UVEITIS_UID": "0"}, "found uid 0"),
        ({"WANDB_KEY_FILE": "/nowhere/key"}, "WANDB_KEY_FILE=/nowhere/key: found no such file"),
        ({"UVEITIS_DATA": "relative"}, "expected an absolute path"),
        ({"UVEITIS_DATA": "/srv/data", "UVEITIS_RAW": "/srv/data/raw"}, "lies inside /srv/data"),
        ({"DOCKER_SOCKET": "/nowhere.sock"}, "found no socket of a Docker engine"),
    ],
)
def test_preparing_refuses_what_cannot_work(
    host: Host, engine_socket: Path, variables: dict[str, str], message: str
) -> None:
    done = _prepare(host, engine_socket, **variables)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (host.root / "env").exists()
