"""Numbers of a deployment for Prometheus; labels hold names of lanes and states, never of files."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import polars as pl
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from uveitis_assets.deployment.service_health import silent_daemons
from uveitis_assets.landing.ledger import registered_batches
from uveitis_assets.storage.store import ArtefactStore

# A scrape within this time gets the numbers of the one before.
CACHED_S = 15.0
_UNFINISHED = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)
_FINISHED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
_DEVICE_TAG = "uveitis/device"
_DURATIONS_S = (10, 30, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600)
_RUNS_READ = 1000
_OVERLAP = timedelta(minutes=5)

_log = logging.getLogger(__name__)


class DeploymentCollector(Collector):  # type: ignore[misc, unused-ignore]  # untyped where it is not installed
    """Asks database and folders when Prometheus does, at most every ``CACHED_S`` seconds.

    Args:
        instance: of the deployment.
        store: of the artefacts.
        folders: file systems by name.
        registry: gets this collector and the histogram of durations, which begins with this process.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        store: ArtefactStore,
        folders: Mapping[str, Path],
        registry: CollectorRegistry,
    ) -> None:
        self._instance = instance
        self._store = store
        self._folders = folders
        self._lock = threading.Lock()
        self._cached: tuple[float, list[Metric]] | None = None
        self._durations = Histogram(
            "uveitis_run_duration_seconds",
            "Time from the start of a run to its end, of runs that ended since this process began.",
            ["state"],
            buckets=_DURATIONS_S,
            registry=None,
        )
        self._began = self._updated_after = datetime.now(UTC)
        self._observed: set[str] = set()
        # In this order, because asking the database fills the histogram.
        registry.register(self)
        registry.register(self._durations)

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering asks no database."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All gauges; a source that fails is missing and has ``uveitis_source_up`` 0."""
        with self._lock:
            now = time.monotonic()
            if self._cached is None or now - self._cached[0] > CACHED_S:
                self._cached = now, self._ask()
            return self._cached[1]

    def _ask(self) -> list[Metric]:
        up = GaugeMetricFamily("uveitis_source_up", "Whether the numbers of a source could be read.", labels=["source"])
        found: list[Metric] = [up]
        for source, ask in (
            ("database", self._of_database),
            ("disk", self._of_disk),
            ("artefacts", self._of_artefacts),
        ):
            try:
                found += ask()
                up.add_metric([source], 1)
            except Exception as error:
                # A scrape says what it can: any driver and file system has errors of its own.
                _log.warning("no numbers of the %s: %s", source, type(error).__name__)
                up.add_metric([source], 0)
        return found

    def _of_database(self) -> Sequence[Metric]:
        runs = GaugeMetricFamily("uveitis_runs", "Runs in the database by state.", labels=["state"])
        for status in (*_UNFINISHED, *_FINISHED):
            runs.add_metric([status.value], self._instance.get_runs_count(dg.RunsFilter(statuses=[status])))
        oldest = self._instance.get_run_records(
            filters=dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED]), limit=1, ascending=True
        )
        waited = (datetime.now(UTC) - oldest[0].create_timestamp).total_seconds() if oldest else 0.0
        active = self._instance.get_runs(filters=dg.RunsFilter(statuses=list(_UNFINISHED[1:])))
        on_gpu = sum(run.tags.get(_DEVICE_TAG, "").startswith("gpu") for run in active)
        limits = {pool.name: pool.limit for pool in self._instance.event_log_storage.get_pool_limits()}
        self._observe_durations()
        return [
            runs,
            GaugeMetricFamily(
                "uveitis_queue_oldest_seconds", "How long the oldest queued run has waited.", value=waited
            ),
            GaugeMetricFamily("uveitis_gpu_slots", "Runs that may use a GPU at a time.", value=limits.get("gpu", 0)),
            GaugeMetricFamily("uveitis_gpu_slots_used", "Runs in progress on a GPU.", value=on_gpu),
            self._heartbeats(),
        ]

    def _heartbeats(self) -> Metric:
        healthy = GaugeMetricFamily(
            "uveitis_daemon_healthy", "Whether a daemon's heartbeat is recent.", labels=["daemon"]
        )
        silent = silent_daemons(self._instance)
        for name, status in sorted(self._instance.get_daemon_statuses().items()):
            if status.required:
                healthy.add_metric([name], float(name not in silent))
        return healthy

    def _observe_durations(self) -> None:
        records = self._instance.get_run_records(
            filters=dg.RunsFilter(statuses=list(_FINISHED), updated_after=self._updated_after), limit=_RUNS_READ
        )
        for record in records:
            run = record.dagster_run
            if run.run_id in self._observed or record.start_time is None or record.end_time is None:
                continue
            if record.end_time >= self._began.timestamp():
                self._durations.labels(run.status.value).observe(max(record.end_time - record.start_time, 0.0))
        self._observed = {record.dagster_run.run_id for record in records}
        # Other processes' clocks may be behind.
        newest = max((record.update_timestamp for record in records), default=self._updated_after)
        self._updated_after = max(self._updated_after, newest - _OVERLAP)

    def _of_disk(self) -> Sequence[Metric]:
        free = GaugeMetricFamily("uveitis_disk_free_bytes", "Free space of a file system.", labels=["folder"])
        size = GaugeMetricFamily("uveitis_disk_size_bytes", "Size of a file system.", labels=["folder"])
        for name, folder in self._folders.items():
            usage = shutil.disk_usage(folder)
            free.add_metric([name], usage.free)
            size.add_metric([name], usage.total)
        return [free, size]

    def _of_artefacts(self) -> Sequence[Metric]:
        waiting = GaugeMetricFamily(
            "uveitis_batches_waiting", "Registered batches without a manifest part.", labels=["lane"]
        )
        batches = GaugeMetricFamily("uveitis_batches", "Registered batches.", labels=["lane"])
        quarantine = GaugeMetricFamily(
            "uveitis_quarantined_images", "Images of the manifests that are set aside.", labels=["lane", "reason"]
        )
        for file in sorted((self._store.root / "ledger").glob("*.parquet")):
            lane = file.stem
            registered = set(registered_batches(self._store, lane))
            parts = self._store.manifest_parts(lane)
            batches.add_metric([lane], len(registered))
            waiting.add_metric([lane], len(registered - {part.stem for part in parts}))
            for reason, count in _quarantined(parts):
                quarantine.add_metric([lane, reason], count)
        return [batches, waiting, quarantine]


def _quarantined(parts: Sequence[Path]) -> list[tuple[str, int]]:
    """Images per reason, sorted by reason."""
    if not parts:
        return []
    reasons = pl.scan_parquet(list(parts)).select("quarantine_reason").filter(pl.col("quarantine_reason").is_not_null())
    return reasons.group_by("quarantine_reason").len().sort("quarantine_reason").collect().rows()
