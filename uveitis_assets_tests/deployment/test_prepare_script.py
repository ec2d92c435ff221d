"""docker/prepare.sh: settings, folders and secrets of a deployment."""

import getpass
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from uveitis_assets_tests.deployment.shell_host import DOCKER, Host


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
    monitor = host.root / "home/state/monitor"
    folder = {"UVEITIS_SECRETS": str(host.root / "kept_apart")}
    assert _prepare(host, engine_socket, **folder).returncode == 0
    password = (host.root / "kept_apart/postgres_password").read_bytes()
    settings = (host.root / "env").read_bytes()
    secret = host.root / "kept_apart/uveitis_wandb_key"
    secret.unlink()
    monitor.rmdir()
    (host.root / "kept_apart/alert_webhook").unlink()
    # The folder, uid and gid are those of the deployment, whatever the second call's variables say.
    done = _prepare(host, engine_socket, UVEITIS_UID="77")
    assert done.returncode == 0, done.stderr
    assert secret.read_bytes() == b""
    assert monitor.is_dir()
    assert (host.root / "kept_apart/alert_webhook").read_bytes() == b""
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    if getpass.getuser() == "root":
        assert (secret.stat().st_uid, secret.stat().st_gid) == (4321, 4322)
    assert (host.root / "env").read_bytes() == settings
    assert (host.root / "kept_apart/postgres_password").read_bytes() == password
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
        ({"UVEITIS_DATA": "/srv/a:b"}, "UVEITIS_DATA=/srv/a:b: expected a path without colons"),
        ({"UVEITIS_RAW": "/srv/a b"}, "without colons, spaces"),
        ({"UVEITIS_STATE": "/srv/a\nb"}, "without colons, spaces, line breaks"),
        ({"UVEITIS_SECRETS": "/srv/a$b"}, "UVEITIS_SECRETS="),
        ({"UVEITIS_DATA": "/srv/a\\b"}, "UVEITIS_DATA="),
        ({"UVEITIS_DATA": "/srv/a'b"}, "UVEITIS_DATA="),
        ({"PORT": "http"}, "PORT=http: expected a whole number from 1 to 65535"),
        ({"PORT": "0"}, "expected a whole number from 1 to 65535"),
        ({"PORT": "65536"}, "expected a whole number from 1 to 65535"),
        ({"PORT": "3000:80"}, "expected a whole number from 1 to 65535"),
        ({"PORT": "3000\nIMAGE_TAG=other"}, "expected a whole number from 1 to 65535"),
        ({"UVEITIS_DEPLOYMENT": "Clinic A"}, "UVEITIS_DEPLOYMENT=Clinic\\ A: expected small letters"),
        ({"UVEITIS_GID": "users"}, "expected whole numbers"),
        ({"IMAGE_TAG": "a b"}, "expected an image's name"),
        ({"UVEITIS_WORKERS": "many"}, "UVEITIS_WORKERS=many"),
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make folders for another user")
def test_root_leaves_folders_and_settings_that_their_user_can_use(engine_socket: Path, host: Host) -> None:
    # Parents that root makes would be closed to the user; those that are there are not touched.
    host.root.chmod(0o755)
    top = host.root / "srv"
    done = _prepare(host, engine_socket, UVEITIS_HOME=str(top / "clinic/uveitis"), UVEITIS_DATA=str(top / "big/data"))
    assert done.returncode == 0, done.stderr
    made = [top, *sorted(top.rglob("*")), host.root / "env"]
    assert len(made) > 10
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(4321, 4322)}
    assert all(path.stat().st_mode & 0o600 == 0o600 for path in made)
    assert host.root.stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make folders for another user")
def test_a_folder_that_its_user_cannot_reach_is_named(engine_socket: Path, host: Host) -> None:
    closed = host.root / "closed"
    closed.mkdir(mode=0o700)
    done = _prepare(host, engine_socket, UVEITIS_HOME=str(closed / "home"))
    assert done.returncode == 0
    assert f"uid 4321 cannot reach {closed / 'home/data'}" in done.stderr


@pytest.mark.parametrize(("name", "wrong"), [("PORT", "http"), ("UVEITIS_DATA", "/srv/a b"), ("UVEITIS_STATE", "")])
def test_settings_that_were_edited_wrongly_are_refused(host: Host, engine_socket: Path, name: str, wrong: str) -> None:
    assert _prepare(host, engine_socket).returncode == 0
    file = host.root / "env"
    file.write_text("".join(f"{line}\n" for line in file.read_text().splitlines() if not line.startswith(name)))
    with file.open("a") as settings:
        settings.write(f"{name}={wrong}\n")
    done = _prepare(host, engine_socket)
    assert done.returncode == 2
    assert name in done.stderr
    assert str(file) in done.stderr


def test_compose_is_called_in_the_version_that_the_host_has(host: Host, engine_socket: Path) -> None:
    settings = str(host.root / "env")
    missing = host.run("compose.sh", "up", "-d", SETTINGS_FILE=settings)
    assert (missing.returncode, "call docker/prepare.sh first" in missing.stderr) == (2, True)
    assert _prepare(host, engine_socket).returncode == 0
    rest = ["--env-file", settings, "-f", str(DOCKER / "compose.yaml"), "up", "-d"]
    assert host.call("compose.sh", "up", "-d", SETTINGS_FILE=settings)[:1] == ["compose"]
    assert (host.root / "record").read_text().splitlines()[2:] == rest

    host.program("docker", "#!/bin/sh\nexit 1\n")
    host.program("docker-compose", '#!/bin/sh\nprintf "%s\\n" old "$PORT" "$@"\n')
    done = host.run("compose.sh", "up", "-d", SETTINGS_FILE=settings, PORT="4000")
    assert done.stdout.splitlines() == ["old", "", *rest]
