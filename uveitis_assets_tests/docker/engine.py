"""A real Docker engine for tests: find one or start one, make a base image without a registry, build images.

Whatever needs an engine starts here: the tests of the launcher and of the deployment. An engine that was started
stays up, like the images, so that the next session finds both.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import docker
from docker.errors import DockerException, ImageNotFound

from uveitis_assets_tests.patience import patience

BASE_IMAGE = "debian:bookworm-slim"
# Registered beside runc, so that asking for the runtime reaches an engine that has no GPU.
NVIDIA_RUNTIME = "nvidia=runc"
_WORK = Path("/var/tmp/uveitis-assets-docker")
_START_S = 60
_PULL_S = 60
_CA_BUNDLES = (Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/pki/tls/certs/ca-bundle.crt"))
# A hook is given the container's state, with the folder of its configuration, on standard input.
_STAND_IN_HOOK = """\
#!/bin/sh
bundle=$(sed 's/.*"bundle":"\\([^"]*\\)".*/\\1/')
wanted=$(grep -o 'NVIDIA_VISIBLE_DEVICES=[^"]*' "$bundle/config.json" | tail -n 1)
case "${wanted#*=}" in
  0|1|0,1|all) exit 0 ;;
  *) echo "nvidia-container-cli: device error: ${wanted#*=}: unknown device" >&2; exit 1 ;;
esac
"""


class EngineUnavailableError(Exception):
    """There is no engine and none can be started; the message is the reason for skipping."""


class ToolMissingError(Exception):
    """There is an engine, and a program that the tests need beside it is not installed; the message says which."""


def connect() -> docker.DockerClient:
    """Client of a running engine, started here if need be.

    Raises:
        EngineUnavailableError: no engine answers and this machine cannot start one.
    """
    if not _answers():
        _start()
    return docker.from_env(timeout=patience(60))


def ensure_base_image(client: docker.DockerClient) -> None:
    """Have debian:bookworm-slim in the engine: already there, pulled, or made by debootstrap.

    Raises:
        ToolMissingError: the registry does not answer and debootstrap is missing.
    """
    try:
        client.images.get(BASE_IMAGE)
    except ImageNotFound:
        if not _pulled():
            _bootstrap()


def build_image(tag: str, context: Path, *, dockerfile: Path | None = None, arguments: Mapping[str, str] = {}) -> None:
    """Build with BuildKit on the host's network; the host's CA bundle is the optional build secret ``ca``.

    Raises:
        RuntimeError: the build failed; the end of its output is in the message.
    """
    command = [_cli_with_buildkit(), "build", "--network", "host", "--tag", tag, "--progress", "plain"]
    if dockerfile is not None:
        command += ["--file", str(dockerfile)]
    for name, value in sorted(arguments.items()):
        command += ["--build-arg", f"{name}={value}"]
    for bundle in _CA_BUNDLES:
        if bundle.is_file():
            command += ["--secret", f"id=ca,src={bundle}"]
            break
    built = subprocess.run(
        [*command, str(context)],
        env=os.environ | {"DOCKER_BUILDKIT": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if built.returncode != 0:
        raise RuntimeError(f"{tag} was not built ({' '.join(command)}):\n{built.stdout[-6000:]}")


@contextmanager
def engine_with_stand_in_gpus(work: Path) -> Iterator[str]:
    """Address of a second engine on whose host two GPUs, 0 and 1, seem to be; it has the base image and no network.

    Dockerd takes a host for one with NVIDIA's driver when it finds a program called nvidia-container-runtime-hook, and
    runs it before each container that was given GPUs. Ours knows two devices and refuses others in NVIDIA's words.
    So it proves what reaches the runtime, and nothing about a GPU. The engine lives in a network namespace of its own,
    because a second one beside a live one would remove the first one's bridge.

    Raises:
        EngineUnavailableError: this machine cannot start it.
    """
    daemon = _daemon_program()
    programs = work / "bin"
    programs.mkdir()
    hook = programs / "nvidia-container-runtime-hook"
    hook.write_text(_STAND_IN_HOOK)
    hook.chmod(0o755)
    address = f"unix://{work}/docker.sock"
    command = ["unshare", "--net", daemon, "--host", address, "--add-runtime", NVIDIA_RUNTIME]
    command += ["--data-root", str(work / "data"), "--exec-root", str(work / "exec"), "--pidfile", str(work / "pid")]
    command += ["--bridge", "none", "--iptables=false"]
    path = f"{programs}:{os.environ['PATH']}:/usr/sbin"
    process = _start_daemon(command, work / "dockerd.log", address, os.environ | {"PATH": path})
    try:
        with subprocess.Popen(["docker", "save", BASE_IMAGE], stdout=subprocess.PIPE) as image:
            load = ["docker", "--host", address, "load"]
            subprocess.run(load, stdin=image.stdout, check=True, capture_output=True)
        yield address
    finally:
        _remove_containers(address)
        process.terminate()
        process.wait(30)
        shutil.rmtree(work / "data", ignore_errors=True)


def free_port() -> int:
    """A port of this host that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def has_stand_in_gpu_runtime(client: docker.DockerClient) -> bool:
    """Whether the engine's nvidia runtime is only runc under that name: asked for by tests, and without a GPU."""
    runtime = client.info()["Runtimes"].get("nvidia")
    return runtime is not None and Path(runtime.get("path", "")).name == "runc"


