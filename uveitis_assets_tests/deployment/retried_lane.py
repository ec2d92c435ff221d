"""Assets that write every kind of event of a run, and a sensor that requests a run per line of a file."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

# File whose lines say where the wire of a run breaks.
BREAKS_VARIABLE = "TEST_BREAKS"
_EYES = dg.StaticPartitionsDefinition(["left", "right"])


@dg.asset(
    partitions_def=_EYES,
    backfill_policy=dg.BackfillPolicy.single_run(),
    check_specs=[dg.AssetCheckSpec("in_focus", asset="pictures")],
)
def pictures(context: dg.AssetExecutionContext) -> Iterator[Any]:
    newest = context.instance.fetch_materializations(dg.AssetKey("pictures"), limit=1).records
    context.log.info("%s are made, %d were made before", context.partition_keys, len(newest))
    context.log_event(dg.AssetObservation("pictures", partition="left", metadata={"seen": True}))
    yield dg.MaterializeResult(
        asset_key="pictures", check_results=[dg.AssetCheckResult(check_name="in_focus", passed=True)]
    )


@dg.asset(deps=[pictures])
def report() -> None:
    """Comes after the pictures."""


lane = dg.define_asset_job("lane", dg.AssetSelection.assets(pictures, report))


@dg.sensor(job=lane, minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
def requested(context: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest]:
    for line in Path(os.environ[BREAKS_VARIABLE]).read_text().splitlines():
        tags = {
            "dagster/asset_partition_range_start": "left",
            "dagster/asset_partition_range_end": "right",
            "docker/container_kwargs": f'{{"environment": {{"BREAK_AT": "{line}"}}}}',
            "break_at": line,
        }
        yield dg.RunRequest(run_key=line, tags=tags)


defs = dg.Definitions(assets=[pictures, report], jobs=[lane], sensors=[requested], executor=dg.in_process_executor)
