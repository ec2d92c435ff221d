"""Runs whose process died are failed, and their pool slots are free."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from uveitis_assets.orchestration import run_liveness
from uveitis_assets.orchestration.run_liveness import dead_runs, fail_dead_runs, hold_run_lock
from uveitis_assets_tests.e2e.installation import Installation
from uveitis_assets_tests.patience import patience

HOLD = """
import os, sys, time
from pathlib import Path
from uveitis_assets.orchestration.run_liveness import hold_run_lock

hold_run_lock(Path(sys.argv[1]), sys.argv[2])
# A child has closed the parent's locks by the time that it runs on.
os.write(1, b"forked\\n" if os.fork() == 0 else b"held\\n")
time.sleep(600)
"""
WAITING = """
import time
from pathlib import Path

import dagster as dg

from uveitis_assets.orchestration.antlr_runtime import read_both_grammar_formats
from uveitis_assets.orchestration.run_liveness import dead_runs, in_process_executor

read_both_grammar_formats()
BEGUN = Path(__file__).with_name("begun")


@dg.asset(pool="gpu")
def waiting():
    first = not BEGUN.exists()
    BEGUN.touch()
    if first:
        time.sleep(3600)


defs = dg.Definitions(assets=[waiting], executor=in_process_executor, sensors=[dead_runs])
"""


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


@dg.op(pool="gpu")
def nothing() -> None:
    pass


@dg.job
def work() -> None:
    nothing()


@dg.job(executor_def=run_liveness.in_process_executor)
def locked_work() -> None:
    nothing()


def started(instance: dg.DagsterInstance) -> str:
    """A run that holds the only slot of the pool."""
    run = instance.create_run_for_job(work, status=dg.DagsterRunStatus.STARTED)
    instance.event_log_storage.set_concurrency_slots("gpu", 1)
    instance.event_log_storage.claim_concurrency_slot("gpu", run.run_id, "nothing")
    return run.run_id


def holders(instance: dg.DagsterInstance) -> set[str]:
    return instance.event_log_storage.get_concurrency_info("gpu").active_run_ids


def test_a_run_whose_process_was_killed_is_failed_and_its_slot_is_free(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    run_id = started(instance)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "locks"), run_id],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert {process.stdout.readline(), process.stdout.readline()} == {"held\n", "forked\n"}
    assert fail_dead_runs(instance, tmp_path / "locks") == []
    assert holders(instance) == {run_id}

    # A child of the process, such as one that loads data, runs on for a while.
    process.kill()
    process.wait()

    assert fail_dead_runs(instance, tmp_path / "locks") == [run_id]
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status == dg.DagsterRunStatus.FAILURE
    assert holders(instance) == set()
    assert list((tmp_path / "locks").iterdir()) == []
    assert any("killed" in entry.message for entry in instance.all_logs(run_id))
    os.killpg(process.pid, signal.SIGKILL)
    process.stdout.close()


def test_runs_with_a_process_and_finished_runs_keep_their_status(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    alive = started(instance)
    ended = instance.create_run_for_job(work, status=dg.DagsterRunStatus.SUCCESS).run_id
    elsewhere = instance.create_run_for_job(work, status=dg.DagsterRunStatus.STARTED).run_id
    hold_run_lock(tmp_path, alive)
    (tmp_path / f"{ended}.lock").touch()
    (tmp_path / "of-another-instance.lock").touch()
    assert fail_dead_runs(instance, tmp_path) == []
    statuses = {run.run_id: run.status for run in instance.get_runs()}
    assert statuses[alive] == statuses[elsewhere] == dg.DagsterRunStatus.STARTED
    assert statuses[ended] == dg.DagsterRunStatus.SUCCESS
    assert {path.stem for path in tmp_path.glob("*.lock")} == {alive, "of-another-instance"}


def test_the_sensor_fails_dead_runs_and_requests_nothing(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    run_id = started(instance)
    (tmp_path / "living_runs").mkdir()
    (tmp_path / "living_runs" / f"{run_id}.lock").touch()
    context = dg.build_sensor_context(instance=instance)
    result = dead_runs(context)
    assert isinstance(result, dg.SkipReason)
    assert run_id in str(result.skip_message)
    assert holders(instance) == set()


def test_a_run_holds_its_lock_before_it_claims_a_slot(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    instance.event_log_storage.set_concurrency_slots("gpu", 1)
    order: list[str] = []
    storage = type(instance.event_log_storage)
    claim = storage.claim_concurrency_slot

    def locked(folder: Path, run_id: str) -> None:
        hold_run_lock(folder, run_id)
        order.append("lock")

    def claimed(*arguments: Any, **options: Any) -> Any:
        order.append("slot")
        return claim(*arguments, **options)

    monkeypatch.setattr(run_liveness, "hold_run_lock", locked)
    monkeypatch.setattr(storage, "claim_concurrency_slot", claimed)
    with dg.execute_job(dg.reconstructable(locked_work), instance) as result:
        assert result.success
    assert order == ["lock", "slot"]


@pytest.mark.e2e
def test_a_command_that_was_killed_does_not_keep_the_pool_from_the_next(
    tmp_path: Path,
) -> None:
    module = tmp_path / "waiting_project.py"
    module.write_text(WAITING)
    installation = Installation(tmp_path, {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"})
    command = ["dagster", "asset", "materialize", "-m", "waiting_project", "--select", "waiting"]
    process = installation.start(*command)
    until = time.monotonic() + patience(60)
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    installation.succeed(*command, timeout_s=patience(60))

    statuses = [run.status for run in installation.instance().get_runs()]
    assert statuses == [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
    # The next look removes the lock of the run that finished.
    assert fail_dead_runs(installation.instance(), installation.home / "living_runs") == []
    assert not list((installation.home / "living_runs").iterdir())
