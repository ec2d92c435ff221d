"""GPUs that reach a real engine: which runtime, which devices, and what happens with one that does not exist.

The GPUs are stand-ins (see ``engine_with_stand_in_gpus``): the engine does what it does for real ones, up to the point
where NVIDIA's runtime would take over.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import docker
import pytest

from uveitis_assets_tests.docker.engine import BASE_IMAGE, engine_with_stand_in_gpus, ensure_base_image
from uveitis_assets_tests.launcher.launches import Launches
from uveitis_assets_tests.patience import patience

pytestmark = pytest.mark.docker

PROGRAM = ("sh", "-c", "env; echo ready; sleep 60")


@pytest.fixture(scope="module")
def gpu_engine(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For the tests of this module, docker means an engine with two stand-in GPUs."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a second engine")
    ensure_base_image(engine)
    second = engine_with_stand_in_gpus(tmp_path_factory.mktemp("gpus"))
    with second as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", address)
        yield


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(tmp_path)) as made:
        yield made


def _environment(launches: Launches, run: dg.DagsterRun) -> dict[str, str]:
    """The environment that the container's program found."""
    deadline = time.monotonic() + patience(20)
    while b"ready" not in (log := launches.container(run).logs()):
        assert time.monotonic() < deadline, log
        time.sleep(0.1)
    return dict(line.split("=", 1) for line in log.decode().splitlines() if "=" in line)


@pytest.mark.usefixtures("gpu_engine")
def test_runs_at_the_same_time_get_a_gpu_each(instance: dg.DagsterInstance):
    launches = Launches(instance, image=BASE_IMAGE, program=PROGRAM, gpu_devices=["0", "1"])
    first = launches.launch({"uveitis/gpu": "required"})
    second = launches.launch({"uveitis/gpu": "preferred"})
    for run, device in ((first, "0"), (second, "1")):
        assert run.tags["uveitis/device"] == f"gpu:{device}"
        asked = launches.container(run).attrs["HostConfig"]
        assert asked["Runtime"] == "nvidia"
        assert asked["DeviceRequests"][0]["DeviceIDs"] == [device]
        assert _environment(launches, run)["NVIDIA_VISIBLE_DEVICES"] == device
    launches.container(first).kill()
    assert launches.launch({"uveitis/gpu": "required"}).tags["uveitis/device"] == "gpu:0"


@pytest.mark.usefixtures("gpu_engine")
def test_a_gpu_that_the_host_does_not_have_counts_as_none(instance: dg.DagsterInstance):
    launches = Launches(instance, image=BASE_IMAGE, program=PROGRAM, gpu_devices=["7"])
    preferring = launches.launch({"uveitis/gpu": "preferred"})
    assert preferring.tags["uveitis/device"] == "cpu"
    assert _environment(launches, preferring)["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert any("7: unknown device" in message for message in launches.messages(preferring))

    requiring = launches.launch({"uveitis/gpu": "required"})
    assert requiring.status is dg.DagsterRunStatus.FAILURE
    assert any("7: unknown device" in message for message in launches.messages(requiring))
