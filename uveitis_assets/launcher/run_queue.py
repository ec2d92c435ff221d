"""The run queue of the deployment: it writes on each run which device the run will need.

At the moment of launching the code server may be away; a run that was queued with its need goes where it belongs all
the same. A run that was queued without it waits until the code server answers.
"""

from __future__ import annotations

import logging
from typing import Any

import dagster as dg

from uveitis_assets.launcher.docker_run_launcher import GpuDockerRunLauncher
from uveitis_assets.launcher.engine_client import ENGINE_ERRORS
from uveitis_assets.launcher.gpu_need import NEED_TAG, QUEUED_NEED_TAG, find_need
from uveitis_assets.launcher.refusal import LaunchRefusedError

_log = logging.getLogger(__name__)


class GpuRunCoordinator(dg.QueuedRunCoordinator):
    """Dagster's run queue, which stores the GPU need of each run as its tag ``uveitis/gpu_need``.

    Each look at the queue first fails the runs whose container ended before they began, for their slots.
    """

    def get_run_queue_config(self) -> Any:
        """Settings of the queue; the daemon asks for them whenever it looks at the queue."""
        try:
            launcher = self._instance.run_launcher
        except dg.DagsterInvalidConfigError:
            # Runs ask too, and have not the variables that the launcher's settings name.
            return super().get_run_queue_config()
        if isinstance(launcher, GpuDockerRunLauncher):
            try:
                launcher.fail_unstarted_runs()
            except ENGINE_ERRORS:
                # The web server asks for the settings, too, and may not list containers.
                _log.debug("Run containers could not be listed", exc_info=True)
        return super().get_run_queue_config()

    def submit_run(self, context: Any) -> dg.DagsterRun:
        """Queue the run with its GPU need, or without it where its code location is away.

        ``context`` is Dagster's ``SubmitRunContext``, which it does not export.
        """
        run: dg.DagsterRun = context.dagster_run
        if run.status is dg.DagsterRunStatus.NOT_STARTED and NEED_TAG not in run.tags:
            try:
                need = find_need(run, context.workspace)
            except LaunchRefusedError:
                # The launcher refuses it with the same reason, as the failure of a run that users see.
                need = None
            if need is not None:
                self._instance.add_run_tags(run.run_id, {QUEUED_NEED_TAG: need.value})
        return super().submit_run(context)
