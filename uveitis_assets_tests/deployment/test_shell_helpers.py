"""The shell helpers against a docker that records its arguments: what users' variables turn into."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from uveitis_assets_tests.conftest import REPOSITORY
from uveitis_assets_tests.deployment.shell_host import DOCKER, Host


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


@pytest.fixture
def settings_file(host: Host) -> Path:
    values = {"UVEITIS_UID": "4321", "UVEITIS_GID": "4322", "PORT": "3456", "IMAGE_TAG": "clinic/uveitis:7"}
    values |= {"DOCKER_SOCKET": "/run/docker.sock", "DOCKER_GID": "77"}
    for name in ("DATA", "RAW", "STATE", "SECRETS"):
        folder = host.root / "home" / name.lower()
        folder.mkdir(parents=True)
        values[f"UVEITIS_{name}"] = str(folder)
    file = host.root / "env"
    file.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    return file


def test_submit_in_a_container_reaches_the_ui_and_gets_neither_the_engine_nor_a_folder(
    host: Host, settings_file: Path
) -> None:
    arguments = host.call("client.sh", "submit", "uwf700", "--missing", SETTINGS_FILE=str(settings_file))
    assert arguments[-5:] == ["clinic/uveitis:7", "uveitis-assets", "submit", "uwf700", "--missing"]
    assert arguments[arguments.index("--network") + 1] == "host"
    assert arguments[arguments.index("--user") + 1] == "4321:4322"
    assert "UVEITIS_URL=http://127.0.0.1:3456" in arguments
    assert not {"--mount", "--volume", "--group-add"} & set(arguments)


def test_the_doctor_in_a_container_sees_the_folders_of_the_host_and_may_change_none(
    host: Host, settings_file: Path
) -> None:
    arguments = host.call("client.sh", "doctor", SETTINGS_FILE=str(settings_file))
    assert arguments[-3:] == ["clinic/uveitis:7", "uveitis-assets", "doctor"]
    mounts = [arguments[index + 1] for index, argument in enumerate(arguments) if argument == "--mount"]
    for name in ("data", "raw", "state", "secrets"):
        folder = host.root / "home" / name
        assert f"type=bind,source={folder},target={folder},readonly" in mounts
    assert f"type=bind,source={settings_file},target=/settings/env,readonly" in mounts
    writable = [mount for mount in mounts if not mount.endswith(",readonly")]
    assert writable == ["type=bind,source=/run/docker.sock,target=/run/docker.sock"]
    assert arguments[arguments.index("--group-add") + 1] == "77"
    # dagster.yaml lies beside the settings, where the doctor looks for it.
    assert f"type=bind,source={DOCKER / 'dagster.yaml'},target=/settings/dagster.yaml,readonly" in mounts


def test_the_client_refuses_other_commands_and_folders_that_are_gone(host: Host, settings_file: Path) -> None:
    done = host.run("client.sh", "demo", SETTINGS_FILE=str(settings_file))
    assert (done.returncode, "expected doctor or submit first, found 'demo'" in done.stderr) == (2, True)
    (host.root / "home/state").rmdir()
    done = host.run("client.sh", "doctor", SETTINGS_FILE=str(settings_file))
    assert (done.returncode, "found no folder of UVEITIS_STATE" in done.stderr) == (2, True)
    done = host.run("client.sh", "doctor", SETTINGS_FILE="/nowhere/env")
    assert (done.returncode, "call docker/prepare.sh first" in done.stderr) == (2, True)
