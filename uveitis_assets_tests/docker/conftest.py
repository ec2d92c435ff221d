"""One engine, one small deployment and one whole one for all tests that need them.

A machine on which no engine can be started skips them. Where one runs, whatever else is missing is an error that says
what to install: a proof that is skipped in silence is none.
"""

from collections.abc import Iterator

import docker
import pytest

from uveitis_assets_tests.docker.deployment import Deployment, build_run_image, deploy
from uveitis_assets_tests.docker.engine import EngineUnavailableError, connect, has_stand_in_gpu_runtime
from uveitis_assets_tests.docker.stack import Stack, bring_up, build_images


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """A client of a real engine; the test is skipped with the reason where there is none."""
    try:
        client = connect()
    except EngineUnavailableError as reason:
        pytest.skip(str(reason))
    yield client
    client.close()


@pytest.fixture(scope="session")
def deployment(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A running deployment whose runs are containers."""
    work = tmp_path_factory.mktemp("deployment")
    build_run_image(engine, work)
    with deploy(engine, work) as running:
        yield running


@pytest.fixture(scope="session")
def stack(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The deployment of docker/compose.yaml, with the image of this repository."""
    build_images(engine)
    with bring_up(engine, tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture
def stand_in_gpu_runtime(engine: docker.DockerClient) -> None:
    """An engine whose nvidia runtime is runc by another name: the request reaches it and no GPU answers."""
    if not has_stand_in_gpu_runtime(engine):
        pytest.skip("the engine was not started with --add-runtime nvidia=runc")
