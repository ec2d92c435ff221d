"""What the engine makes of the options: owners of files, and folders that do not exist."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import docker
import pytest
from docker.errors import APIError

from uveitis_assets_tests.docker.engine import BASE_IMAGE, ensure_base_image
from uveitis_assets_tests.launcher.launches import Launches
from uveitis_assets_tests.patience import patience

pytestmark = pytest.mark.docker


@pytest.fixture
def instance(tmp_path: Path, engine: docker.DockerClient) -> Iterator[dg.DagsterInstance]:
    """An instance beside an engine with the base image; the containers of its runs are removed."""
    ensure_base_image(engine)
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(tmp_path)) as made:
        yield made
        for run in made.get_runs():
            for container in engine.containers.list(all=True, filters={"label": f"dagster/run_id={run.run_id}"}):
                container.remove(force=True)


def test_what_a_run_writes_belongs_to_the_configured_user(instance: dg.DagsterInstance, tmp_path: Path):
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o777)
    launches = Launches(
        instance,
        image=BASE_IMAGE,
        program=("sh", "-c", "touch /data/made $HOME/also && echo $USER"),
        user="12345:23456",
        volumes=[f"{data}:/data"],
    )
    container = launches.container(launches.launch())
    container.wait(timeout=patience(30))
    assert container.logs(stderr=False) == b"uveitis\n"
    made = (data / "made").stat()
    assert (made.st_uid, made.st_gid) == (12345, 23456)


def test_a_folder_that_is_missing_on_the_host_is_an_error_and_is_not_made(instance: dg.DagsterInstance, tmp_path: Path):
    missing = tmp_path / "missing"
    launches = Launches(instance, image=BASE_IMAGE, program=("true",), volumes=[f"{missing}:/data"])
    with pytest.raises(APIError, match=f"bind source path does not exist: {missing}"):
        launches.launch()
    assert not missing.exists()
