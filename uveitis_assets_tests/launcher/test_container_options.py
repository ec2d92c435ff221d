"""Mounts, rights and environment of every run container."""

from typing import Any

import pytest

from uveitis_assets.launcher.container_options import (
    ContainerSettings,
    build_environment,
    build_mounts,
    build_options,
    check_deployment_options,
)
from uveitis_assets.launcher.refusal import LaunchRefusedError


def _settings(**changes: Any) -> ContainerSettings:
    fields: dict[str, Any] = {
        "deployment": "clinic",
        "user": "1000:1000",
        "gpu_runtime": "nvidia",
        "volumes": (),
        "read_only_volumes": (),
        "secrets": (),
        "secrets_folder": None,
    }
    return ContainerSettings(**fields | changes)


def test_every_container_gives_up_its_rights_whatever_the_run_asks_for():
    options = build_options(_settings(), {}, {"mem_limit": "1g"}, "cpu")
    assert options["cap_drop"] == ["ALL"]
    assert options["security_opt"] == ["no-new-privileges:true"]
    assert options["user"] == "1000:1000"
    assert not {"privileged", "cap_add", "volumes", "runtime", "device_requests"} & set(options)


def test_shared_memory_is_8g_unless_the_deployment_or_the_run_sets_it():
    assert build_options(_settings(), {}, {}, "cpu")["shm_size"] == "8g"
    assert build_options(_settings(), {"shm_size": "2g"}, {}, "cpu")["shm_size"] == "2g"
    assert build_options(_settings(), {"shm_size": "2g"}, {"shm_size": "16g"}, "cpu")["shm_size"] == "16g"


def test_a_memory_limit_is_not_stretched_by_swap_unless_asked_for():
    assert build_options(_settings(), {"mem_limit": "8g"}, {}, "cpu")["memswap_limit"] == "8g"
    deployment = {"mem_limit": "8g", "memswap_limit": "12g"}
    assert build_options(_settings(), deployment, {}, "cpu")["memswap_limit"] == "12g"
    assert build_options(_settings(), deployment, {"mem_limit": "32g"}, "cpu")["memswap_limit"] == "32g"
    explicit = {"mem_limit": "32g", "memswap_limit": "40g"}
    assert build_options(_settings(), deployment, explicit, "cpu")["memswap_limit"] == "40g"


def test_options_of_two_runs_share_nothing_mutable():
    deployment = {"labels": {"team": "retina"}, "ulimits": [{"Name": "nofile", "Soft": 1024}]}
    first = build_options(_settings(), deployment, {}, "cpu")
    first["labels"]["dagster/run_id"] = "one"
    first["ulimits"].append("more")
    second = build_options(_settings(), deployment, {"labels": {"experiment": "b"}}, "gpu:1")
    assert second["labels"] == {
        "team": "retina",
        "experiment": "b",
        "uveitis/deployment": "clinic",
        "uveitis/device": "gpu:1",
    }
    assert deployment == {"labels": {"team": "retina"}, "ulimits": [{"Name": "nofile", "Soft": 1024}]}


def test_labels_declared_as_a_list_become_empty_labels():
    assert build_options(_settings(), {"labels": ["nightly"]}, {}, "cpu")["labels"]["nightly"] == ""


def test_raw_images_are_read_only_and_folders_have_to_exist_on_the_host():
    settings = _settings(volumes=("/srv/data:/data", "dagster:/opt/dagster/home"), read_only_volumes=("/srv/raw:/raw",))
    data, home, raw = build_mounts(settings)
    assert (data["Type"], data["Source"], data["Target"], data["ReadOnly"]) == ("bind", "/srv/data", "/data", False)
    assert (home["Type"], home["Source"]) == ("volume", "dagster")
    assert (raw["Target"], raw["ReadOnly"]) == ("/raw", True)


@pytest.mark.parametrize(
    ("volumes", "message"),
    [
        ({"volumes": ("/data",)}, "'/data' is not source:/target"),
        ({"volumes": ("/data:relative",)}, "is not source:/target"),
        ({"volumes": ("./data:/data",)}, "relative folder"),
        ({"volumes": ("/data:/data:rox",)}, "is not source:/target"),
        ({"read_only_volumes": ("/raw:/raw:rw",)}, "asks to be writable"),
        ({"volumes": ("/a:/data", "/b:/data")}, "/data is mounted more than once"),
        ({"volumes": ("/var/run/docker.sock:/var/run/docker.sock",)}, "the engine's socket"),
        ({"volumes": ("/run/../var/run/docker.sock:/sock",)}, "the engine's socket"),
        ({"read_only_volumes": ("/:/host",)}, "the engine's socket"),
        ({"volumes": ("/var/run/:/host",)}, "the engine's socket"),
        ({"secrets": ("wandb_api_key",)}, "secrets_folder, the host folder of its file, is not set"),
        ({"secrets": ("../key",), "secrets_folder": "/srv/secrets"}, "is not a name"),
    ],
)
def test_a_mount_that_cannot_be_honoured_is_refused(volumes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        _settings(**volumes).check()


@pytest.mark.parametrize("option", ["volumes", "privileged", "cap_add", "runtime", "auto_remove", "pid_mode", "user"])
def test_deployment_options_that_the_launcher_decides_are_refused_with_the_alternative(option: str):
    with pytest.raises(LaunchRefusedError, match=rf"set '{option}': .* Remove the option"):
        check_deployment_options({"mem_limit": "8g", option: True})


def test_a_secret_reaches_the_container_as_a_file_and_its_variable_holds_only_the_path():
    settings = _settings(secrets=("wandb_api_key",), secrets_folder="/srv/secrets")
    (mount,) = build_mounts(settings)
    assert (mount["Source"], mount["Target"], mount["ReadOnly"]) == (
        "/srv/secrets/wandb_api_key",
        "/run/secrets/wandb_api_key",
        True,
    )
    assert "WANDB_API_KEY_FILE=/run/secrets/wandb_api_key" in build_environment(settings, [], {}, "cpu")


def test_the_run_wins_over_the_deployment_and_the_device_over_both():
    overrides = {"environment": {"OMP_NUM_THREADS": "4"}}
    variables = build_environment(
        _settings(), ["OMP_NUM_THREADS=1", "HOME=/work", "NVIDIA_VISIBLE_DEVICES=all"], overrides, "cpu"
    )
    effective = dict(variable.split("=", 1) for variable in variables)
    assert effective == {"HOME": "/work", "USER": "uveitis", "OMP_NUM_THREADS": "4", "NVIDIA_VISIBLE_DEVICES": "void"}


def test_the_image_can_keep_its_own_user():
    settings = _settings(user="image")
    assert "user" not in build_options(settings, {}, {}, "cpu")
    assert not any(variable.startswith("HOME=") for variable in build_environment(settings, [], {}, "cpu"))
