"""The run launcher of the deployment: one container per run, on a GPU or on the CPU.

It decides about the GPU; dagster-docker's launcher creates, stops and watches containers. The
decision is written on the run (tag ``uveitis/device``) before the container is made, so that every later question
about the run gives the same answer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg

# Private: the queue puts a run back for this error alone, and Dagster exports it nowhere.
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster_docker import DockerRunLauncher
from docker.errors import APIError, NotFound

from uveitis_assets.launcher.configuration_fields import CONFIGURATION_FIELDS
from uveitis_assets.launcher.container_options import (
    ContainerSettings,
    build_environment,
    build_options,
    check_deployment_options,
    own_user,
)
from uveitis_assets.launcher.engine_client import ENGINE_ERRORS, docker_client, reaches_engine
from uveitis_assets.launcher.gpu import CPU, DEVICE_TAG, NO_DEVICE, choose_gpu, how_to_get_a_gpu, is_gpu_start_failure
from uveitis_assets.launcher.gpu_need import QUEUED_NEED_TAG, GpuNeed, find_need
from uveitis_assets.launcher.overrides import parse_overrides
from uveitis_assets.launcher.refusal import LaunchRefusedError
from uveitis_assets.launcher.run_environment import check_further_variables
from uveitis_assets.launcher.stopped_containers import (
    RUN_LABEL,
    STOPPED,
    describe_exit,
    ended_container,
    log_tail,
    lost_its_database,
    remove_expired,
    stop_abandoned,
)

if TYPE_CHECKING:
    # Private, for annotations only: Dagster exports neither the contexts of a launcher nor its results.
    from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext, ResumeRunContext
    from dagster._serdes.config_class import ConfigurableClassData
    from dagster_docker.container_context import DockerContainerContext

_MAX_RETRIES_TAG = "dagster/max_retries"
_RETRY_STRATEGY_TAG = "dagster/retry_strategy"
_CONTAINER_TAG = "docker/container_id"
# Its value is the id of the run to stop: re-executions copy the tags, and must not be stopped with their parent.
_STOP_TAG = "uveitis/stop_requested"
_CLEAN_UP_EVERY_S = 600.0
# After its run has ended, a container goes on for the seconds that its program takes to end.
ABANDONED_AFTER_S = 120.0
_LIVE = ("created", "running", "paused", "restarting")

_STARTING = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING])

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


class GpuDockerRunLauncher(DockerRunLauncher):
    """Launches each run in its own container, with a GPU if its tags ask for one and the host has one.

    Fields beyond those of ``DockerRunLauncher`` are described in ``config_type``.
    """

    def __init__(
        self,
        inst_data: ConfigurableClassData | None = None,
        *,
        volumes: Sequence[str] = (),
        read_only_volumes: Sequence[str] = (),
        secrets: Sequence[str] = (),
        secrets_folder: str | None = None,
        run_variables: Mapping[str, str] | None = None,
        user: str | None = None,
        gpu_runtime: str = "nvidia",
        gpu_devices: Sequence[str] = (),
        deployment: str = "uveitis",
        log_tail_lines: int = 40,
        retention_hours: float = 24.0,
        **docker_launcher_config: Any,
    ) -> None:
        super().__init__(inst_data, **docker_launcher_config)
        self.settings = ContainerSettings(
            deployment=deployment,
            user=user or own_user(),
            gpu_runtime=gpu_runtime,
            volumes=tuple(volumes),
            read_only_volumes=tuple(read_only_volumes),
            secrets=tuple(secrets),
            secrets_folder=secrets_folder,
        )
        self.settings.check()
        check_deployment_options(self.container_kwargs)
        self.run_variables = dict(run_variables or {})
        check_further_variables(self.run_variables)
        self.gpu_devices = tuple(gpu_devices)
        self.log_tail_lines = log_tail_lines
        self.retention = timedelta(hours=retention_hours)
        # The daemon may launch from several threads; two of them must not count the same GPU as free.
        self._assigning = threading.Lock()
        self._clean_up_due_at = 0.0

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Fields of ``run_launcher.config`` in ``dagster.yaml``."""
        inherited: Mapping[str, Any] = super().config_type()  # type: ignore[no-untyped-call]
        return {**inherited, **CONFIGURATION_FIELDS}

    # Launching ------------------------------------------------------------------------------------------------

    def launch_run(self, context: LaunchRunContext) -> None:
        """Launch the run on the device that its tags and the engine allow, else fail it without a retry."""
        self._launch(context, super().launch_run)

    def resume_run(self, context: ResumeRunContext) -> None:
        """Launch a new container for a run whose container died; the device is decided again."""
        self._launch(context, super().resume_run)

    def get_container_context(self, dagster_run: dg.DagsterRun) -> DockerContainerContext:
        """Configuration of this run's container: of deployment, code location and run, and its device."""
        context = super().get_container_context(dagster_run)
        check_deployment_options(context.container_kwargs)
        overrides = parse_overrides(dagster_run.tags, self.run_variables)
        device = dagster_run.tags.get(DEVICE_TAG, CPU)
        return context._replace(  # a named tuple's public method
            env_vars=build_environment(self.settings, context.env_vars, overrides, device),
            container_kwargs=build_options(self.settings, context.container_kwargs, overrides, device),
        )

    def _launch(self, context: Any, start: Callable[[Any], None]) -> None:
        run: dg.DagsterRun = context.dagster_run
        try:
            need = self._need(context)
            if need is GpuNeed.NONE:
                self._start_on(CPU, context, start)
            else:
                with self._assigning:
                    self._launch_with_gpu(need, context, start)
        except LaunchRefusedError as refused:
            self._fail_without_retry(run, str(refused))
        self._clean_up_when_due()

    def _need(self, context: Any) -> GpuNeed:
        run: dg.DagsterRun = context.dagster_run
        # A need that was written into the queue counts, so that launching asks no code server.
        written = run.tags.get(QUEUED_NEED_TAG)
        need = find_need(run, context.workspace if written is None else None)
        if need is None:
            raise DagsterUserCodeUnreachableError(
                f"The GPU need of run {run.run_id} is not known while its code server is away; it waits in the queue."
            )
        return need.on(self.gpu_devices)

    def _launch_with_gpu(self, need: GpuNeed, context: Any, start: Callable[[Any], None]) -> None:
        problem = self._missing_runtime()
        if problem is None:
            in_use = self._devices_in_use()
            device = choose_gpu(self.gpu_devices, in_use)
            if self.gpu_devices and device in in_use:
                self._report(context.dagster_run, f"All GPUs are held; the run shares {device} with another run.")
            try:
                self._start_on(device, context, start)
                return
            except APIError as error:
                if not is_gpu_start_failure(str(error)):
                    raise
                problem = f"the engine could not start a container with {device}: {error.explanation or error}"
        if need is GpuNeed.REQUIRED:
            raise LaunchRefusedError(
                f"The run needs a GPU, but {problem}. {how_to_get_a_gpu(self.settings.gpu_runtime)}"
            )
        self._report(context.dagster_run, f"The run prefers a GPU and gets the CPU: {problem}.")
        self._start_on(CPU, context, start)

    def _start_on(self, device: str, context: Any, start: Callable[[Any], None]) -> None:
        run: dg.DagsterRun = context.dagster_run
        # Re-executions copy the tags of their parent, so the tag is written even where it is there.
        self._instance.add_run_tags(run.run_id, {DEVICE_TAG: device})
        try:
            start(context._replace(dagster_run=run.with_tags({**run.tags, DEVICE_TAG: device})))
        except APIError:
            self._remove_unstarted(run.run_id)
            raise

    def _missing_runtime(self) -> str | None:
        with docker_client() as client:
            runtimes = sorted(client.info().get("Runtimes") or {})
        if self.settings.gpu_runtime in runtimes:
            return None
        return f"the Docker engine has no runtime {self.settings.gpu_runtime!r} (it lists {', '.join(runtimes)})"

    def _devices_in_use(self) -> list[str]:
        with docker_client() as client:
            live = client.containers.list(
                all=True,
                ignore_removed=True,
                # Of all deployments: the GPUs are the host's.
                filters={"label": DEVICE_TAG, "status": list(_LIVE)},
            )
            return [container.labels[DEVICE_TAG] for container in live]

    def _remove_unstarted(self, run_id: str) -> None:
        with docker_client() as client:
            for container in client.containers.list(
                all=True, ignore_removed=True, filters={"label": f"{RUN_LABEL}={run_id}", "status": "created"}
            ):
                container.remove(v=True)

    def _fail_without_retry(self, run: dg.DagsterRun, message: str) -> None:
        # Returning after the run has failed, in place of raising, leaves one failure with this message; the
        # caller would add a second one. The number of retries is put back, because re-executions copy the tags.
        retries = run.tags.get(_MAX_RETRIES_TAG, str(self._instance.run_retries_max_retries))
        self._instance.add_run_tags(run.run_id, {_MAX_RETRIES_TAG: "0", DEVICE_TAG: NO_DEVICE})
        self._report(run, message)
        self._instance.report_run_failed(run, message)
        self._instance.add_run_tags(run.run_id, {_MAX_RETRIES_TAG: retries})

    def _report(self, run: dg.DagsterRun, message: str) -> None:
        self._instance.report_engine_event(message, run, cls=self.__class__)

    # Stopping -------------------------------------------------------------------------------------------------

    def terminate(self, run_id: str) -> bool:
        """Stop the run's container, or have the daemon stop it where this process cannot reach the engine.

        The engine's socket gives control of the host, so a deployment may mount it in the daemon alone. The web
        server, where users stop runs, then writes a tag, and run monitoring in the daemon stops the container.
        """
        if reaches_engine():
            return bool(super().terminate(run_id))  # type: ignore[no-untyped-call]
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        if not self._instance.run_monitoring_enabled:
            self._report(
                run,
                "The run was not stopped: this process cannot reach the Docker engine, and without run "
                "monitoring no other process stops it. Stop its container, or set run_monitoring.enabled.",
            )
            return False
        self._instance.add_run_tags(run_id, {_STOP_TAG: run_id})
        self._report(run, "This process cannot reach the Docker engine: the daemon stops the run at its next check.")
        return True

    # Stopped containers ---------------------------------------------------------------------------------------

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether the run's container is running; if not, the message holds the cause and the end of its log.

        Monitoring calls this every few seconds, so requests to stop a run are carried out here, too.
        """
        self._clean_up_when_due()
        if run.tags.get(_STOP_TAG) == run.run_id:
            super().terminate(run.run_id)  # type: ignore[no-untyped-call]
        health: CheckRunHealthResult = super().check_run_worker_health(run)
        if health.status.name != "FAILED":
            return health
        reason = self._with_container(run, lambda container: describe_exit(container, self.log_tail_lines))
        if self._with_container(run, lost_its_database):
            self._retry_all_steps(run)
        return health._replace(msg=reason or health.msg)

    def fail_unstarted_runs(self) -> list[str]:
        """Fail runs whose container ended before they began; return their ids.

        Dagster's monitoring looks at the containers of started runs alone, and gives others up after
        ``start_timeout_seconds``, for which a dead one would hold its slot.
        """
        failed = []
        for run_id in [run.run_id for run in self._instance.get_runs(_STARTING)]:
            with docker_client() as client:
                container = ended_container(client, run_id)
                cause = None if container is None else describe_exit(container, self.log_tail_lines)
            # The run may have begun and ended since the first look.
            run = self._instance.get_run_by_id(run_id)
            if cause is None or run is None or run.status is not dg.DagsterRunStatus.STARTING:
                continue
            if lost_its_database(container):
                self._retry_all_steps(run)
            self._instance.report_run_failed(run, f"The container stopped before the run began. {cause}")
            failed.append(run_id)
        return failed

    def _retry_all_steps(self, run: dg.DagsterRun) -> None:
        # Its last steps may have succeeded, and Dagster retries no run without an unfinished step. Repeating
        # finished steps costs little: all stages skip finished work.
        self._instance.add_run_tags(run.run_id, {_RETRY_STRATEGY_TAG: "ALL_STEPS"})

    def get_run_worker_debug_info(self, run: dg.DagsterRun, include_container_logs: bool | None = True) -> str | None:
        """State and log tail of a run that monitoring gives up on because it never started or never stopped."""
        if not include_container_logs:
            return None

        def _describe(container: Any) -> str:
            if container.status in STOPPED:
                return describe_exit(container, self.log_tail_lines)
            return f"Its container {container.name} is {container.status}.\n{log_tail(container, self.log_tail_lines)}"

        return self._with_container(run, _describe)

    def remove_stopped_containers(self) -> list[str]:
        """Remove this deployment's stopped containers past retention and return their names.

        Containers that still run though their run was ended from outside are stopped: they would hold their GPU.
        """
        with docker_client() as client:
            for container in stop_abandoned(client, self.settings.deployment, self._ended_long_ago):
                _log.warning("Stopped the container %s: its run had been ended without it", container)
            return remove_expired(client, self.settings.deployment, self.retention, datetime.now(UTC), self._is_active)

    def _ended_long_ago(self, run_id: str) -> bool:
        record = self._instance.get_run_record_by_id(run_id)
        ended = record.end_time if record and record.dagster_run.is_finished else None
        return ended is not None and time.time() - ended > ABANDONED_AFTER_S

    def _is_active(self, run_id: str) -> bool:
        run = self._instance.get_run_by_id(run_id)
        return run is not None and not run.is_finished

    def _clean_up_when_due(self) -> None:
        if time.monotonic() < self._clean_up_due_at:
            return
        self._clean_up_due_at = time.monotonic() + _CLEAN_UP_EVERY_S
        try:
            removed = self.remove_stopped_containers()
        except ENGINE_ERRORS:
            # The run that was just launched must not fail because of old containers; the next check tries again.
            _log.warning("Stopped run containers could not be removed", exc_info=True)
        else:
            if removed:
                _log.info("Removed %d stopped run containers: %s", len(removed), ", ".join(removed))

    def _with_container(self, run: dg.DagsterRun, question: Callable[[Any], _Answer]) -> _Answer | None:
        container_id = run.tags.get(_CONTAINER_TAG)
        if container_id is None:
            return None
        with docker_client() as client:
            try:
                return question(client.containers.get(container_id))
            except NotFound:
                return None
