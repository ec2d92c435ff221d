"""The launcher's decisions on an instance of Dagster and an engine in memory."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import dagster as dg
import docker
import pytest
import yaml

# Private: Dagster's queue looks for this error, and exports it nowhere.
from dagster._core.errors import DagsterUserCodeUnreachableError
from docker.errors import APIError, DockerException

from uveitis_assets.deployment.retrying_postgres import LOST_CONNECTION_EXIT_CODE
from uveitis_assets.launcher import GpuDockerRunLauncher
from uveitis_assets.launcher.refusal import LaunchRefusedError
from uveitis_assets_tests.launcher.fake_engine import NO_GPU_DRIVER, FakeEngine
from uveitis_assets_tests.launcher.launches import Launches


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine()
    monkeypatch.setattr(docker, "from_env", lambda: fake)
    monkeypatch.setattr(docker.client, "from_env", lambda: fake)
    return fake


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    home = tmp_path_factory.mktemp("dagster_home")
    settings = {"run_retries": {"enabled": True, "max_retries": 3}, "run_monitoring": {"enabled": True}}
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings | {"telemetry": {"enabled": False}}))
    with dg.DagsterInstance.from_config(str(home)) as made:
        yield made


def test_a_run_without_a_need_gets_the_cpu_and_the_engine_is_not_asked_for_gpus(instance, engine):
    launches = Launches(instance)
    run = launches.launch(assets={"manifest": "none", "tiles": ""})
    container = launches.container(run)
    assert run.tags["uveitis/device"] == "cpu"
    assert container.status == "running"
    assert "runtime" not in container.options
    assert container.environment["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_a_run_that_selects_a_gpu_asset_gets_the_gpu(instance, engine):
    launches = Launches(instance)
    run = launches.launch(assets={"manifest": "none", "checkpoint": "required"})
    container = launches.container(run)
    assert run.tags["uveitis/device"] == "gpu"
    assert container.options["runtime"] == "nvidia"
    assert container.options["device_requests"][0]["Count"] == -1
    assert container.labels["uveitis/device"] == "gpu"


def test_a_queued_need_counts_while_the_code_is_away_and_an_unknown_one_is_not_taken_for_none(instance, engine):
    launches = Launches(instance)
    run = launches.launch({"uveitis/gpu_need": "preferred"}, assets={"checkpoint": ""}, code_is_away=True)
    assert run.tags["uveitis/device"] == "gpu"
    launched = len(engine.all)
    with pytest.raises(DagsterUserCodeUnreachableError, match="waits in the queue"):
        launches.launch(assets={"checkpoint": "preferred"}, code_is_away=True)
    assert len(engine.all) == launched
    own = launches.launch({"uveitis/gpu": "none", "uveitis/gpu_need": "preferred"}, code_is_away=True)
    assert own.tags["uveitis/device"] == "cpu"


def test_a_training_needs_a_gpu_where_the_deployment_declares_one_and_prefers_it_elsewhere(instance, engine):
    engine.runtimes = ("runc",)
    elsewhere = Launches(instance).launch(assets={"checkpoint": "required-if-declared"})
    assert elsewhere.tags["uveitis/device"] == "cpu"
    refused = Launches(instance, gpu_devices=["0"]).launch(assets={"checkpoint": "required-if-declared"})
    assert refused.status is dg.DagsterRunStatus.FAILURE
    assert refused.tags["uveitis/device"] == "none"


def test_a_preferring_run_falls_back_with_the_reason_when_the_runtime_is_absent(instance, engine):
    engine.runtimes = ("io.containerd.runc.v2", "runc")
    launches = Launches(instance)
    run = launches.launch({"uveitis/gpu": "preferred"})
    assert run.tags["uveitis/device"] == "cpu"
    assert launches.container(run).status == "running"
    (reason,) = [message for message in launches.messages(run) if "prefers a GPU and gets the CPU" in message]
    assert "no runtime 'nvidia' (it lists io.containerd.runc.v2, runc)" in reason


def test_a_preferring_run_falls_back_when_the_gpu_container_does_not_start_and_leaves_none_behind(instance, engine):
    engine.gpu_start_error = NO_GPU_DRIVER
    launches = Launches(instance)
    run = launches.launch({"uveitis/gpu": "preferred"})
    assert run.tags["uveitis/device"] == "cpu"
    (container,) = engine.all
    assert container is launches.container(run)
    assert "device_requests" not in container.options
    assert any(NO_GPU_DRIVER in message and "gets the CPU" in message for message in launches.messages(run))


@pytest.mark.parametrize("problem", ["no runtime", "start fails"])
def test_a_requiring_run_fails_at_once_with_what_to_install_and_is_not_retried(instance, engine, problem):
    if problem == "no runtime":
        engine.runtimes = ("runc",)
    else:
        engine.gpu_start_error = NO_GPU_DRIVER
    launches = Launches(instance)

    run = launches.launch({"uveitis/gpu": "required"})

    assert run.status is dg.DagsterRunStatus.FAILURE
    assert engine.all == []
    assert run.tags["dagster/will_retry"] == "false"
    assert run.tags["uveitis/device"] == "none"
    assert run.tags["dagster/max_retries"] == "3", "a re-execution copies the tags and must keep its retries"
    failures = [
        entry for entry in instance.all_logs(run.run_id) if entry.dagster_event and entry.dagster_event.is_failure
    ]
    (failure,) = failures
    assert "NVIDIA Container Toolkit" in failure.message
    assert "nvidia-ctk runtime configure" in failure.message
    assert ("no runtime 'nvidia'" if problem == "no runtime" else NO_GPU_DRIVER) in failure.message


def test_another_start_failure_is_not_mistaken_for_a_missing_gpu(instance, engine):
    engine.start_error = "invalid mount config for type bind: bind source path does not exist: /srv/data"
    launches = Launches(instance)
    with pytest.raises(APIError, match="bind source path does not exist"):
        launches.launch({"uveitis/gpu": "preferred"})
    assert engine.all == [], "the container that could not start is removed"


@pytest.mark.parametrize(
    "tags",
    [
        {"uveitis/gpu": "maybe"},
        {"docker/container_kwargs": '{"privileged": true}'},
        {"docker/container_kwargs": "{"},
        # The database's password to a listener, and the host's files as raw images.
        {
            "docker/container_kwargs": '{"environment": {"WANDB_BASE_URL": "http://192.0.2.1:8080", '
            '"UVEITIS_WANDB_KEY_FILE": "/run/secrets/postgres_password"}}'
        },
        {"docker/container_kwargs": '{"environment": {"UVEITIS_RAW": "/etc"}}'},
    ],
)
def test_a_wrong_tag_fails_the_run_without_retry_before_any_container_is_made(instance, engine, tags):
    launches = Launches(instance)
    run = launches.launch(tags)
    assert run.status is dg.DagsterRunStatus.FAILURE
    assert run.tags["dagster/will_retry"] == "false"
    assert engine.all == []
    assert any(next(iter(tags)) in message for message in launches.messages(run))


def test_several_gpus_are_assigned_one_per_run_and_given_again_when_free(instance, engine):
    launches = Launches(instance, gpu_devices=["0", "1"])
    first, second = (launches.launch({"uveitis/gpu": "preferred"}) for _ in range(2))
    assert [first.tags["uveitis/device"], second.tags["uveitis/device"]] == ["gpu:0", "gpu:1"]
    assert launches.container(second).options["device_requests"][0]["DeviceIDs"] == ["1"]
    assert launches.container(second).environment["NVIDIA_VISIBLE_DEVICES"] == "1"
    launches.container(second).status = "exited"
    third, fourth = (launches.launch({"uveitis/gpu": "required"}) for _ in range(2))
    assert third.tags["uveitis/device"] == "gpu:1"
    assert not any("shares" in message for message in launches.messages(third))
    assert fourth.tags["uveitis/device"] == "gpu:0"
    assert any("All GPUs are held; the run shares gpu:0" in message for message in launches.messages(fourth))


def test_runs_launched_at_the_same_moment_are_not_given_the_same_gpu(instance, engine):
    launches = Launches(instance, gpu_devices=["0", "1", "2", "3"])
    engine.create_delay_s = 0.05
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: launches.launch({"uveitis/gpu": "required"}), range(4)))
    assert sorted(run.tags["uveitis/device"] for run in runs) == ["gpu:0", "gpu:1", "gpu:2", "gpu:3"]


def test_the_device_of_the_parent_run_is_not_inherited(instance, engine):
    launches = Launches(instance)
    run = launches.launch({"uveitis/device": "gpu:7", "docker/container_id": "gone"})
    assert run.tags["uveitis/device"] == "cpu"
    assert "device_requests" not in launches.container(run).options


def test_a_resumed_run_is_given_its_device_anew(instance, engine):
    engine.gpu_start_error = NO_GPU_DRIVER
    launches = Launches(instance)
    run = launches.launch({"uveitis/gpu": "preferred", "uveitis/device": "gpu"}, resume=True)
    assert run.tags["uveitis/device"] == "cpu"
    assert "resume_run" in launches.container(run).options["command"]


def test_the_labels_of_one_run_do_not_appear_on_the_next(instance, engine):
    launches = Launches(instance, container_kwargs={"labels": {"team": "retina"}})
    first = launches.launch({"docker/container_kwargs": '{"labels": {"experiment": "a"}}'})
    second = launches.launch()
    assert launches.container(first).labels["experiment"] == "a"
    assert "experiment" not in launches.container(second).labels
    assert launches.container(first).labels["dagster/run_id"] == first.run_id
    assert launches.container(second).labels["dagster/run_id"] == second.run_id
    assert launches.launcher.container_kwargs == {"labels": {"team": "retina"}}


def test_a_run_resizes_its_container_and_keeps_the_rest_of_the_deployments_options(instance, engine):
    launches = Launches(instance, container_kwargs={"mem_limit": "8g", "labels": {"team": "retina"}}, env_vars=["A=1"])
    overrides = {"mem_limit": "32g", "labels": {"tier": "night"}, "environment": {"OMP_NUM_THREADS": "2"}}
    container = launches.container(launches.launch({"docker/container_kwargs": json.dumps(overrides)}))
    assert container.options["mem_limit"] == container.options["memswap_limit"] == "32g"
    assert {"team": "retina", "tier": "night"}.items() <= container.labels.items()
    assert {"A": "1", "OMP_NUM_THREADS": "2"}.items() <= container.environment.items()


def test_a_dead_container_is_reported_with_its_cause_and_the_end_of_its_log(instance, engine):
    launches = Launches(instance, log_tail_lines=2)
    run = launches.launch()
    assert launches.launcher.check_run_worker_health(run).status.name == "RUNNING"
    container = launches.container(run)
    container.status = "exited"
    container.attrs |= {
        "State": {"Status": "exited", "ExitCode": 137, "OOMKilled": True},
        "HostConfig": {"Memory": 256 * 2**20},
    }
    container.log = b"epoch 1\nepoch 2\nepoch 3\n"
    health = launches.launcher.check_run_worker_health(run)
    assert health.status.name == "FAILED"
    assert "Out of memory (OOM)" in health.msg
    assert "256 MiB" in health.msg
    assert health.msg.endswith("epoch 2\nepoch 3")
    never_started = launches.launcher.get_run_worker_debug_info(run)
    assert "Out of memory (OOM)" in never_started
    assert "dagster/retry_strategy" not in launches.run(run.run_id).tags
    assert "epoch 3" in never_started


def test_a_run_whose_container_ended_before_it_began_is_failed_at_the_next_look_at_the_queue(instance, engine):
    launches = Launches(instance)
    running, dead = launches.launch(), launches.launch()
    assert launches.launcher.fail_unstarted_runs() == []
    container = launches.container(dead)
    container.status = "exited"
    container.attrs["State"] = {"Status": "exited", "ExitCode": 1}
    container.log = b"ModuleNotFoundError: No module named 'lane'"
    # A retry that has no container yet, and its parent's in its tags.
    retry = launches.launch(dead.tags)
    instance.add_run_tags(retry.run_id, {"docker/container_id": container.id})

    assert launches.launcher.fail_unstarted_runs() == [dead.run_id]

    assert launches.run(dead.run_id).status is dg.DagsterRunStatus.FAILURE
    assert launches.run(dead.run_id).tags["dagster/will_retry"] == "true"
    message = launches.messages(dead)[-1]
    assert "The container stopped before the run began" in message
    assert "No module named 'lane'" in message
    assert {launches.run(run.run_id).status for run in (running, retry)} == {dg.DagsterRunStatus.STARTING}
    assert launches.launcher.fail_unstarted_runs() == []


def test_the_queue_looks_for_containers_that_ended_early_unless_the_engine_is_away(tmp_path, engine, monkeypatch):
    queue = {"module": "uveitis_assets.launcher.run_queue", "class": "GpuRunCoordinator", "config": {}}
    launcher = {"module": "uveitis_assets.launcher", "class": "GpuDockerRunLauncher", "config": {}}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({"run_coordinator": queue, "run_launcher": launcher}))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        launches = Launches(instance)
        run = launches.launch()
        launches.container(run).status = "exited"
        with monkeypatch.context() as patch:
            patch.setattr(docker, "from_env", _no_engine)
            assert instance.get_concurrency_config().run_queue_config is not None
        assert launches.run(run.run_id).status is dg.DagsterRunStatus.STARTING
        instance.get_concurrency_config()
        assert launches.run(run.run_id).status is dg.DagsterRunStatus.FAILURE


def test_a_run_that_lost_its_database_is_retried_from_its_first_step(instance, engine):
    launches = Launches(instance)
    run = launches.launch()
    container = launches.container(run)
    container.status = "exited"
    container.attrs["State"] = {"Status": "exited", "ExitCode": LOST_CONNECTION_EXIT_CODE}
    health = launches.launcher.check_run_worker_health(run)
    assert health.status.name == "FAILED"
    assert health.msg.startswith("The run lost its connection to Dagster's database and ended (exit code 75)")
    instance.report_run_failed(run)
    assert launches.run(run.run_id).tags["dagster/retry_strategy"] == "ALL_STEPS"
    assert launches.run(run.run_id).tags["dagster/will_retry"] == "true"


def test_launching_removes_old_containers_of_finished_runs(instance, engine):
    launches = Launches(instance, retention_hours=1.0)
    finished = launches.launch()
    container = launches.container(finished)
    container.status = "exited"
    container.attrs["State"] = {"FinishedAt": "2020-01-01T00:00:00Z"}
    assert launches.launcher.remove_stopped_containers() == [], (
        "its run is still active: monitoring reads the log first"
    )
    instance.report_run_failed(finished)
    assert launches.launcher.remove_stopped_containers() == [container.name]


def test_a_process_without_the_engine_leaves_stopping_to_the_daemon(instance, engine, monkeypatch):
    launches = Launches(instance)
    run = launches.launch()
    with monkeypatch.context() as patch:
        patch.setattr(docker, "from_env", _no_engine)
        patch.setattr(docker.client, "from_env", _no_engine)
        assert launches.launcher.terminate(run.run_id)
    asked = launches.run(run.run_id)
    assert asked.status is dg.DagsterRunStatus.STARTING
    assert launches.container(run).status == "running"

    launches.launcher.check_run_worker_health(asked)
    assert launches.run(run.run_id).status is dg.DagsterRunStatus.CANCELING
    assert launches.container(run).status == "exited"

    again = launches.launch(asked.tags)
    launches.launcher.check_run_worker_health(again)
    assert launches.container(again).status == "running", "a re-execution is not stopped for its parent"


def test_without_monitoring_a_run_that_cannot_be_stopped_is_reported(tmp_path, engine, monkeypatch):
    (tmp_path / "dagster.yaml").write_text("run_monitoring: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        launches = Launches(instance)
        run = launches.launch()
        monkeypatch.setattr(docker, "from_env", _no_engine)
        assert not launches.launcher.terminate(run.run_id)
        assert any("set run_monitoring.enabled" in message for message in launches.messages(run))


def _no_engine() -> NoReturn:
    raise DockerException("Error while fetching server API version: Permission denied")


def test_the_container_of_a_run_that_was_ended_without_it_is_stopped_after_a_while(instance, engine, monkeypatch):
    launches = Launches(instance)
    run = launches.launch()
    instance.report_run_canceled(run)
    launches.launcher.remove_stopped_containers()
    assert launches.container(run).status == "running", "its program may be about to end"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 600)
    launches.launcher.remove_stopped_containers()
    assert launches.container(run).status == "exited"


@pytest.mark.parametrize("trouble", [APIError("500 Server Error"), ConnectionError("connection aborted")])
def test_a_launched_run_does_not_fail_for_containers_that_cannot_be_removed(instance, engine, monkeypatch, trouble):
    def _fail(**filters: object) -> NoReturn:
        raise trouble

    launches = Launches(instance)
    monkeypatch.setattr(engine, "list", _fail)
    run = launches.launch()
    assert run.status is dg.DagsterRunStatus.STARTING
    assert launches.container(run).status == "running"


def test_the_configuration_is_checked_when_the_instance_loads():
    with pytest.raises(LaunchRefusedError, match="auto_remove"):
        GpuDockerRunLauncher(container_kwargs={"auto_remove": True})
    with pytest.raises(ValueError, match="the engine's socket"):
        GpuDockerRunLauncher(volumes=["/var/run/docker.sock:/var/run/docker.sock"])


def test_dagster_yaml_configures_the_launcher(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_VOLUME", "/srv/data:/data")
    config = {
        "run_launcher": {
            "module": "uveitis_assets.launcher",
            "class": "GpuDockerRunLauncher",
            "config": {
                "image": "uveitis:1",
                "volumes": [{"env": "DATA_VOLUME"}],
                "gpu_devices": ["0", "1"],
                "retention_hours": 2.5,
                "container_kwargs": {"mem_limit": "8g"},
            },
        }
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(config))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, GpuDockerRunLauncher)
        assert launcher.settings.volumes == ("/srv/data:/data",)
        assert launcher.settings.deployment == "uveitis"
        assert launcher.gpu_devices == ("0", "1")
        assert launcher.retention.total_seconds() == 9000


def test_the_launcher_loads_without_torch():
    heavy = "{'torch', 'cv2', 'sam2', 'polars', 'timm'}"
    code = f"import sys, uveitis_assets.launcher; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
