"""Checks of the Docker engine, and of a container made as the launcher makes those of runs.

One container answers most questions: it calls torch, on the GPU if there is one, and looks at its own mounts, user and
shared memory. It is removed again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from docker.errors import APIError, ContainerError, DockerException, ImageNotFound

from uveitis_assets.deployment.findings import Finding, failure, ok, warning
from uveitis_assets.launcher.container_options import IMAGE_USER, ContainerSettings, build_environment, build_options
from uveitis_assets.launcher.gpu import ALL_GPUS, CPU, how_to_install_the_runtime, is_gpu_start_failure

if TYPE_CHECKING:
    from docker import DockerClient

START_THE_ENGINE = "install Docker and start it (systemctl start docker); to use it without sudo join the group docker"
_LEAST_SHARED_MEMORY_GB = 1.0
# Importing torch from a cold disk takes its time.
_PROBE_S = 110
_PROBE = """
import json, os, platform, shutil
import torch
answer = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.cuda.is_available()}
answer["devices"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
device = "cuda" if answer["cuda"] else "cpu"
answer["sum"] = float((torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)).sum())
answer["user"] = f"{os.getuid()}:{os.getgid()}"
folders = {"data": os.environ["UVEITIS_DATA"], "raw images": os.environ["UVEITIS_RAW"], "state": "/state"}
answer["writable"] = {name: os.access(path, os.W_OK) for name, path in folders.items()}
answer["readable"] = {name: os.access(path, os.R_OK | os.X_OK) for name, path in folders.items()}
answer["shared_memory"] = shutil.disk_usage("/dev/shm").total
print(json.dumps(answer))
"""


def check_engine(client: DockerClient) -> Finding:
    """Whether the engine answers, and which version it is."""
    check = "engine"
    try:
        version = client.version()["Version"]
    except DockerException as error:
        return failure(check, f"does not answer: {error}", START_THE_ENGINE)
    return ok(check, f"Docker {version}")


def check_gpu_runtime(client: DockerClient, runtime: str) -> Finding:
    """Whether NVIDIA's runtime is registered; without it runs that prefer a GPU use the CPU."""
    check = "GPU runtime"
    runtimes = sorted(client.info().get("Runtimes") or {})
    if runtime in runtimes:
        return ok(check, f"{runtime} is registered")
    return warning(
        check,
        f"the engine lists {', '.join(runtimes)}: runs that prefer a GPU use the CPU, those that require one fail",
        how_to_install_the_runtime(runtime),
    )


def check_image(client: DockerClient, image: str) -> Finding:
    """Whether the image is there, and what it was built from."""
    check = "image"
    try:
        labels = client.images.get(image).labels
    except ImageNotFound:
        return failure(check, f"{image}: found no such image", f"IMAGE_TAG={image} docker/build.sh")
    version = labels.get("org.opencontainers.image.version", "unknown")
    revision = labels.get("org.opencontainers.image.revision", "unknown")
    return ok(check, f"{image}, version {version}, commit {revision[:12]}")


def check_run_container(
    client: DockerClient,
    image: str,
    settings: ContainerSettings,
    variables: Sequence[str],
    options: Mapping[str, Any],
) -> list[Finding]:
    """Start a container with the options of a run, on all GPUs if the engine has the runtime, and ask it.

    Args:
        client: of the engine.
        image: of the runs.
        settings: how the launcher makes containers.
        variables: UVEITIS_DATA and UVEITIS_RAW of the container, as NAME=value.
        options: ``container_kwargs`` of the deployment, such as shm_size.
    """
    findings: list[Finding] = []
    device = ALL_GPUS if settings.gpu_runtime in (client.info().get("Runtimes") or {}) else CPU
    try:
        answer = _ask(client, image, settings, variables, device=device, options=options)
    except APIError as error:
        if device == CPU or not is_gpu_start_failure(str(error)):
            return [_no_container(error)]
        findings.append(
            failure(
                "CUDA in a container",
                f"the engine could not attach a GPU: {error.explanation or error}",
                how_to_install_the_runtime(settings.gpu_runtime),
            )
        )
        device = CPU
        try:
            answer = _ask(client, image, settings, variables, device=device, options=options)
        except (APIError, ContainerError) as second:
            return [*findings, _no_container(second)]
    except ContainerError as error:
        return [_no_container(error)]
    return [*findings, *check_answer(answer, settings, on_gpu=device != CPU)]


