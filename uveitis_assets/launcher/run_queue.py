"""The run queue of the deployment: it writes on each run what the launcher has to know before the run waits.

At the moment of launching the code server may be away; a run that was queued with its need goes where it belongs all
the same. A run that was queued without it waits until the code server answers.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

from uveitis_assets.launcher.gpu_need import NEED_TAG, QUEUED_NEED_TAG, find_need
from uveitis_assets.launcher.refusal import LaunchRefusedError


class GpuRunCoordinator(dg.QueuedRunCoordinator):
    """Dagster's run queue, which stores the GPU need of each run as its tag ``uveitis/gpu_need``."""

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
