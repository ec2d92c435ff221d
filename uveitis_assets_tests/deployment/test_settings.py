"""What the deployment's files promise, read from the files: no engine is needed."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._core.instance.config import dagster_instance_config  # private: reads settings without connecting

from uveitis_assets.deployment.settings import DeploymentSettings
from uveitis_assets.launcher import GpuDockerRunLauncher
from uveitis_assets_tests.conftest import REPOSITORY

OWN_PARTS = ("code-server", "webserver", "daemon", "monitor")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return dict(yaml.safe_load((REPOSITORY / "docker/compose.yaml").read_text())["services"])


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    return dict(dagster_instance_config(str(REPOSITORY / "docker"))[0])


def test_every_service_gives_up_its_rights(services: dict[str, Any]) -> None:
    assert set(services) == {"postgres", "stop-gate", *OWN_PARTS}
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["user"].startswith("${UVEITIS_UID"), name
        assert not service.get("privileged", False), name


def test_only_the_web_server_is_reachable_and_only_from_this_host(services: dict[str, Any]) -> None:
    assert {name for name, service in services.items() if "ports" in service} == {"webserver"}
    assert services["webserver"]["ports"] == ["127.0.0.1:${PORT:-3000}:3000"]


def test_the_engine_is_reached_by_the_daemon_and_by_the_proxy_which_has_no_network(services: dict[str, Any]) -> None:
    holders = {
        name for name, service in services.items() if any("docker.sock" in mount for mount in service["volumes"])
    }
    assert holders == {"daemon", "stop-gate"}
    assert services["stop-gate"]["network_mode"] == "none"
    assert services["webserver"]["environment"]["DOCKER_HOST"] == "unix:///engine/stop.sock"


def test_raw_images_are_mounted_read_only(services: dict[str, Any]) -> None:
    mounts = [mount for service in services.values() for mount in service["volumes"] if "UVEITIS_RAW" in mount]
    assert mounts == ["${UVEITIS_RAW}:${UVEITIS_RAW}:ro"]


def test_no_secret_is_a_value(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for variable, value in service["environment"].items():
            if "PASSWORD" in variable or "SECRET" in variable or "KEY" in variable:
                assert variable.endswith(("_FILE", "_FOLDER")), (name, variable)
                assert not value.startswith("${") or variable.endswith("_FOLDER"), (name, variable)


def test_the_instance_settings_are_valid_and_name_the_launcher(settings: dict[str, Any]) -> None:
    assert settings["run_launcher"]["module"] == "uveitis_assets.launcher"
    assert settings["run_launcher"]["class"] == GpuDockerRunLauncher.__name__
    unknown = set(settings["run_launcher"]["config"]) - set(GpuDockerRunLauncher.config_type())
    assert unknown == set()


def test_only_crashed_workers_are_retried(settings: dict[str, Any]) -> None:
    assert settings["run_retries"] == {"enabled": True, "max_retries": 2, "retry_on_asset_or_op_failure": False}
    assert settings["run_monitoring"]["enabled"]


def test_the_doctor_makes_containers_with_the_secrets_of_runs(settings: dict[str, Any], tmp_path: Path) -> None:
    names = ("DEPLOYMENT", "IMAGE_TAG", "DOCKER_SOCKET", "DATA", "RAW", "STATE", "SECRETS")
    lines = [f"{name}=/some" for name in names] + [f"{name}=1" for name in ("PORT", "UID", "GID")]
    (tmp_path / "env").write_text("\n".join(lines))
    of_the_probe = DeploymentSettings.read(tmp_path / "env").container_settings.secrets
    assert list(of_the_probe) == settings["run_launcher"]["config"]["secrets"]


def test_every_variable_of_the_instance_settings_is_given_by_compose(services: dict[str, Any]) -> None:
    text = (REPOSITORY / "docker/dagster.yaml").read_text()
    wanted = set(_values_behind(yaml.safe_load(text), "env"))
    wanted |= set(yaml.safe_load(text)["run_launcher"]["config"]["env_vars"])
    assert any(name.endswith("_RAW_MOUNT") for name in wanted)
    for name in OWN_PARTS:
        given = {variable.removesuffix("_FILE") for variable in services[name]["environment"]}
        assert wanted <= given, name


def _values_behind(tree: Any, key: str) -> list[str]:
    if isinstance(tree, dict):
        own = [tree[key]] if isinstance(tree.get(key), str) else []
        return own + [found for value in tree.values() for found in _values_behind(value, key)]
    if isinstance(tree, list):
        return [found for value in tree for found in _values_behind(value, key)]
    return []


def test_the_image_gets_nothing_but_what_it_needs() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    assert all((REPOSITORY / name).exists() for name in allowed)
    copied = {
        source
        for line in (REPOSITORY / "docker/Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
        if not source.startswith("--")
    }
    assert copied == allowed


def test_constraints_pin_what_the_image_installs() -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    }
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["deployment"], "setuptools", "wheel"]
    names = {requirement.split(">")[0].split("=")[0].split("<")[0].lower() for requirement in wanted}
    assert names <= pinned
    assert Path(REPOSITORY / "docker/workspace.yaml").exists()
