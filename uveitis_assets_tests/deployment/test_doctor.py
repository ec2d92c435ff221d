"""The doctor on hosts made up for it: what it calls a failure, and the remedy it gives."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import yaml
from docker.errors import APIError, DockerException, ImageNotFound
from rich.console import Console
from typer.testing import CliRunner

from uveitis_assets.cli import app
from uveitis_assets.deployment.doctor import diagnose_engine, examine
from uveitis_assets.deployment.engine_checks import check_answer
from uveitis_assets.deployment.findings import Finding, ok
from uveitis_assets.deployment.host_checks import (
    check_dagster_home,
    check_disk_space,
    check_folders,
    check_sam2_checkpoint,
    check_webserver,
)
from uveitis_assets.deployment.settings import DeploymentSettings, SettingsError
from uveitis_assets.orchestration.defs_files import DefsFileError
from uveitis_assets_tests.conftest import REPOSITORY

ANSWER: dict[str, Any] = {
    "python": "3.11.2",
    "torch": "2.14.1",
    "cuda": True,
    "devices": ["NVIDIA H200"],
    "sum": 262144.0,
    "user": "",
    "writable": {"data": True, "raw images": False, "state": True},
    "readable": {"data": True, "raw images": True, "state": True},
    "shared_memory": 8 * 2**30,
}

SECRETS = {"postgres_password": "secret", "uveitis_wandb_key": "", "smtp_password": "", "alert_webhook": ""}


@pytest.fixture
def settings(tmp_path: Path) -> DeploymentSettings:
    """Of a deployment in good order that belongs to the user of the test."""
    for folder in ("data", "raw", "state/dagster", "state/postgres", "state/engine", "state/monitor", "secrets"):
        (tmp_path / folder).mkdir(parents=True)
    for secret, content in tuple(SECRETS.items()):
        (tmp_path / "secrets" / secret).write_text(content)
        (tmp_path / "secrets" / secret).chmod(0o600)
    file = tmp_path / "env"
    lines = {
        "UVEITIS_DEPLOYMENT": "uveitis",
        "IMAGE_TAG": "uveitis-assets:latest",
        "PORT": "3000",
        "UVEITIS_UID": os.getuid(),
        "UVEITIS_GID": os.getgid(),
        "DOCKER_SOCKET": tmp_path / "engine.sock",
        "UVEITIS_DATA": tmp_path / "data",
        "UVEITIS_RAW": tmp_path / "raw",
        "UVEITIS_STATE": tmp_path / "state",
        "UVEITIS_SECRETS": tmp_path / "secrets",
    }
    file.write_text("# a comment = here\n" + "".join(f"{name}={value}\n" for name, value in lines.items()))
    return DeploymentSettings.read(file)


def _bad(findings: Iterator[Finding] | list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.verdict != "ok"]


def test_a_remedy_goes_with_every_failure_and_with_nothing_else() -> None:
    with pytest.raises(ValueError, match="disk"):
        Finding("disk", "failure", "is full")
    with pytest.raises(ValueError, match="disk"):
        Finding("disk", "ok", "is empty", "fill it")


def test_folders_in_order_are_no_finding(settings: DeploymentSettings) -> None:
    assert _bad(check_folders(settings)) == []


def test_a_missing_folder_comes_with_the_command_that_makes_it(settings: DeploymentSettings) -> None:
    settings.data.rmdir()
    [finding] = _bad(check_folders(settings))
    assert finding.verdict == "failure"
    assert finding.remedy == f"mkdir -p {settings.data} && chown {os.getuid()}:{os.getgid()} {settings.data}"


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives folders away")
def test_a_folder_of_another_user_is_found(settings: DeploymentSettings) -> None:
    os.chown(settings.state / "dagster", 4321, 4321)
    [finding] = _bad(check_folders(settings))
    assert "belongs to uid 4321, containers run as 0" in finding.detail
    assert finding.remedy.startswith("chown -R 0:")


def test_raw_images_inside_the_data_folder_are_not_read_only(settings: DeploymentSettings) -> None:
    file = settings.file
    file.write_text(file.read_text().replace(f"RAW={settings.raw}", f"RAW={settings.data / 'raw'}"))
    (settings.data / "raw").mkdir()
    [finding] = _bad(check_folders(DeploymentSettings.read(file)))
    assert "which runs may write to" in finding.detail


def test_a_password_that_others_can_read_is_found(settings: DeploymentSettings) -> None:
    password = settings.secrets / "postgres_password"
    password.chmod(0o644)
    [finding] = _bad(check_folders(settings))
    assert "with mode 644" in finding.detail
    assert f"chmod 600 {password}" in finding.remedy
    password.write_text("")
    [finding] = _bad(check_folders(settings))
    assert "is empty" in finding.detail


@pytest.mark.parametrize("secret", sorted(SECRETS))
def test_a_secret_that_containers_mount_and_that_is_not_there_comes_with_the_command_that_makes_it(
    settings: DeploymentSettings, secret: str
) -> None:
    (settings.secrets / secret).unlink()
    [finding] = _bad(check_folders(settings))
    assert finding.check == f"secret: {secret}"
    command = finding.remedy.partition(" makes ")[0]
    # Its settings are not docker/.env, so the remedy has to name them.
    subprocess.run(["bash", "-c", command], cwd=REPOSITORY, check=True, capture_output=True)
    assert _bad(check_folders(settings)) == []


@pytest.mark.parametrize(("gigabytes", "verdict"), [(4.9, "failure"), (19.0, "warning"), (21.0, "ok")])
def test_little_disk_space_warns_before_it_fails(tmp_path: Path, gigabytes: float, verdict: str) -> None:
    with mock.patch.object(shutil, "disk_usage", return_value=SimpleNamespace(free=gigabytes * 1e9)):
        assert check_disk_space(tmp_path / "not there yet", "data").verdict == verdict


def test_dagster_home_has_to_be_set_absolute_and_hold_settings(tmp_path: Path) -> None:
    assert "is not set" in check_dagster_home({}).detail
    assert "is relative" in check_dagster_home({"DAGSTER_HOME": "home"}).detail
    assert "holds no dagster.yaml" in check_dagster_home({"DAGSTER_HOME": str(tmp_path)}).detail
    shutil.copy(REPOSITORY / "dagster.yaml", tmp_path)
    assert check_dagster_home({"DAGSTER_HOME": str(tmp_path)}) == ok("DAGSTER_HOME", f"{tmp_path}, 0 runs")


def test_a_storage_that_does_not_open_is_named_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text("storage: {sqlite: {base_dir: /proc/nowhere}}\n")
    finding = check_dagster_home({"DAGSTER_HOME": str(tmp_path)})
    assert finding.verdict == "failure"
    assert "the storage does not open" in finding.detail
    assert "/proc/nowhere" in finding.detail


def test_a_checkpoint_is_asked_for_only_when_a_lane_uses_sam2(tmp_path: Path) -> None:
    assert check_sam2_checkpoint(tmp_path).detail == "no lane uses SAM 2"
    roi = SimpleNamespace(
        method_by_dataset={"uwf": "sam2_prompted"},
        methods_for=lambda tag: ("sam2_prompted",) if tag == "uwf" else ("uwf",),
        sam2=SimpleNamespace(checkpoint="models/sam2/sam2.1_hiera_base_plus.pt"),
    )
    lanes = {"clinic": SimpleNamespace(roi=roi)}
    with mock.patch("uveitis_assets.components.fundus.lanes.load_lanes", return_value=lanes):
        finding = check_sam2_checkpoint(tmp_path)
        assert finding.verdict == "failure"
        assert finding.detail.endswith("sam2.1_hiera_base_plus.pt: found no checkpoint for clinic")
        assert "docker/sam2_weights.sh" in finding.remedy
        checkpoint = tmp_path / "models/sam2/sam2.1_hiera_base_plus.pt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_bytes(b"weights")
        assert check_sam2_checkpoint(tmp_path).verdict == "ok"


def test_a_defs_file_that_is_wrong_is_a_failure_that_names_it(tmp_path: Path) -> None:
    with mock.patch(
        "uveitis_assets.components.fundus.lanes.check_defs_files", side_effect=DefsFileError("x/defs.yaml:3: no")
    ):
        finding = check_sam2_checkpoint(tmp_path)
    assert (finding.verdict, finding.detail) == ("failure", "x/defs.yaml:3: no")


def test_a_web_server_that_does_not_answer_is_a_failure() -> None:
    [finding] = check_webserver("http://127.0.0.1:9")
    assert finding.verdict == "failure"
    assert "no web server answers" in finding.detail


class Engine:
    """An engine with an image, which answers the probe as told."""

    def __init__(self, answer: dict[str, Any], *, runtimes: tuple[str, ...] = ("nvidia", "runc")) -> None:
        self.answer = answer
        self.runtimes = runtimes
        self.errors: list[Exception] = []
        self.asked: list[dict[str, Any]] = []
        self.image_is_there = True
        self.exit_code = 0
        self.left = 0
        self.containers = self.images = self

    def version(self) -> dict[str, str]:
        return {"Version": "20.10.24"}

    def info(self) -> dict[str, Any]:
        return {"Runtimes": dict.fromkeys(self.runtimes), "DockerRootDir": "/var/lib/docker"}

    def get(self, name: str) -> SimpleNamespace:
        if not self.image_is_there:
            raise ImageNotFound(f"no such image: {name}")
        return SimpleNamespace(labels={"org.opencontainers.image.revision": "0123456789abcdef"})

    def create(self, image: str, command: list[str], **options: Any) -> "Engine":
        self.asked.append(options)
        self.left += 1
        return self

    def start(self) -> None:
        if self.errors:
            raise self.errors.pop(0)

    def wait(self, timeout: int) -> dict[str, int]:
        return {"StatusCode": self.exit_code}

    def logs(self, *, stdout: bool, stderr: bool) -> bytes:
        if stderr:
            return b"entrypoint: /run/secrets/x is not readable\n"
        return b"a warning of a library\n" + json.dumps(self.answer).encode() + b"\n"

    def remove(self, *, force: bool) -> None:
        self.left -= 1


def _diagnose(engine: Engine, settings: DeploymentSettings) -> dict[str, Finding]:
    with mock.patch.object(shutil, "disk_usage", return_value=SimpleNamespace(free=1e12)):
        return {finding.check: finding for finding in diagnose_engine(engine, settings)}  # type: ignore[arg-type]


@pytest.fixture
def answer(settings: DeploymentSettings) -> dict[str, Any]:
    return ANSWER | {"user": settings.container_settings.user}


def test_a_host_with_a_gpu_in_order_has_no_finding(settings: DeploymentSettings, answer: dict[str, Any]) -> None:
    engine = Engine(answer)
    findings = _diagnose(engine, settings)
    assert _bad(list(findings.values())) == []
    assert findings["CUDA in a container"].detail.endswith("on NVIDIA H200")
    [options] = engine.asked
    assert options["runtime"] == "nvidia"
    assert options["cap_drop"] == ["ALL"]
    assert engine.left == 0


def test_the_probe_is_made_as_dagster_yaml_says_and_following_a_remedy_there_helps(
    settings: DeploymentSettings, answer: dict[str, Any]
) -> None:
    file = settings.file.with_name("dagster.yaml")
    configured = yaml.safe_load((REPOSITORY / "docker/dagster.yaml").read_text())
    launcher = configured["run_launcher"]["config"]
    raw = launcher["read_only_volumes"].pop()
    launcher["volumes"].append(raw)
    launcher |= {"gpu_runtime": "nvidia-cdi", "container_kwargs": {"shm_size": "64m", "mem_limit": "4g"}}
    launcher["secrets"].append("tracker")
    file.write_text(yaml.safe_dump(configured))
    mine = DeploymentSettings.read(settings.file)
    engine = Engine(answer | {"shared_memory": 64e6, "writable": {"data": True, "raw images": True, "state": True}})
    findings = _diagnose(engine, mine)
    [asked] = engine.asked
    assert (asked["shm_size"], asked["mem_limit"]) == ("64m", "4g")
    assert "/run/secrets/tracker" in {mount["Target"] for mount in asked["mounts"]}
    assert findings["GPU runtime"].verdict == "warning"
    assert "set shm_size in container_kwargs" in findings["shared memory"].remedy
    assert "declare it in read_only_volumes" in findings["mount: raw images"].remedy
    [secret] = _bad(check_folders(mine))
    assert (secret.check, "write the secret to it" in secret.remedy) == ("secret: tracker", True)

    # The remedies, followed.
    launcher["volumes"].remove(raw)
    launcher["read_only_volumes"].append(raw)
    launcher["container_kwargs"]["shm_size"] = "8g"
    file.write_text(yaml.safe_dump(configured))
    (mine.secrets / "tracker").write_text("key")
    (mine.secrets / "tracker").chmod(0o600)
    engine = Engine(answer, runtimes=("nvidia-cdi", "runc"))
    assert _bad(list(_diagnose(engine, DeploymentSettings.read(settings.file)).values())) == []
    assert engine.asked[0]["shm_size"] == "8g"
    assert {mount["Source"]: mount["ReadOnly"] for mount in engine.asked[0]["mounts"]}[str(mine.raw)]
    assert _bad(check_folders(mine)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run_launcher: {config: {user: {env: NOBODY}}}", "NOBODY: expected a variable that docker/compose.yaml gives"),
        ("telemetry: {enabled: false}", "expected run_launcher with config"),
        ("run_launcher: [", "it cannot be read"),
    ],
)
def test_a_dagster_yaml_that_is_wrong_is_a_finding(settings: DeploymentSettings, text: str, message: str) -> None:
    settings.file.with_name("dagster.yaml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        _ = DeploymentSettings.read(settings.file).container_settings


def test_an_engine_that_does_not_answer_ends_the_checks(settings: DeploymentSettings, answer: dict[str, Any]) -> None:
    engine = Engine(answer)
    engine.version = mock.Mock(side_effect=DockerException("permission denied"))  # type: ignore[method-assign]
    findings = _diagnose(engine, settings)
    assert list(findings) == ["engine"]
    assert "join the group docker" in findings["engine"].remedy


def test_a_host_without_the_runtime_is_warned_and_checked_on_the_cpu(
    settings: DeploymentSettings, answer: dict[str, Any]
) -> None:
    engine = Engine(answer | {"cuda": False, "devices": []}, runtimes=("runc",))
    findings = _diagnose(engine, settings)
    assert [finding.check for finding in _bad(list(findings.values()))] == ["GPU runtime"]
    assert "nvidia-ctk runtime configure" in findings["GPU runtime"].remedy
    assert "runtime" not in engine.asked[0]


def test_a_gpu_that_cannot_be_attached_fails_and_the_rest_is_checked_on_the_cpu(
    settings: DeploymentSettings, answer: dict[str, Any]
) -> None:
    engine = Engine(answer | {"cuda": False, "devices": []})
    engine.errors = [APIError("500", explanation='could not select device driver "" with capabilities: [[gpu]]')]
    findings = _diagnose(engine, settings)
    assert findings["CUDA in a container"].verdict == "failure"
    assert "could not select device driver" in findings["CUDA in a container"].detail
    assert findings["mount: data"].verdict == "ok"
    assert ["runtime" in options for options in engine.asked] == [True, False]
    assert engine.left == 0


def test_a_torch_that_sees_no_gpu_though_one_was_given_is_a_failure(answer: dict[str, Any]) -> None:
    settings = SimpleNamespace(user=answer["user"])
    bad = _bad(check_answer(answer | {"cuda": False, "devices": []}, settings, on_gpu=True))  # type: ignore[arg-type]
    assert [finding.check for finding in bad] == ["CUDA in a container"]
    assert "nvidia-smi" in bad[0].remedy


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"writable": {"data": False, "raw images": False, "state": True}}, "mount: data"),
        ({"writable": {"data": True, "raw images": True, "state": True}}, "mount: raw images"),
        ({"readable": {"data": True, "raw images": False, "state": True}}, "mount: raw images"),
        ({"shared_memory": 64 * 2**20}, "shared memory"),
        ({"user": "7:7"}, "user of runs"),
        ({"sum": 0.0}, "torch in a container"),
    ],
)
def test_a_run_container_that_is_not_as_it_should_be_is_a_failure(
    answer: dict[str, Any], change: dict[str, Any], check: str
) -> None:
    settings = SimpleNamespace(user=answer["user"])
    bad = _bad(check_answer(answer | change, settings, on_gpu=True))  # type: ignore[arg-type]
    assert [finding.check for finding in bad] == [check]


def test_an_image_that_is_not_there_is_to_be_built(settings: DeploymentSettings, answer: dict[str, Any]) -> None:
    engine = Engine(answer)
    engine.image_is_there = False
    findings = _diagnose(engine, settings)
    assert findings["image"].remedy == "IMAGE_TAG=uveitis-assets:latest docker/build.sh"
    assert engine.asked == []


def test_a_container_that_fails_is_reported_with_its_last_line(
    settings: DeploymentSettings, answer: dict[str, Any]
) -> None:
    engine = Engine(answer)
    engine.exit_code = 78
    findings = _diagnose(engine, settings)
    assert findings["run container"].detail.endswith("exit code 78: entrypoint: /run/secrets/x is not readable")


def test_settings_that_lack_a_name_are_refused(settings: DeploymentSettings) -> None:
    lines = [line for line in settings.file.read_text().splitlines() if "IMAGE_TAG" not in line]
    settings.file.write_text("\n".join(lines))
    with pytest.raises(SettingsError, match="found no IMAGE_TAG"):
        DeploymentSettings.read(settings.file)


def test_a_number_that_is_none_is_named_with_what_was_found(settings: DeploymentSettings) -> None:
    settings.file.write_text(settings.file.read_text().replace("PORT=3000", "PORT=http"))
    with pytest.raises(SettingsError, match="PORT: expected a whole number, found 'http'"):
        DeploymentSettings.read(settings.file)


def test_settings_that_cannot_be_read_are_a_finding(settings: DeploymentSettings, tmp_path: Path) -> None:
    settings.file.write_bytes(b"\xff\xfe")
    console = Console(record=True, width=400)
    assert not examine(settings.file, tmp_path, console)
    assert f"{settings.file}: it cannot be read" in console.export_text()


def test_settings_that_were_named_and_are_not_there_are_no_single_machine(tmp_path: Path) -> None:
    named = tmp_path / "env"
    done = CliRunner().invoke(app, ["doctor", "--settings", str(named)])
    assert done.exit_code == 2
    assert f"{named}: expected the settings that docker/prepare.sh wrote, found no such file" in done.output


def test_the_report_prints_remedies_whole_and_fails(settings: DeploymentSettings, tmp_path: Path) -> None:
    console = Console(record=True, width=60)
    settings.data.rmdir()
    assert not examine(settings.file, tmp_path, console)
    printed = console.export_text()
    cells = "".join(line.split("│")[-2].strip() for line in printed.splitlines() if line.startswith("│"))
    assert f"folder: data: mkdir -p {settings.data} && chown" in printed
    assert str(settings.socket) in cells
