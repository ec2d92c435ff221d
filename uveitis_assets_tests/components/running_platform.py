"""The platform's own definitions on a temporary folder and instance, run inside the test's process."""

import json
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dagster as dg

from uveitis_assets.components.fundus.keys import LANE_TAG, LaneKeys
from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.landing.ledger import registered_batches
from uveitis_assets.landing.registration import RegistrationReport, register
from uveitis_assets.orchestration.partition_runs import range_tags
from uveitis_assets.storage.store import ArtefactStore

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
ALL_FOLD_SPLITS = ("fold0|train", "fold4|test")


@dataclass
class Platform:
    """Definitions, lanes, artefacts and instance of one test."""

    definitions: dg.Definitions
    lanes: dict[str, LaneConfiguration]
    store: ArtefactStore
    instance: dg.DagsterInstance = field(default_factory=dg.DagsterInstance.ephemeral)

    def keys(self, lane: str) -> LaneKeys:
        return LaneKeys.of(self.lanes[lane])

    def land(self, source: Path, names: Sequence[str], folder: str = "uwf-700") -> None:
        """Copy files, given by their path below the dataset's folder, from another landing folder."""
        for name in names:
            target = self.store.raw / folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / folder / name, target)

    def register(self, lane: str) -> RegistrationReport:
        """Register and add the partition keys, as the command line and the sensor do."""
        report = register(self.store, self.lanes[lane])
        self.add_batches(lane)
        return report

    def add_batches(self, lane: str) -> None:
        """Add the partition keys of what is registered."""
        self.instance.add_dynamic_partitions(self.keys(lane).batches_name, registered_batches(self.store, lane))

    def run(
        self,
        lane: str,
        first: str = "b00001",
        last: str | None = None,
        only: Sequence[str] = (),
        job: str = "",
        configuration: dict[str, Any] | None = None,
    ) -> dg.ExecuteInProcessResult:
        """Run batches from first to last (one key where last is missing), all assets or only the named ones."""
        keys = self.keys(lane)
        return self.definitions.resolve_job_def(job or keys.lane_job).execute_in_process(
            instance=self.instance,
            run_config={**QUIET, **(configuration or {})},
            asset_selection=[dg.AssetKey([lane, name]) for name in only] or None,
            partition_key=first if last is None else None,
            tags={} if last is None else range_tags(first, last),
            raise_on_error=False,
        )

    def run_labels(
        self, lane: str, first: str = ALL_FOLD_SPLITS[0], last: str | None = ALL_FOLD_SPLITS[1], overlays: bool = False
    ) -> dg.ExecuteInProcessResult:
        """Run label partitions; a range of two dimensions is the product of the ranges of folds and of splits."""
        configuration = {"ops": {f"{lane}__coco_labels": {"config": {"overlays": overlays}}}}
        return self.run(lane, first, last, job=self.keys(lane).labels_job, configuration=configuration)

    def report(self, lane: str, batch: str, assets: Sequence[str]) -> None:
        """Record materializations of finished artefacts of a batch without a run."""
        for name in assets:
            self.instance.report_runless_asset_event(dg.AssetMaterialization([lane, name], partition=batch))

    def check(self, asset: str, name: str, partition: str) -> dg.AssetCheckEvaluation:
        """Evaluate one check of one partition without its asset."""
        return self.checks(asset, name, partition, partition)[partition]

    def checks(self, asset: str, name: str, first: str, last: str) -> dict[str, dg.AssetCheckEvaluation]:
        """Evaluate one check over a range of partitions in one run; results by partition."""
        checks = list(self.definitions.asset_checks or [])
        key = dg.AssetCheckKey(dg.AssetKey(asset.split("/")), name)
        result = dg.materialize(
            [*(self.definitions.assets or []), *checks],
            selection=dg.AssetSelection.checks(key),
            instance=self.instance,
            run_config=QUIET,
            tags={"dagster/partition": first} if first == last else range_tags(first, last),
        )
        evaluations = result.get_asset_check_evaluations()
        assert all(evaluation.partition is not None for evaluation in evaluations)
        return {str(evaluation.partition): evaluation for evaluation in evaluations}

    def metadata(self, asset: str, partition: str) -> dict[str, Any]:
        """Metadata values of the newest materialization of the partition."""
        filters = dg.AssetRecordsFilter(dg.AssetKey(asset.split("/")), asset_partitions=[partition])
        (record,) = self.instance.fetch_materializations(filters, limit=1).records
        event = record.asset_materialization
        assert event is not None
        return {name: value.value for name, value in event.metadata.items()}

    def materialized(self, asset: str) -> set[str]:
        return self.instance.get_materialized_partitions(dg.AssetKey(asset.split("/")))

    def n_materializations(self, asset: str) -> dict[str, int]:
        """Number of materializations per partition."""
        counts: dict[str, int] = {}
        for record in self.instance.fetch_materializations(dg.AssetKey(asset.split("/")), limit=1000).records:
            counts[str(record.partition_key)] = counts.get(str(record.partition_key), 0) + 1
        return counts

    def tick(self, sensor: str, cursor: str | None = None) -> dg.SensorResult | dg.RunRequest | dg.SkipReason:
        """Evaluate a sensor once, as the daemon would, without launching what it asks for."""
        context = dg.build_sensor_context(
            instance=self.instance, cursor=cursor, definitions=self.definitions, sensor_name=sensor
        )
        (definition,) = (one for one in self.definitions.sensors or [] if one.name == sensor)
        result = definition(context)
        if isinstance(result, dg.SensorResult):
            for request in result.dynamic_partitions_requests or []:
                assert isinstance(request, dg.AddDynamicPartitionsRequest)
                self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        assert isinstance(result, dg.SensorResult | dg.RunRequest | dg.SkipReason)
        return result

    def queue(self, lane: str, requests: Sequence[dg.RunRequest] | None) -> list[str]:
        """Create requested runs of the lane's batches, as the daemon would, but start none; returns their ids."""
        ids = [str(uuid.uuid4()) for _ in requests or ()]
        for run_id, request in zip(ids, requests or (), strict=True):
            self.instance.add_run(
                dg.DagsterRun(
                    job_name=self.keys(lane).lane_job,
                    run_id=run_id,
                    status=dg.DagsterRunStatus.NOT_STARTED,
                    tags={LANE_TAG: lane, **request.tags},
                    asset_selection=frozenset(request.asset_selection or ()),
                )
            )
        return ids

    def end(self, run_ids: Sequence[str], status: dg.DagsterRunStatus) -> None:
        """Let such runs end without having done anything."""
        for run_id in run_ids:
            (run,) = self.instance.get_runs(filters=dg.RunsFilter(run_ids=[run_id]))
            self.instance.delete_run(run_id)
            self.instance.add_run(run.with_status(status))

    def tick_schedule(self, schedule: str) -> list[dg.RunRequest] | dg.SkipReason:
        """Evaluate a schedule once, as the daemon would, without launching what it requests."""
        (definition,) = (one for one in self.definitions.schedules or [] if one.name == schedule)
        assert isinstance(definition, dg.ScheduleDefinition)
        # Dagster builds contexts of schedules for instances on disk only, where each event costs a transaction.
        with patch.object(dg.ScheduleEvaluationContext, "instance", self.instance):
            result: Any = definition(dg.build_schedule_context())
        return result


