"""Runs in containers of a real engine: what they are, how they die, how that is reported, what stays behind."""

import json
from typing import Any

import dagster as dg
import pytest

from uveitis_assets.launcher import GpuDockerRunLauncher, docker_run_launcher
from uveitis_assets_tests.docker.deployment import DEPLOYMENT, IMAGE, SECRET, Deployment, overrides

pytestmark = pytest.mark.docker


def test_a_run_materializes_in_a_container_that_gave_up_its_rights(deployment: Deployment):
    run_id = deployment.submit(
        "surroundings", overrides(mem_limit="700m", environment={"OWN_VARIABLE": "1"}, labels={"tier": "night"})
    )
    run = deployment.finished(run_id)
    assert run.status is dg.DagsterRunStatus.SUCCESS, deployment.messages(run_id)
    assert run.tags["uveitis/device"] == "cpu"

    seen = deployment.metadata("surroundings")
    assert seen["user"] == deployment.instance.run_launcher.settings.user
    assert set(seen["capabilities"]) == {"0"}
    assert seen["no_new_privileges"] == "1"
    assert seen["shm_bytes"] == 96 * 2**20
    assert seen["engine_socket"] == "[]"
    assert seen["raw_image"] == "pixels"
    assert seen["write_to_raw"] == "Read-only file system"
    assert seen["secret"] == SECRET
    assert seen["visible_gpus"] == "void"
    assert seen["own_variable"] == "1"

    inspected = deployment.container(run_id).attrs
    assert inspected["Config"]["Image"] == IMAGE
    assert SECRET not in json.dumps(inspected)
    assert inspected["HostConfig"]["Memory"] == inspected["HostConfig"]["MemorySwap"] == 700 * 2**20
    labels = inspected["Config"]["Labels"]
    assert {"team": "retina", "tier": "night", "dagster/run_id": run_id}.items() <= labels.items()


def test_a_killed_container_is_reported_and_its_run_retried(deployment: Deployment):
    release = deployment.shared / "release"
    release.unlink(missing_ok=True)
    run_id = deployment.submit("waiting")
    deployment.wait("the asset", lambda: b"waiting for the test" in deployment.container(run_id).logs())
    deployment.container(run_id).kill()
    release.touch()

    assert deployment.finished(run_id).status is dg.DagsterRunStatus.FAILURE
    failure = "\n".join(deployment.messages(run_id))
    assert "ended by SIGKILL (exit code 137)" in failure
    assert "waiting for the test" in failure, "the end of the container's log is quoted"
    assert "OOM" not in failure

    children = dg.RunsFilter(tags={"dagster/parent_run_id": run_id})
    deployment.wait("the retry", lambda: deployment.instance.get_runs(children))
    (retry,) = deployment.instance.get_runs(children)
    assert deployment.finished(retry.run_id).status is dg.DagsterRunStatus.SUCCESS
    assert deployment.container(retry.run_id).id != deployment.container(run_id).id
    # The asset holds the one slot of its pool: the retry could only run once the dead run's slot was free again.


def test_a_run_that_exceeds_its_memory_limit_fails_with_the_limit(deployment: Deployment):
    run_id = deployment.submit("memory_hungry", {**overrides(mem_limit="300m"), "dagster/max_retries": "0"})
    assert deployment.finished(run_id).status is dg.DagsterRunStatus.FAILURE
    failure = "\n".join(deployment.messages(run_id))
    assert "Out of memory (OOM)" in failure
    assert "memory limit of 300 MiB" in failure
    assert "taking memory" in failure


@pytest.mark.usefixtures("stand_in_gpu_runtime")
def test_a_run_that_prefers_a_gpu_is_started_again_on_the_cpu_when_the_engine_has_no_gpu_driver(
    deployment: Deployment,
):
    run_id = deployment.submit("prefers_gpu")
    run = deployment.finished(run_id)
    assert run.status is dg.DagsterRunStatus.SUCCESS
    assert run.tags["uveitis/device"] == "cpu"
    (failure,) = [message for message in deployment.messages(run_id) if "prefers a GPU and gets the CPU" in message]
    assert "could not select device driver" in failure
    assert deployment.metadata("prefers_gpu")["visible_gpus"] == "void"
    own = deployment.client.containers.list(all=True, filters={"label": f"dagster/run_id={run_id}"})
    assert [container.id for container in own] == [run.tags["docker/container_id"]], "no failed start stays behind"


