"""The deployment as a user has it: images land, runs are containers, one dies, one is stopped."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from uveitis_assets.sample import write_fgadr, write_uwf700
from uveitis_assets_tests.conftest import REPOSITORY
from uveitis_assets_tests.docker.engine import BASE_IMAGE, build_image
from uveitis_assets_tests.docker.in_place import artefacts, make_fgadr_in_place
from uveitis_assets_tests.docker.stack import FINISHED, IMAGE, OWNER, Stack
from uveitis_assets_tests.patience import patience

pytestmark = [pytest.mark.docker, pytest.mark.timeout(patience(1800))]


def _owners(root: Path) -> set[tuple[int, int]]:
    return {(path.stat().st_uid, path.stat().st_gid) for path in root.rglob("*")}


def test_a_submitted_lane_is_made_in_containers_and_equals_the_run_in_place(stack: Stack, tmp_path: Path) -> None:
    stack.stop_sensors("fgadr")
    write_fgadr(tmp_path / "landed", 4, 0, 256)
    stack.land(tmp_path / "landed")
    stack.in_code_server("uveitis-assets", "register", "fgadr")

    done = stack.submit("fgadr", "--missing")

    assert done.returncode == 0, done.stdout
    runs = [run for run in stack.runs() if run["jobName"].startswith("fgadr")]
    assert [(run["jobName"], run["status"]) for run in runs] == [("fgadr_lane", "SUCCESS"), ("fgadr_labels", "SUCCESS")]
    assert [stack.container(run).attrs["Config"]["Image"] for run in runs] == [IMAGE, IMAGE]
    made = artefacts(stack.settings.data)
    assert any(name.startswith("preproc/tiles/") for name in made)
    assert _owners(stack.settings.data) == {OWNER}
    assert artefacts(make_fgadr_in_place(stack.settings, tmp_path / "in_place")) == made


def test_images_that_land_end_in_containerised_runs_without_a_command(stack: Stack, tmp_path: Path) -> None:
    write_uwf700(tmp_path / "landed", 3, 0, 390, 307)
    stack.land(tmp_path / "landed")
    stack.wait("COCO files of the landed images", (stack.settings.data / "labels_coco/uwf700_train.json").exists)
    runs = stack.wait(
        "the end of the runs",
        lambda: (
            (found := [run for run in stack.runs() if run["jobName"].startswith("uwf700")])
            and all(run["status"] in FINISHED for run in found)
            and found
        ),
    )
    assert [(run["jobName"], run["status"]) for run in runs] == [
        ("uwf700_lane", "SUCCESS"),
        ("uwf700_labels", "SUCCESS"),
    ]
    assert len({stack.container(run).id for run in runs}) == 2
    assert _owners(stack.settings.data) == {OWNER}
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
    assert time.monotonic() - killed_at < patience(30)
    retry = stack.wait(
        "the retry",
        lambda: next((r for r in new_lane_runs() if r["parentRunId"] and r["status"] in FINISHED), None),
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
        lambda: next((r for r in stack.runs() if r["runId"] == victim["runId"] and r["status"] in FINISHED), None),
    )
    assert ended["status"] == "CANCELED"
    stack.wait("the end of its container", lambda: stack.container(victim).status == "exited", 30)
    assert not any(run["parentRunId"] == victim["runId"] for run in stack.runs())


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


def test_a_change_of_code_makes_new_layers_of_the_code_alone(stack: Stack, tmp_path: Path) -> None:
    """The layers of the dependencies, 7 GB, are taken from the cache, which makes a rebuild one of seconds."""
    context, tag = tmp_path / "context", "uveitis-assets-test-change:latest"
    for name in ("docker", "uveitis_assets"):
        shutil.copytree(REPOSITORY / name, context / name, ignore=shutil.ignore_patterns("__pycache__", ".env"))
    for name in (".dockerignore", "constraints.txt", "dagster.yaml", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, context)
    with (context / "uveitis_assets/__init__.py").open("a") as code:
        code.write(f"\n# {tmp_path}\n")
    build_image(tag, context, dockerfile=context / "docker/Dockerfile", arguments={"BASE_IMAGE": BASE_IMAGE})
    before, after = (stack.client.images.get(name).attrs["RootFS"]["Layers"] for name in (IMAGE, tag))
    stack.client.images.remove(tag)
    # The sources and their compiled form.
    assert before[:-2] == after[:-2]
    assert before[-2:] != after[-2:]
