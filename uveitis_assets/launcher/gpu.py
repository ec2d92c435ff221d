"""Chooses the GPU of a run, and the container options that attach it.

Plain functions on tags and names; ``docker_run_launcher`` asks the engine and starts containers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from docker.types import DeviceRequest

from uveitis_assets.launcher.gpu_need import NEED_TAG, GpuNeed

DEVICE_TAG = "uveitis/device"
CPU = "cpu"
NO_DEVICE = "none"
ALL_GPUS = "gpu"
_ONE_GPU = "gpu:"

# How engines and their NVIDIA runtime report that a GPU could not be attached: no GPU driver plugin, a runtime that is
# not registered, a runtime whose driver does not answer.
_GPU_START_FAILURES = (
    "could not select device driver",
    "unknown or invalid runtime name",
    "unknown runtime specified",
    "nvidia-container-cli",
    "nvidia-container-runtime",
)


def choose_gpu(gpu_devices: Sequence[str], devices_in_use: Iterable[str]) -> str:
    """The device of the next GPU run: the one that fewest live containers hold, in the declared order.

    Args:
        gpu_devices: the host's GPUs as the launcher's configuration declares them (index, UUID or MIG id); empty
            means that a run sees all of them.
        devices_in_use: ``uveitis/device`` labels of the live containers, with repetitions.
    """
    if not gpu_devices:
        return ALL_GPUS
    holders = Counter(devices_in_use)
    return min((_ONE_GPU + device for device in gpu_devices), key=lambda device: holders[device])


def is_gpu_start_failure(message: str) -> bool:
    """Whether the engine could not start the container because of its GPU, by the engine's error message."""
    return any(fragment in message for fragment in _GPU_START_FAILURES)


def device_options(device: str, gpu_runtime: str) -> dict[str, Any]:
    """Options of ``containers.create`` that attach ``device`` (cpu, gpu for all, or gpu:<id>)."""
    if device == CPU:
        return {}
    chosen = {"count": -1} if device == ALL_GPUS else {"device_ids": [device.removeprefix(_ONE_GPU)]}
    # Both, because there are hosts where device requests alone end in "Failed to initialize NVML".
    return {"runtime": gpu_runtime, "device_requests": [DeviceRequest(capabilities=[["gpu"]], **chosen)]}


def device_environment(device: str) -> list[str]:
    """Variables that tell NVIDIA's runtime the same; where it is the default runtime, only they count."""
    if device == CPU:
        return ["NVIDIA_VISIBLE_DEVICES=void"]
    visible = "all" if device == ALL_GPUS else device.removeprefix(_ONE_GPU)
    return [f"NVIDIA_VISIBLE_DEVICES={visible}", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"]


def how_to_install_the_runtime(gpu_runtime: str) -> str:
    """How to install the NVIDIA runtime on the host, for error messages."""
    return (
        f"Install the NVIDIA driver and the NVIDIA Container Toolkit on the engine's host, register the runtime with "
        f"`nvidia-ctk runtime configure --runtime=docker`, restart the engine and see that `docker info` lists "
        f"{gpu_runtime!r}"
    )


def how_to_get_a_gpu(gpu_runtime: str) -> str:
    """What to do about a run that was refused for lack of a GPU, for its error message."""
    return (
        f"{how_to_install_the_runtime(gpu_runtime)}; then re-execute the run. To let it use the CPU, give it the tag "
        f"{NEED_TAG}={GpuNeed.PREFERRED}. It is not retried by itself."
    )