@pytest.mark.usefixtures("stand_in_gpu_runtime")
def test_the_need_of_a_job_is_that_of_its_most_demanding_asset(deployment: Deployment):
    run_id = deployment.submit_job("with_a_gpu")
    assert deployment.finished(run_id).status is dg.DagsterRunStatus.SUCCESS
    assert any("prefers a GPU and gets the CPU" in message for message in deployment.messages(run_id))

    insisting = deployment.submit_job("with_a_gpu", {"uveitis/gpu": "required"})
    assert deployment.finished(insisting).status is dg.DagsterRunStatus.FAILURE
    assert any("The run needs a GPU" in message for message in deployment.messages(insisting))


@pytest.mark.usefixtures("stand_in_gpu_runtime")
def test_a_run_that_requires_a_gpu_fails_at_once_with_what_to_install_and_is_not_retried(deployment: Deployment):
    run_id = deployment.submit("requires_gpu")
    run = deployment.finished(run_id)
    assert run.status is dg.DagsterRunStatus.FAILURE
    assert run.tags["dagster/will_retry"] == "false"
    failure = "\n".join(deployment.messages(run_id))
    assert "could not select device driver" in failure
    assert "Install the NVIDIA driver and the NVIDIA Container Toolkit" in failure
    assert not deployment.client.containers.list(all=True, filters={"label": f"dagster/run_id={run_id}"})


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"privileged": True}, "sets 'privileged', which a run may not"),
        # The database's password to a listener, and files of the image as raw images.
        (
            {
                "environment": {
                    "WANDB_BASE_URL": "http://192.0.2.1:8080",
                    "UVEITIS_WANDB_KEY_FILE": "/run/secrets/postgres_password",
                }
            },
            "sets 'WANDB_BASE_URL' in environment, which a run may not",
        ),
        ({"environment": {"UVEITIS_RAW": "/etc"}}, "sets 'UVEITIS_RAW' in environment, which a run may not"),
    ],
)
def test_a_run_may_not_ask_for_more_than_its_size(deployment: Deployment, options: dict[str, Any], refused: str):
    run_id = deployment.submit("surroundings", overrides(**options))
    assert deployment.finished(run_id).status is dg.DagsterRunStatus.FAILURE
    assert any(refused in message for message in deployment.messages(run_id))
    assert "docker/container_id" not in deployment.run(run_id).tags


@pytest.mark.parametrize("where", ["the UI, which cannot reach the engine", "a process that can"])
def test_stopping_a_run_stops_its_container(deployment: Deployment, where: str):
    (deployment.shared / "release").unlink(missing_ok=True)
    run_id = deployment.submit("waiting")
    container = deployment.container(run_id)
    deployment.wait("the asset", lambda: b"waiting for the test" in container.logs())
    if where == "a process that can":
        assert deployment.instance.run_launcher.terminate(run_id)
    else:
        deployment.graphql.terminate_run(run_id)
    assert deployment.finished(run_id).status is dg.DagsterRunStatus.CANCELED
    deployment.wait("the container's end", lambda: deployment.container(run_id).status == "exited")


def test_stopped_containers_are_removed_after_retention_and_running_and_foreign_ones_stay(deployment: Deployment):
    finished = deployment.submit("surroundings")
    assert deployment.finished(finished).status is dg.DagsterRunStatus.SUCCESS
    container = deployment.container(finished)
    deployment.wait("the container's end", lambda: deployment.container(finished).status == "exited")
    foreign = deployment.client.containers.run(
        IMAGE, ["true"], detach=True, labels={"uveitis/deployment": "another", "uveitis-assets-tests/role": "foreign"}
    )
    foreign.wait()
    (deployment.shared / "release").unlink(missing_ok=True)
    working = deployment.submit("waiting")
    busy = deployment.container(working)
    try:
        assert deployment.instance.run_launcher.remove_stopped_containers() == [], "retention is 24 hours by default"
        impatient = GpuDockerRunLauncher(deployment=DEPLOYMENT, retention_hours=0.0)
        impatient.register_instance(deployment.instance)
        assert container.name in impatient.remove_stopped_containers()
        left = {one.id for one in deployment.client.containers.list(all=True)}
        assert container.id not in left
        assert {foreign.id, busy.id} <= left
    finally:
        foreign.remove(force=True)
        (deployment.shared / "release").touch()
    assert deployment.finished(working).status is dg.DagsterRunStatus.SUCCESS


def test_a_container_whose_run_was_ended_from_outside_is_stopped(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
):
    (deployment.shared / "release").unlink(missing_ok=True)
    run_id = deployment.submit("waiting")
    container = deployment.container(run_id)
    deployment.wait("the asset", lambda: b"waiting for the test" in container.logs())
    deployment.instance.report_run_canceled(deployment.run(run_id))
    monkeypatch.setattr(docker_run_launcher, "ABANDONED_AFTER_S", 0.0)
    deployment.instance.run_launcher.remove_stopped_containers()
    container.reload()
    assert container.status == "exited"