def requested(requests: Sequence[dg.RunRequest] | None) -> list[tuple[str, str, tuple[str, ...]]]:
    """First key, last key and assets of each request."""
    return [
        (
            request.tags["dagster/asset_partition_range_start"],
            request.tags["dagster/asset_partition_range_end"],
            tuple(sorted(key.path[-1] for key in request.asset_selection or ())),
        )
        for request in requests or ()
    ]


def artefacts(
    root: Path, folders: Sequence[str] = ("preproc", "labels_coco", "manifests", "splits", "index")
) -> dict[str, bytes]:
    """Content of every file below the folders, by path relative to the root."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for folder in folders
        for path in sorted((root / folder).rglob("*"))
        if path.is_file()
    }


def read_coco(store: ArtefactStore, lane: str, split: str, fold: int = 0, tiles: bool = False) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(store.coco_file(lane, split, fold, tiles=tiles).read_bytes())
    return value


def use(store: ArtefactStore, monkeypatch: Any) -> None:
    """Point the definitions at a store."""
    monkeypatch.setenv("UVEITIS_DATA", str(store.root))
    monkeypatch.setenv("UVEITIS_RAW", str(store.raw))
    monkeypatch.setenv("UVEITIS_WORKERS", "1")
    assert os.environ["UVEITIS_DATA"]
