"""Trainings on the deployment: they queue for its one GPU slot, outlive restarts, and say so when memory runs out."""

import json
from typing import Any

import pytest

from uveitis_assets.deployment.webserver import Webserver
from uveitis_assets.sample import write_uwf700
from uveitis_assets_tests.docker.stack import FINISHED, OWNER, TRACKING_KEY, Stack
from uveitis_assets_tests.patience import patience

pytestmark = [pytest.mark.docker, pytest.mark.timeout(patience(1800))]

_LANE = "overfit_10"
# Seconds on a processor. W&B keeps its log in the run's folder, because nobody here has an account.
_SMALL = {
    "model": {
        "backbone": "timm_fpn",
        "timm_model": "test_resnet",
        "norm": "group",
        "input_size": 96,
        "rpn_pre_nms_train": 200,
        "rpn_post_nms_train": 100,
        "rpn_pre_nms_test": 200,
        "rpn_post_nms_test": 50,
    },
    "sampling": {"empty_share": 0.0, "max_images": 2},
    "training": {"epochs": 1, "freeze_blocks": 0, "freeze_epochs": 0, "wandb_project": "stack"},
}
_OFFLINE = {"environment": {"WANDB_MODE": "offline"}}
# Far more than the limit once it learns, and far less before: in between the kernel would only slow it down.
_LARGE = {
    "model": {"backbone": "timm_fpn", "timm_model": "resnet50", "norm": "group", "input_size": 1024},
    "training": {"epochs": 1, "batch_size": 8, "freeze_blocks": 0, "freeze_epochs": 0},
}
_LAUNCH = """
mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on PythonError { message } } }
"""


def _train(stack: Stack, fold: str, overrides: dict[str, Any], container: dict[str, Any]) -> str:
    """Ask for a training on a fold as the launchpad does; returns the run id. It is not retried."""
    selector = {
        "repositoryLocationName": "uveitis_assets",
        "repositoryName": "__repository__",
        "jobName": f"{_LANE}_training",
        "assetSelection": [{"path": [_LANE, "checkpoint"]}],
    }
    options = {"device": "cpu", "overrides": overrides}
    tags = {"dagster/partition": fold, "docker/container_kwargs": json.dumps(container), "dagster/max_retries": "0"}
    params = {
        "selector": selector,
        "runConfigData": {"ops": {f"{_LANE}__checkpoint": {"config": options}}},
        "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
    }
    answer = stack.graphql(_LAUNCH, {"params": params})["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return str(answer["run"]["runId"])


@pytest.fixture(scope="module")
def labelled(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Images of the lane that the detector learns from, through tiles and labels."""
    drawn = tmp_path_factory.mktemp("learned") / "drawn"
    write_uwf700(drawn, 12, 23, 390, 307)
    stack.land_under_new_names(drawn, "learned")
    stack.stop_sensors("uwf700")
    stack.in_code_server("uveitis-assets", "register", "uwf700")
    done = stack.submit("uwf700", "--all")
    assert done.returncode == 0, done.stdout


@pytest.mark.usefixtures("labelled")
def test_runs_over_one_gpu_slot_queue_and_go_on_after_restarts_of_daemon_and_web_server(stack: Stack) -> None:
    ids = [_train(stack, fold, _SMALL, _OFFLINE) for fold in ("fold0", "fold1")]
    first = stack.wait("a training at work", lambda: next((r for r in map(stack.run, ids) if r["startTime"]), None))
    [waiting] = [run_id for run_id in ids if run_id != first["runId"]]
    with stack.slowed(first):
        restarted = stack.compose("restart", "daemon", "webserver")
        assert restarted.returncode == 0, restarted.stderr
        stack.wait_until_healthy()
        statuses = (stack.run(first["runId"])["status"], stack.run(waiting)["status"])
        environment = stack.container(first).exec_run(["sh", "-c", 'cat "$UVEITIS_WANDB_KEY_FILE"'])
    assert statuses == ("STARTED", "QUEUED")
    assert environment.output.decode() == TRACKING_KEY

    def ended() -> list[dict[str, Any]] | None:
        runs = [stack.run(run_id) for run_id in (first["runId"], waiting)]
        return runs if all(run["status"] in FINISHED for run in runs) else None

    runs = stack.wait("the end of both trainings", ended, 480)
    assert [run["status"] for run in runs] == ["SUCCESS", "SUCCESS"]
    assert runs[1]["startTime"] >= runs[0]["endTime"]
    assert [run["tags"]["uveitis/device"] for run in runs] == ["cpu", "cpu"]
    for folder in (stack.settings.data / "runs" / _LANE, stack.settings.data / "runs" / _LANE / "fold1"):
        assert (folder / "checkpoints/best.safetensors").is_file(), folder
        assert list(folder.glob("wandb/offline-run-*")), "the key was read and W&B logged"
        assert (folder.stat().st_uid, folder.stat().st_gid) == OWNER


@pytest.mark.usefixtures("labelled")
def test_a_run_out_of_memory_fails_with_its_limit_and_what_to_do(stack: Stack) -> None:
    run_id = _train(stack, "fold2", _LARGE, {"mem_limit": "900m"})
    stack.wait("its end", lambda: stack.run(run_id)["status"] in FINISHED)
    [failure] = Webserver(stack.settings.url).failures(run_id)
    assert "Out of memory (OOM)" in failure
    assert "memory limit of 900 MiB" in failure
    assert 'docker/container_kwargs={"mem_limit": "1800m"}' in failure
    assert "Last lines of its log" in failure
    assert stack.container(stack.run(run_id)).attrs["State"]["OOMKilled"]
