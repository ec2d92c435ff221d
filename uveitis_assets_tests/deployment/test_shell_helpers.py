"""The shell helpers against a docker that records its arguments: what users' variables turn into."""

import getpass
import hashlib
import os
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from uveitis_assets_tests.conftest import REPOSITORY
from uveitis_assets_tests.patience import patience

DOCKER = REPOSITORY / "docker"
_RECORDING = """\
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


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "bin").mkdir()
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "FAKE_RECORD": str(tmp_path / "record"),
        "FAKE_RUNTIMES": '{"runc":{"path":"runc"}}',
        "UVEITIS_DATA": str(tmp_path / "data"),
        "DAGSTER_HOME": str(tmp_path / "dagster_home"),
    }
    host = Host(tmp_path, environment)
    host.program("docker", _RECORDING)
    return host


def test_shellcheck_finds_nothing() -> None:
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed")
    scripts = sorted(DOCKER.glob("*.sh"))
    assert len(scripts) > 5
    done = subprocess.run([program, "-x", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_build_names_the_image_and_labels_it_with_version_and_commit(host: Host) -> None:
    arguments = host.call("build.sh", IMAGE_TAG="clinic/uveitis:7")
    assert arguments[0] == "build"
    assert arguments[arguments.index("--tag") + 1] == "clinic/uveitis:7"
    revision = subprocess.run(
        ["git", "-C", REPOSITORY, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert any(argument.startswith(f"REVISION={revision}") for argument in arguments)
    assert "VERSION=0.1.0" in arguments
    assert arguments[-1] == str(REPOSITORY)
    assert (host.root / "record").read_text().startswith("BUILDKIT=1")


def test_build_passes_base_certificates_and_further_flags_on(host: Host) -> None:
    arguments = host.call(
        "build.sh", BASE_IMAGE="debian:bookworm-slim", CA_BUNDLE="/etc/ca.crt", DOCKER_BUILD_ARGS="--network host"
    )
    assert "BASE_IMAGE=debian:bookworm-slim" in arguments
    assert arguments[arguments.index("--secret") + 1] == "id=ca,src=/etc/ca.crt"
    assert arguments[arguments.index("--network") + 1] == "host"


def test_a_host_without_a_gpu_gets_none(host: Host) -> None:
    arguments = host.call("run.sh")
    assert "--gpus" not in arguments
    assert arguments[-2:] == ["uveitis-assets:latest", "bash"]


def test_a_gpu_is_found_by_runtime_and_nvidia_smi(host: Host) -> None:
    host.add_gpu()
    arguments = host.call("run.sh")
    assert "--runtime=nvidia" in arguments
    assert arguments[arguments.index("--gpus") + 1] == "all"


@pytest.mark.parametrize("missing", ["runtime", "driver"])
def test_one_of_runtime_and_driver_is_not_enough(host: Host, missing: str) -> None:
    host.add_gpu()
    if missing == "runtime":
        host.environment["FAKE_RUNTIMES"] = '{"runc":{"path":"runc"}}'
    else:
        host.program("nvidia-smi", "#!/bin/sh\nexit 9\n")
    assert "--gpus" not in host.call("run.sh")


def test_gpu_arguments_replace_the_detection(host: Host) -> None:
    host.add_gpu()
    assert "--gpus" not in host.call("run.sh", GPU_ARGS="")
    arguments = host.call("run.sh", GPU_ARGS="--gpus device=1")
    assert arguments[arguments.index("--gpus") + 1] == "device=1"
    assert "--runtime=nvidia" not in arguments


def test_run_arguments_replace_the_shared_memory_of_8_gb(host: Host) -> None:
    assert "--shm-size=8g" in host.call("run.sh")
    arguments = host.call("run.sh", DOCKER_RUN_ARGS="--shm-size=2g --ipc=host")
    assert {"--shm-size=2g", "--ipc=host"} <= set(arguments)
    assert "--shm-size=8g" not in arguments


def test_containers_give_up_their_rights(host: Host) -> None:
    for script, arguments in (("run.sh", []), ("train.sh", ["uveitis_ft"]), ("web.sh", [])):
        recorded = host.call(script, *arguments)
        assert recorded[recorded.index("--cap-drop") + 1] == "ALL"
        assert recorded[recorded.index("--security-opt") + 1] == "no-new-privileges:true"
        assert not any("docker.sock" in argument for argument in recorded)


def test_artefacts_belong_to_the_caller_unless_the_image_user_is_wanted(host: Host) -> None:
    arguments = host.call("train.sh", "uveitis_ft")
    assert arguments[arguments.index("--user") + 1] == f"{os.getuid()}:{os.getgid()}"
    assert "--user" not in host.call("train.sh", "uveitis_ft", RUN_AS_HOST_UID="0")


def test_training_mounts_raw_images_read_only_and_passes_the_lane_on(host: Host) -> None:
    raw = host.root / "landed here"
    arguments = host.call("train.sh", "uveitis_ft", "--partition", "fold0", UVEITIS_RAW=str(raw), CONTAINER_NAME="t1")
    data = host.root / "data"
    assert {f"{raw}:{raw}:ro", f"UVEITIS_RAW={raw}", f"{data}:{data}", f"UVEITIS_DATA={data}"} <= set(arguments)
    assert arguments[arguments.index("--name") + 1] == "t1"
    assert arguments[-5:] == ["uveitis-assets:latest", "train", "uveitis_ft", "--partition", "fold0"]


def test_training_without_a_lane_is_refused_with_an_example(host: Host) -> None:
    done = host.run("train.sh")
    assert done.returncode == 64
    assert "docker/train.sh uveitis_ft --partition fold0" in done.stderr


def test_the_tracking_key_travels_as_a_file(host: Host) -> None:
    key = host.root / "key"
    key.write_text("a very secret key")
    arguments = host.call("train.sh", "uveitis_ft", WANDB_KEY_FILE=str(key))
    assert f"{key}:/run/secrets/uveitis_wandb_key:ro" in arguments
    assert "UVEITIS_WANDB_KEY_FILE=/run/secrets/uveitis_wandb_key" in arguments
    assert not any("secret key" in argument for argument in arguments)


def test_a_tracking_key_that_is_not_there_stops_the_script(host: Host) -> None:
    done = host.run("train.sh", "uveitis_ft", WANDB_KEY_FILE=str(host.root / "none"))
    assert done.returncode == 2
    assert "found no such file" in done.stderr


def test_the_web_interface_listens_on_loopback_only(host: Host) -> None:
    for variables, port in (({}, 3000), ({"PORT": "8080"}, 8080)):
        arguments = host.call("web.sh", **variables)
        assert arguments[arguments.index("--publish") + 1] == f"127.0.0.1:{port}:3000"
        assert arguments[-2:] == ["uveitis-assets:latest", "dev"]


def test_the_export_holds_runs_and_predictions_and_no_ledger(host: Host) -> None:
    data = host.root / "data"
    for name in ("runs/uveitis_ft/metrics.jsonl", "preds/a.json", "ledger/patient_key"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(name)
    archive = host.root / "out.tar.gz"
    assert host.run("export.sh", str(archive)).returncode == 0
    with tarfile.open(archive) as packed:
        files = sorted(member.name for member in packed.getmembers() if member.isfile())
    assert files == ["preds/a.json", "runs/uveitis_ft/metrics.jsonl"]


def test_an_export_of_nothing_is_an_error_and_leaves_no_file(host: Host) -> None:
    (host.root / "data").mkdir()
    archive = host.root / "out.tar.gz"
    done = host.run("export.sh", str(archive))
    assert done.returncode == 2
    assert "found none of runs" in done.stderr
    assert not archive.exists()


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


def _weights_script(host: Host, content: bytes) -> Path:
    """A copy of the script that expects ``content`` as the tiny model, and a curl that delivers a file."""
    text = (DOCKER / "sam2_weights.sh").read_text()
    real = "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69"
    assert real in text
    script = host.root / "sam2_weights.sh"
    script.write_text(text.replace(real, hashlib.sha256(content).hexdigest()))
    script.chmod(0o755)
    host.program(
        "curl", f'#!{sys.executable}\nimport os, shutil, sys\nshutil.copy(os.environ["SERVED"], sys.argv[-2])\n'
    )
    (host.root / "served").write_bytes(content)
    host.environment["SERVED"] = str(host.root / "served")
    return script


def test_weights_are_kept_only_with_the_right_checksum(host: Host) -> None:
    script = _weights_script(host, b"weights")
    checkpoint = host.root / "data/models/sam2/sam2.1_hiera_tiny.pt"
    (host.root / "served").write_bytes(b"tampered")
    done = subprocess.run([script, "tiny"], env=host.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nothing was kept" in done.stderr
    assert list(checkpoint.parent.iterdir()) == []
    (host.root / "served").write_bytes(b"weights")
    assert subprocess.run([script, "tiny"], env=host.environment, capture_output=True, check=False).returncode == 0
    assert checkpoint.read_bytes() == b"weights"


def test_weights_that_are_there_are_checked_and_not_fetched_again(host: Host) -> None:
    script = _weights_script(host, b"weights")
    checkpoint = host.root / "data/models/sam2/sam2.1_hiera_tiny.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    host.program("curl", "#!/bin/sh\nexit 1\n")
    assert subprocess.run([script, "tiny"], env=host.environment, capture_output=True, check=False).returncode == 0
    checkpoint.write_bytes(b"other")
    done = subprocess.run([script, "tiny"], env=host.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "remove the file" in done.stderr
    assert checkpoint.read_bytes() == b"other"
