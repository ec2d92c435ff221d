"""Need, assignment and container options of a run's processor."""

import pytest

from uveitis_assets.launcher.gpu import choose_gpu, device_environment, device_options, is_gpu_start_failure
from uveitis_assets.launcher.gpu_need import resolve_need
from uveitis_assets.launcher.refusal import LaunchRefusedError


def test_the_run_tag_wins_over_the_assets():
    assert resolve_need({"uveitis/gpu": "none"}, {"a": {"uveitis/gpu": "required"}}) == "none"
    assert resolve_need({"uveitis/gpu": "required"}, {}) == "required"


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        (["none", "preferred"], "preferred"),
        (["required", "preferred"], "required"),
        (["preferred", "required", "none"], "required"),
        (["none", "required-if-declared", "preferred"], "required-if-declared"),
        (["none", "none"], "none"),
        ([], "none"),
    ],
)
def test_without_a_run_tag_the_strongest_need_of_the_assets_counts(needs: list[str], expected: str):
    assets = {f"asset{i}": {"uveitis/gpu": need} for i, need in enumerate(needs)} | {"untagged": {}}
    assert resolve_need({}, assets) == expected


def test_an_unknown_need_names_its_asset_and_the_values_that_exist():
    with pytest.raises(
        LaunchRefusedError,
        match=r"asset uwf/tiles is 'yes'; expected one of required, required-if-declared, preferred, none",
    ):
        resolve_need({}, {"uwf/tiles": {"uveitis/gpu": "yes"}})


def test_the_least_used_gpu_is_assigned_in_declared_order():
    assert choose_gpu(["0", "1"], []) == "gpu:0"
    assert choose_gpu(["0", "1"], ["gpu:0"]) == "gpu:1"
    assert choose_gpu(["0", "1"], ["gpu:0", "gpu:1", "cpu"]) == "gpu:0"
    assert choose_gpu(["0", "1", "2"], ["gpu:0", "gpu:2", "gpu:0", "gpu:1", "gpu:1"]) == "gpu:2"


def test_without_declared_gpus_a_run_sees_all_of_them():
    assert choose_gpu([], ["gpu"]) == "gpu"
    (request,) = device_options("gpu", "nvidia")["device_requests"]
    assert request == {"Driver": "", "Count": -1, "DeviceIDs": [], "Capabilities": [["gpu"]], "Options": {}}
    assert "NVIDIA_VISIBLE_DEVICES=all" in device_environment("gpu")


def test_one_assigned_gpu_is_named_to_the_engine_and_to_the_runtime():
    options = device_options("gpu:GPU-5d9f", "nvidia")
    assert options["runtime"] == "nvidia"
    assert options["device_requests"][0]["DeviceIDs"] == ["GPU-5d9f"]
    assert options["device_requests"][0]["Count"] == 0
    assert "NVIDIA_VISIBLE_DEVICES=GPU-5d9f" in device_environment("gpu:GPU-5d9f")


def test_a_cpu_run_sees_no_gpu_even_where_the_nvidia_runtime_is_the_default():
    assert device_options("cpu", "nvidia") == {}
    assert device_environment("cpu") == ["NVIDIA_VISIBLE_DEVICES=void"]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ('500: could not select device driver "" with capabilities: [[gpu]]', True),
        ("unknown or invalid runtime name: nvidia", True),
        ("nvidia-container-cli: initialization error: nvml error: driver not loaded", True),
        ("invalid mount config for type bind: bind source path does not exist: /srv/data", False),
        ("driver failed programming external connectivity", False),
    ],
)
def test_only_failures_to_attach_a_gpu_count_as_such(message: str, expected: bool):
    assert is_gpu_start_failure(message) is expected
