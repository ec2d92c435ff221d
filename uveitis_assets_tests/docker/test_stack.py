"""The deployment as a user has it: images land, runs are containers, one dies, and no secret shows anywhere."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from uveitis_assets.sample import write_fgadr, write_uwf700
from uveitis_assets_tests.conftest import REPOSITORY
from uveitis_assets_tests.docker.engine import BASE_IMAGE, EngineUnavailableError, build_image
from uveitis_assets_tests.docker.stack import IMAGE, OWNER, Stack, bring_up, build_images, compose_command

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

_FINISHED = {"SUCCESS", "FAILURE", "CANCELED"}
# What is made of images and labels; the books beside them hold times and durations.
_ARTEFACTS = ("manifests", "splits", "preproc", "labels_coco", "labels_debug")


@pytest.fixture(scope="module")
def stack(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if os.geteuid() != 0:
        pytest.skip("the deployment gets a user of its own, which only root can give folders to")
    try:
        compose_command()
        build_images(engine)
    except EngineUnavailableError as reason:
        pytest.skip(str(reason))
    with bring_up(engine, tmp_path_factory.mktemp("stack")) as running:
        yield running


def _files(root: Path) -> dict[str, str]:
    """Digest of every artefact by its path below ``root``."""
    found = [file for folder in _ARTEFACTS for file in sorted((root / folder).rglob("*")) if file.is_file()]
    return {str(file.relative_to(root)): hashlib.blake2b(file.read_bytes()).hexdigest() for file in found}


def _owners(root: Path) -> set[tuple[int, int]]:
    return {(path.stat().st_uid, path.stat().st_gid) for path in root.rglob("*")}


def test_a_submitted_lane_is_made_in_containers_and_equals_the_run_in_place(stack: Stack, tmp_path: Path) -> None:
    for sensor in ("fgadr_landing", "fgadr_labels_refresh"):
        stack.in_code_server("dagster", "sensor", "stop", sensor, "--workspace", "/opt/uveitis/workspace.yaml")
    write_fgadr(tmp_path / "landed", 4, 0, 256)
    stack.land(tmp_path / "landed")
    stack.in_code_server("uveitis-assets", "register", "fgadr")

    done = stack.submit("fgadr", "--missing")

    assert done.returncode == 0, done.stdout + done.stderr
    runs = [run for run in stack.runs() if run["jobName"].startswith("fgadr")]
    assert [(run["jobName"], run["status"]) for run in runs] == [("fgadr_lane", "SUCCESS"), ("fgadr_labels", "SUCCESS")]
    assert [stack.container(run).attrs["Config"]["Image"] for run in runs] == [IMAGE, IMAGE]
    made = _files(stack.settings.data)
    assert any(name.startswith("preproc/tiles/") for name in made)
    assert _owners(stack.settings.data) == {(OWNER, OWNER)}

    in_place = tmp_path / "data"
    # The same patients need the same key, and with it the same pseudonyms.
    shutil.copytree(stack.settings.data / "ledger", in_place / "ledger")
    _run_fgadr_in_place(in_place, stack.settings.raw, tmp_path / "home")
    assert _files(in_place) == made


def _run_fgadr_in_place(data: Path, raw: Path, home: Path) -> None:
    home.mkdir()
    shutil.copy(REPOSITORY / "dagster.yaml", home)
    variables = {"UVEITIS_DATA": str(data), "UVEITIS_RAW": str(raw), "DAGSTER_HOME": str(home)}
    environment = os.environ | variables | {"PYTHONPATH": str(REPOSITORY), "UVEITIS_WORKERS": "2"}
    batch_assets = ",".join(f"fgadr/{stage}" for stage in ("manifest", "roi_masks", "normalized_crops", "tiles"))
    materialize = ["dagster", "asset", "materialize", "-m", "uveitis_assets.definitions", "--select"]
    for arguments in (
        ["uveitis_assets.cli", "register", "fgadr"],
        [*materialize, batch_assets, "--partition", "b00001"],
        [*materialize, "fgadr/coco_labels", "--partition-range", "fold0|train...fold4|test"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_images_that_land_end_in_containerised_runs_without_a_command(stack: Stack, tmp_path: Path) -> None:
    write_uwf700(tmp_path / "landed", 3, 0, 390, 307)
    stack.land(tmp_path / "landed")
    stack.wait("COCO files of the landed images", (stack.settings.data / "labels_coco/uwf700_train.json").exists)
    runs = stack.wait(
        "the end of the runs",
        lambda: (
            (found := [run for run in stack.runs() if run["jobName"].startswith("uwf700")])
            and all(run["status"] in _FINISHED for run in found)
            and found
        ),
    )
    assert [(run["jobName"], run["status"]) for run in runs] == [
        ("uwf700_lane", "SUCCESS"),
        ("uwf700_labels", "SUCCESS"),
    ]
    assert len({stack.container(run).id for run in runs}) == 2
    assert _owners(stack.settings.data) == {(OWNER, OWNER)}
    assert len(list((stack.settings.data / "preproc/tiles_meta").glob("uwf700__*.json"))) == 3


def test_a_killed_run_is_noticed_retried_and_right(stack: Stack, tmp_path: Path) -> None:
    known = {run["runId"] for run in stack.runs()}
    # Other images than those of the test before, by seed and name; large, so that the run is still busy when it dies.
    write_uwf700(tmp_path / "drawn", 16, 7, 1560, 1228)
    stack.land_under_new_names(tmp_path / "drawn", "killed")

    def new_lane_runs() -> list[dict[str, Any]]:
        return [run for run in stack.runs() if run["runId"] not in known and run["jobName"] == "uwf700_lane"]

    victim = stack.wait("a run at work", lambda: next((r for r in new_lane_runs() if r["status"] == "STARTED"), None))
    stack.container(victim).kill()
    killed_at = time.monotonic()
    failed = stack.wait(
        "the failure", lambda: next((r for r in new_lane_runs() if r["status"] in {"FAILURE", "SUCCESS"}), None)
    )
    assert (failed["runId"], failed["status"]) == (victim["runId"], "FAILURE")
    assert time.monotonic() - killed_at < 30
    retry = stack.wait(
        "the retry",
        lambda: next((r for r in new_lane_runs() if r["parentRunId"] and r["status"] in _FINISHED), None),
    )
    assert retry["status"] == "SUCCESS"
    assert retry["parentRunId"] == victim["runId"]
    assert stack.container(retry).id != stack.container(victim).id
    assert len(list((stack.settings.data / "preproc/tiles_meta").glob("uwf700__*.json"))) == 19
    assert list(stack.settings.data.rglob("*.partial")) == []


def test_a_run_terminated_through_the_web_server_ends_with_its_container(stack: Stack, tmp_path: Path) -> None:
    write_uwf700(tmp_path / "drawn", 16, 11, 1560, 1228)
    stack.land_under_new_names(tmp_path / "drawn", "terminated")
    known = {run["runId"] for run in stack.runs()}
    victim = stack.wait(
        "a run at work",
        lambda: next(
            (
                run
                for run in stack.runs()
                if run["runId"] not in known and run["jobName"] == "uwf700_lane" and run["status"] == "STARTED"
            ),
            None,
        ),
    )
    answer = stack.graphql(
        "mutation ($id: String!) { terminateRun(runId: $id) { __typename ... on TerminateRunFailure { message } } }",
        {"id": victim["runId"]},
    )
    assert answer["terminateRun"] == {"__typename": "TerminateRunSuccess"}
    ended = stack.wait(
        "the end",
        lambda: next((r for r in stack.runs() if r["runId"] == victim["runId"] and r["status"] in _FINISHED), None),
    )
    assert ended["status"] == "CANCELED"
    stack.wait("the end of its container", lambda: stack.container(victim).status == "exited", 30)
    assert not any(run["parentRunId"] == victim["runId"] for run in stack.runs())


def test_the_password_is_in_no_configuration_history_or_log(stack: Stack) -> None:
    password = (stack.settings.secrets / "postgres_password").read_text()
    containers = stack.containers()
    assert len(containers) >= 5
    for container in containers:
        assert password not in json.dumps(container.attrs), container.name
        assert password not in container.logs().decode(errors="replace"), container.name
    for image in (IMAGE, stack.settings.image):
        assert password not in json.dumps(stack.client.images.get(image).history())
        assert "secrets/ca.crt" not in json.dumps(stack.client.images.get(image).attrs)
    leaked = [
        file
        for folder in (stack.settings.data, stack.settings.state / "dagster")
        for file in folder.rglob("*")
        if file.is_file() and password.encode() in file.read_bytes()
    ]
    assert leaked == []


def test_run_containers_have_no_rights_no_socket_and_cannot_write_raw_images(stack: Stack) -> None:
    containers = stack.run_containers()
    assert containers
    for container in containers:
        host = container.attrs["HostConfig"]
        mounts = {mount["Destination"]: mount for mount in container.attrs["Mounts"]}
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert container.attrs["Config"]["User"] == f"{OWNER}:{OWNER}"
        assert not mounts[str(stack.settings.raw)]["RW"]
        assert not any("docker.sock" in mount["Source"] for mount in mounts.values())


def test_the_web_server_answers_on_loopback_only(stack: Stack) -> None:
    bindings = [
        binding
        for container in stack.containers()
        for ports in (container.attrs["HostConfig"]["PortBindings"] or {}).values()
        for binding in ports
    ]
    assert [binding["HostIp"] for binding in bindings] == ["127.0.0.1"]


def test_the_doctor_finds_nothing_but_the_gpu_that_is_not_there(stack: Stack) -> None:
    before = len(stack.client.containers.list(all=True))
    done = subprocess.run(
        [sys.executable, "-m", "uveitis_assets.cli", "doctor", "--settings", str(stack.settings.file)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert len(stack.client.containers.list(all=True)) == before
    rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in done.stdout.splitlines() if "│" in line]
    bad = {check for check, verdict, _ in rows if verdict in {"warning", "failure"}}
    assert bad <= {"CUDA in a container", "GPU runtime", *(check for check, *_ in rows if "disk space" in check)}
    assert {"web server", "daemon", "code server", "mount: raw images", "shared memory"} <= {
        check for check, *_ in rows
    }


def test_the_image_is_little_more_than_its_python_environment(stack: Stack) -> None:
    script = "import pathlib; print(sum(f.lstat().st_blocks for f in pathlib.Path('/opt/venv').rglob('*')) * 512)"
    environment = int(stack.client.containers.run(IMAGE, ["python", "-c", script], remove=True).decode())
    assert stack.client.images.get(IMAGE).attrs["Size"] <= 1.1 * environment


def test_a_change_of_code_rebuilds_in_seconds(stack: Stack, tmp_path: Path) -> None:
    context = tmp_path / "context"
    for name in ("docker", "uveitis_assets"):
        shutil.copytree(REPOSITORY / name, context / name, ignore=shutil.ignore_patterns("__pycache__", ".env"))
    for name in (".dockerignore", "constraints.txt", "dagster.yaml", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, context)
    with (context / "uveitis_assets/storage.py").open("a") as code:
        code.write(f"\n# {tmp_path}\n")
    started = time.monotonic()
    build_image(
        "uveitis-assets-test-change:latest",
        context,
        dockerfile=context / "docker/Dockerfile",
        arguments={"BASE_IMAGE": BASE_IMAGE},
    )
    took = time.monotonic() - started
    stack.client.images.remove("uveitis-assets-test-change:latest")
    assert took < 10
