"""Settings of the run queue in processes that cannot load the launcher."""

from typing import Any

import dagster as dg

from uveitis_assets.launcher.run_queue import GpuRunCoordinator


class InstanceOfARun:
    """The instance as a run container has it: without the variables that the launcher's settings name."""

    @property
    def run_launcher(self) -> Any:
        raise dg.DagsterInvalidConfigError("You have attempted to fetch the environment variable", [], {})


def test_a_run_reads_the_settings_of_the_queue_without_the_launcher() -> None:
    instance: Any = InstanceOfARun()
    queue = GpuRunCoordinator(max_concurrent_runs=3)
    queue.register_instance(instance)
    assert queue.get_run_queue_config().max_concurrent_runs == 3
