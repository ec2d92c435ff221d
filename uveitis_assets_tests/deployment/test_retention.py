"""Old runs go with their events and output, and no asset loses what the UI shows of it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from uveitis_assets.deployment.retention import remove_old_runs

LATER = datetime.now(UTC) + timedelta(days=100)
failing_keys: set[str] = set()


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["b1", "b2", "b3"]))
def tiles(context: dg.AssetExecutionContext) -> None:
    print("output of a run")
    if context.partition_key in failing_keys:
        raise RuntimeError("no")


@dg.asset
def summary() -> None:
    pass


@dg.asset_check(asset=summary)
def is_whole() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    failing_keys.clear()
    with dg.DagsterInstance.from_config(str(tmp_path)) as opened:
        yield opened


def _run(instance: dg.DagsterInstance, *assets: object, key: str | None = None) -> str:
    done = dg.materialize(list(assets), instance=instance, partition_key=key, raise_on_error=False)  # type: ignore[arg-type]
    return done.run_id


def _outputs(home: Path) -> set[str]:
    """Ids of the runs whose output is kept."""
    return {path.parts[len(home.parts) + 1] for path in home.glob("storage/*/compute_logs/*")}


def test_superseded_and_failed_runs_go_and_the_newest_of_each_partition_stay(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    superseded = _run(instance, tiles, key="b1")
    newest = _run(instance, tiles, key="b1")
    other = _run(instance, tiles, key="b2")
    failing_keys.add("b3")
    failed = _run(instance, tiles, key="b3")
    old_check = _run(instance, summary, is_whole)
    new_check = _run(instance, summary, is_whole)
    job = dg.Definitions([summary]).resolve_implicit_global_asset_job_def()
    queued = instance.create_run_for_job(job).run_id
    before = instance.get_materialized_partitions(tiles.key)
    ran = {superseded, newest, other, failed}
    assert ran <= _outputs(tmp_path)

    would = remove_old_runs(instance, LATER, dry_run=True)
    assert len(instance.get_runs()) == 7
    assert ran <= _outputs(tmp_path)
    removed = remove_old_runs(instance, LATER, dry_run=False)
    assert removed == would
    assert removed.runs == [superseded, failed, old_check]
    assert set(removed.outputs_only) == {newest, other, new_check}
    assert {run.run_id for run in instance.get_runs()} == {newest, other, new_check, queued}
    assert _outputs(tmp_path) == set()
    assert instance.get_materialized_partitions(tiles.key) == before == {"b1", "b2"}
    assert instance.all_logs(superseded) == []
    event = instance.get_latest_materialization_event(tiles.key)
    assert event is not None
    assert event.run_id == other
    again = remove_old_runs(instance, LATER, dry_run=False)
    assert again.runs == []


def test_young_runs_stay(instance: dg.DagsterInstance) -> None:
    for _ in range(2):
        _run(instance, summary)
    assert remove_old_runs(instance, datetime.now(UTC) - timedelta(days=1), dry_run=False).runs == []
    assert len(instance.get_runs()) == 2


def test_the_command_says_what_it_removes(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    _run(instance, summary)
    command = [sys.executable, "-m", "uveitis_assets.cli", "prune", "--older-than-days", "1", "--dry-run"]
    environment = os.environ | {"DAGSTER_HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "would remove 0 runs that ended before" in done.stdout
