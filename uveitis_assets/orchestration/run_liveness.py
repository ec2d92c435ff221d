"""Fails runs whose process died (SIGKILL, a power cut) and frees their pool slots.

On a single machine nobody watches a run's process: its run would stay "started" for ever, keep its slot in a pool, so
that the next run of a GPU asset waits for ever, and count as work in progress. Each run therefore holds a lock that the
system releases with its process, and takes it before it claims a pool slot: no slot is lost with a run that holds no
lock. A run killed between its first event and its lock stays "started" until somebody ends it in the UI. In the Docker
deployment the launcher watches the containers, and each has a folder of locks of its own.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import dagster as dg

from uveitis_assets.storage.locks import make_locked_file, try_lock

_INTERVAL_S = 60
_held: list[BinaryIO] = []


def hold_run_lock(folder: Path, run_id: str) -> None:
    """Hold the run's lock in ``folder`` until this process ends, however it ends."""
    _held.append(make_locked_file(folder / f"{run_id}.lock"))


def _close_in_forked_child() -> None:
    """A lock is held until the last process closes it: workers may outlive a killed run for some seconds."""
    for handle in _held:
        handle.close()
    _held.clear()


os.register_at_fork(after_in_child=_close_in_forked_child)


def fail_dead_runs(instance: dg.DagsterInstance, folder: Path) -> list[str]:
    """Report runs as failed whose process died, and free their pool slots.

    Locks of finished runs are removed; those of runs that the instance does not know stay.

    Returns:
        The runs' ids.
    """
    return [path.stem for path in sorted(folder.glob("*.lock")) if _fail_if_dead(instance, path)]


def _fail_if_dead(instance: dg.DagsterInstance, lock: Path) -> bool:
    run_id = lock.stem
    with try_lock(lock) as taken:
        if not taken:
            return False
        # Read only now: a process that ended until a moment ago has reported its run.
        run = instance.get_run_by_id(run_id)
        if run is None:
            return False
        died = not run.is_finished
        if died:
            instance.report_run_failed(
                run,
                "The run's process died before it reported an end: it was killed, or the machine went down. "
                "Materialize the same again: finished work is kept.",
            )
        if instance.event_log_storage.supports_global_concurrency_limits:
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)
        lock.unlink(missing_ok=True)
        return died


def locks_folder() -> Path | None:
    """Folder of the locks of this machine's runs; None without DAGSTER_HOME, where no run is kept."""
    home = os.environ.get("DAGSTER_HOME")
    return Path(home) / "living_runs" if home else None


class _LockedRuns(dg.Executor):
    """Executes as another executor does, once the run holds its lock and dead runs are failed."""

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
        if folder is not None and not plan_context.instance.is_ephemeral:
            hold_run_lock(folder, plan_context.run_id)
            fail_dead_runs(plan_context.instance, folder)
        return self._executor.execute(plan_context, execution_plan)


def _locked_in_process_executor(context: dg.InitExecutorContext) -> dg.Executor:
    create = dg.in_process_executor.executor_creation_fn
    if create is None:
        raise AssertionError("Dagster's in-process executor can be made")
    return _LockedRuns(create(context))


in_process_executor = dg.ExecutorDefinition(
    name=dg.in_process_executor.name,
    config_schema=dg.in_process_executor.config_schema.as_field(),
    executor_creation_fn=_locked_in_process_executor,
    description="Executes all steps in the run's process; fails dead runs first, whose pool slots this one may need.",
)


@dg.sensor(
    minimum_interval_seconds=_INTERVAL_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Fails runs whose process died and frees their pool slots.",
)
def dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    folder = locks_folder()
    dead = [] if folder is None else fail_dead_runs(context.instance, folder)
    return dg.SkipReason(f"failed {', '.join(dead)}" if dead else "every started run has its process or is finished")