def _remove_containers(address: str) -> None:
    client = docker.DockerClient(base_url=address)
    for container in client.containers.list(all=True):
        container.remove(force=True)
    client.close()


def _answers(address: str | None = None) -> bool:
    try:
        client = docker.DockerClient(base_url=address, timeout=5) if address else docker.from_env(timeout=5)
    except DockerException:
        return False
    try:
        return bool(client.ping())
    except DockerException:
        return False
    finally:
        client.close()


def _start() -> None:
    _WORK.mkdir(parents=True, exist_ok=True)
    _start_daemon([_daemon_program(), "--add-runtime", NVIDIA_RUNTIME], _WORK / "dockerd.log", None, os.environ)


def _daemon_program() -> str:
    daemon = shutil.which("dockerd") or shutil.which("dockerd", path="/usr/sbin:/usr/local/sbin")
    if daemon is None:
        raise EngineUnavailableError("no Docker engine: apt-get install -y docker.io iptables debootstrap")
    if os.geteuid() != 0:
        raise EngineUnavailableError("no Docker engine is running, and only root can start one")
    return daemon


def _start_daemon(
    command: list[str], log: Path, address: str | None, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + patience(_START_S)
    while not _answers(address):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise EngineUnavailableError(f"dockerd cannot run on this machine; the end of its log:\n{tail}")
        time.sleep(0.2)
    return process


def _pulled() -> bool:
    try:
        pull = subprocess.run(["docker", "pull", BASE_IMAGE], capture_output=True, timeout=_PULL_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    return pull.returncode == 0


def _bootstrap() -> None:
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        raise ToolMissingError(
            f"{BASE_IMAGE} can neither be pulled nor made: apt-get install -y debootstrap, and run as root"
        )
    root = _WORK / "rootfs"
    shutil.rmtree(root, ignore_errors=True)
    subprocess.run(["debootstrap", "--variant=minbase", "bookworm", str(root)], check=True, stdout=subprocess.DEVNULL)
    with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as archive:
        subprocess.run(["docker", "import", "-", BASE_IMAGE], stdin=archive.stdout, check=True, capture_output=True)
    shutil.rmtree(root)


def _cli_with_buildkit() -> str:
    """A docker command that can build with secrets: up to 22 by itself, later ones with the buildx plugin."""
    candidates = [found for found in (shutil.which("docker"), "/usr/bin/docker") if found and Path(found).is_file()]
    for candidate in dict.fromkeys(candidates):
        version = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False).stdout
        number = re.search(r"version (\d+)", version)
        buildx = subprocess.run([candidate, "buildx", "version"], capture_output=True, check=False)
        if (number and int(number[1]) < 23) or buildx.returncode == 0:
            return candidate
    raise ToolMissingError(f"no docker command with BuildKit among {candidates}: install docker.io or buildx")
