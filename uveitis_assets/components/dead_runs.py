"""Runs whose process is gone without a word (SIGKILL, a power cut): they are ended, and what they held is let go.

On a single machine nobody asks a run's process whether it lives: its run would stay "started" for ever, hold its place
in a pool, so that the next run of a GPU asset waits for ever, and count as work in progress. Each run therefore holds a
lock that the system takes away with its process. In the Docker deployment the launcher watches the containers, and the
folder of the locks is each container's own.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg

_INTERVAL_S = 60


@contextmanager
def living_run(folder: Path, run_id: str) -> Iterator[None]:
    """Hold the run's lock in ``folder`` while the context lasts; it is let go with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    # Locked before it has its name: whoever finds the file finds it locked.
    unnamed = folder / f".{run_id}.{os.getpid()}"
    with unnamed.open("wb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        path = unnamed.rename(folder / f"{run_id}.lock")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def end_dead_runs(instance: dg.DagsterInstance, folder: Path) -> list[str]:
    """Report the runs as failed whose process is gone, and free their places in pools.

    Returns:
        The runs' ids.
    """
    dead = []
    for path in sorted(folder.glob("*.lock")):
        with suppress(FileNotFoundError), path.open("rb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            run = instance.get_run_by_id(path.stem)
            if run is not None and not run.is_finished:
                instance.report_run_failed(
                    run,
                    "The run's process is gone without a word: it was killed, or the machine went down. Materialize "
                    "the same again: finished work is kept.",
                )
                dead.append(run.run_id)
            if instance.event_log_storage.supports_global_concurrency_limits:
                instance.event_log_storage.free_concurrency_slots_for_run(path.stem)
            path.unlink(missing_ok=True)
    return dead


def locks_folder() -> Path | None:
    """Where the runs of this machine's Dagster hold their locks; None without DAGSTER_HOME, where runs leave nothing
    behind."""
    home = os.environ.get("DAGSTER_HOME")
    return Path(home) / "living_runs" if home else None


class _LockedRuns(dg.Executor):
    """Executes as another executor does, while the run holds its lock."""

    def __init__(self, executor: dg.Executor) -> None:
        self._executor = executor

    @property
    def retries(self) -> Any:
        return self._executor.retries

    @property
    def step_dependency_config(self) -> Any:
        return self._executor.step_dependency_config

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:
        folder = locks_folder()
        if folder is None:
            yield from self._executor.execute(plan_context, execution_plan)
            return
        with living_run(folder, plan_context.run_id):
            end_dead_runs(plan_context.instance, folder)
            yield from self._executor.execute(plan_context, execution_plan)


def _locked_in_process_executor(context: dg.InitExecutorContext) -> dg.Executor:
    create = dg.in_process_executor.executor_creation_fn
    if create is None:
        raise AssertionError("Dagster's in-process executor can be made")
    return _LockedRuns(create(context))


in_process_executor = dg.ExecutorDefinition(
    name=dg.in_process_executor.name,
    config_schema=dg.in_process_executor.config_schema.as_field(),
    executor_creation_fn=_locked_in_process_executor,
    description="Executes all steps in the run's process; ends dead runs first, which may hold what this one needs.",
)


@dg.sensor(
    minimum_interval_seconds=_INTERVAL_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Ends runs whose process was killed, so that they are not taken for work in progress.",
)
def dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    folder = locks_folder()
    dead = [] if folder is None else end_dead_runs(context.instance, folder)
    return dg.SkipReason(f"ended {', '.join(dead)}" if dead else "all runs that have begun live or are finished")
