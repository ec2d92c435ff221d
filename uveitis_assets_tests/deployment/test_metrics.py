"""/metrics against what really lies in the database, the ledger and the manifests."""

import time
import urllib.request
from pathlib import Path

import dagster as dg
import pytest

from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.landing.landing_samples import build, land, lane

prometheus_client = pytest.importorskip("prometheus_client")


@dg.asset
def made() -> None:
    time.sleep(0.01)


@dg.asset
def failing() -> None:
    raise RuntimeError("Anna Muster.jpg")


def _scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    assert "Anna" not in text
    samples = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in samples}


def test_the_numbers_are_those_of_database_disk_ledger_and_manifests(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uveitis_assets.deployment.monitoring import metrics

    monkeypatch.setattr(metrics, "CACHED_S", 0.0)
    store = ArtefactStore(root=tmp_path / "data", raw=tmp_path / "raw")
    for number in range(5):
        land(store, f"Anna Muster {number}.jpg")
    land(store, "A.jpg", b"no image at all")
    # Four images make a batch; the second batch has no manifest part yet.
    build(store, lane(batch_size=4), batches=["b00001"])
    registry = prometheus_client.CollectorRegistry()
    metrics.DeploymentCollector(instance, store, {"data": tmp_path}, registry)
    server, thread = prometheus_client.start_http_server(0, "127.0.0.1", registry)
    port = server.server_address[1]
    try:
        assert _scrape(port)['uveitis_runs{state="SUCCESS"}'] == 0
        dg.materialize([made], instance=instance)
        for _ in range(2):
            dg.materialize([failing], instance=instance, raise_on_error=False)
        job = dg.Definitions([made]).resolve_implicit_global_asset_job_def()
        for device in ("gpu:0", "cpu"):
            run = instance.create_run_for_job(job, tags={"uveitis/device": device})
            instance.report_engine_event("", run)
            instance.handle_new_event(_started(run))
        instance.event_log_storage.set_concurrency_slots("gpu", 3)
        found = _scrape(port)
        assert _scrape(port)['uveitis_run_duration_seconds_count{state="FAILURE"}'] == 2, "each run counts once"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    states = {name: value for name, value in found.items() if name.startswith("uveitis_runs{")}
    assert {name.split('"')[1]: value for name, value in states.items() if value} == {
        "STARTED": 2,
        "SUCCESS": 1,
        "FAILURE": 2,
    }
    assert found['uveitis_run_duration_seconds_count{state="SUCCESS"}'] == 1
    assert found['uveitis_run_duration_seconds_sum{state="SUCCESS"}'] > 0.01
    assert (found["uveitis_gpu_slots"], found["uveitis_gpu_slots_used"]) == (3, 1)
    assert found['uveitis_daemon_healthy{daemon="SENSOR"}'] == 0
    assert found['uveitis_disk_size_bytes{folder="data"}'] >= found['uveitis_disk_free_bytes{folder="data"}'] > 0
    assert (found['uveitis_batches{lane="lane"}'], found['uveitis_batches_waiting{lane="lane"}']) == (2, 1)
    assert found['uveitis_quarantined_images{lane="lane",reason="not_an_image"}'] == 1
    assert {found[f'uveitis_source_up{{source="{source}"}}'] for source in ("database", "disk", "artefacts")} == {1}


def _started(run: dg.DagsterRun) -> object:
    from dagster._core.events import DagsterEvent, DagsterEventType
    from dagster._core.events.log import EventLogEntry

    event = DagsterEvent(DagsterEventType.RUN_START.value, run.job_name)
    return EventLogEntry(
        error_info=None,
        level=20,
        user_message="",
        run_id=run.run_id,
        timestamp=time.time(),
        job_name=run.job_name,
        dagster_event=event,
    )


def test_a_database_that_is_away_leaves_the_other_numbers(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    from uveitis_assets.deployment.monitoring.metrics import DeploymentCollector

    store = ArtefactStore(root=tmp_path / "data", raw=tmp_path / "raw")
    registry = prometheus_client.CollectorRegistry()
    DeploymentCollector(instance, store, {"data": tmp_path}, registry)
    # The database's files are gone.
    (tmp_path / "home/history/runs.db").write_bytes(b"no database" * 100)
    text = prometheus_client.generate_latest(registry).decode()
    assert 'uveitis_source_up{source="database"} 0.0' in text
    assert 'uveitis_source_up{source="disk"} 1.0' in text
    assert "uveitis_disk_free_bytes" in text
    assert "uveitis_runs{" not in text