def check_answer(answer: Mapping[str, Any], settings: ContainerSettings, *, on_gpu: bool) -> list[Finding]:
    """Findings about the answer of the probe container.

    Args:
        answer: its JSON: python, torch, cuda, devices, sum, user, writable, readable, shared_memory in bytes.
        settings: what it was made with.
        on_gpu: whether it was given GPUs.
    """
    findings = [_check_torch(answer, on_gpu=on_gpu)]
    if settings.user != IMAGE_USER and answer["user"] != settings.user:
        findings.append(
            failure("user of runs", f"found {answer['user']}, expected {settings.user}", "build the image again")
        )
    for name, wanted in (("data", True), ("state", True), ("raw images", False)):
        findings.append(_check_mount(name, answer, settings, writable=wanted))
    shared = float(answer["shared_memory"]) / 1e9
    if shared < _LEAST_SHARED_MEMORY_GB:
        findings.append(
            failure("shared memory", f"{shared:.2f} GB", "set shm_size in container_kwargs of docker/dagster.yaml")
        )
    else:
        findings.append(ok("shared memory", f"{shared:.0f} GB"))
    return findings


def _check_torch(answer: Mapping[str, Any], *, on_gpu: bool) -> Finding:
    versions = f"Python {answer['python']}, torch {answer['torch']}"
    if answer["sum"] != 64.0**3:
        return failure("torch in a container", f"{versions}: a product of ones is {answer['sum']}", "test the hardware")
    if answer["cuda"]:
        return ok("CUDA in a container", f"{versions} on {', '.join(answer['devices'])}")
    if on_gpu:
        return failure(
            "CUDA in a container",
            f"{versions}: the container was given GPUs and torch sees none",
            "see that `nvidia-smi` works on the host and that its driver is new enough for this torch's CUDA "
            "(nvidia-smi prints the newest CUDA that it supports)",
        )
    return ok("torch in a container", f"{versions} on the CPU")


def _check_mount(name: str, answer: Mapping[str, Any], settings: ContainerSettings, *, writable: bool) -> Finding:
    check = f"mount: {name}"
    if not answer["readable"][name]:
        return failure(check, f"not readable by {settings.user}", f"chown or chmod its folder for {settings.user}")
    if answer["writable"][name] and not writable:
        return failure(check, "may be written to", "declare it in read_only_volumes of docker/dagster.yaml")
    if writable and not answer["writable"][name]:
        return failure(check, f"not writable by {settings.user}", f"chown -R {settings.user} its folder")
    return ok(check, "read and write" if writable else "read only")


def _ask(
    client: DockerClient,
    image: str,
    settings: ContainerSettings,
    variables: Sequence[str],
    *,
    device: str,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    command = ["python", "-c", _PROBE]
    container = client.containers.create(
        image,
        command,
        network_mode="none",
        environment=build_environment(settings, variables, {}, device),
        **build_options(settings, options, {}, device),
    )
    try:
        container.start()
        status = container.wait(timeout=_PROBE_S)["StatusCode"]
        if status != 0:
            raise ContainerError(container, status, command, image, container.logs(stdout=False, stderr=True))
        output = container.logs(stdout=True, stderr=False)
    finally:
        # Also when it never started: the engine keeps such a container.
        container.remove(force=True)
    return dict(json.loads(output.decode().strip().splitlines()[-1]))


def _no_container(error: APIError | ContainerError) -> Finding:
    if isinstance(error, ContainerError):
        lines = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        detail = f"it ended with exit code {error.exit_status}: {lines[-1] if lines else 'no output'}"
        remedy = "build the image again with docker/build.sh; if a secret is not readable, correct its owner"
    else:
        detail = f"the engine does not start it: {error.explanation or error}"
        remedy = "correct what it names; a folder that is missing has to be made first, see the folders above"
    return failure("run container", detail, remedy)
