"""Jobs that have Dagster write everything that a run can write; ``test_outliving_storages`` runs and disturbs them."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

POOL = "images"
ALBUMS = "albums"
KEYS = ["left", "right"]
_albums = dg.DynamicPartitionsDefinition(name=ALBUMS)


@dg.asset(
    partitions_def=_albums,
    backfill_policy=dg.BackfillPolicy.single_run(),
    pool=POOL,
    check_specs=[dg.AssetCheckSpec("in_focus", asset="pictures")],
)
def pictures(context: dg.AssetExecutionContext) -> Iterator[Any]:
    newest = context.instance.fetch_materializations(dg.AssetKey("pictures"), limit=1).records
    context.log.info("at work on %s, %d made before", context.partition_keys, len(newest))
    assert context.instance.get_dynamic_partitions(ALBUMS) == KEYS
    context.instance.add_dynamic_partitions("frames", ["gold"])
    context.instance.delete_dynamic_partition("frames", "gold")
    context.log_event(dg.AssetObservation("pictures", partition="left", metadata={"seen": True}, tags={"seen": "yes"}))
    for key in context.partition_keys:
        yield dg.AssetMaterialization("pictures", partition=key, metadata={"of": key}, tags={"quality": key})
    yield dg.MaterializeResult(
        asset_key="pictures",
        metadata={"of": "all"},
        check_results=[dg.AssetCheckResult(check_name="in_focus", passed=True, metadata={"sharp": "yes"})],
    )


@dg.asset
def torn() -> None:
    raise ValueError("torn")


def _job(name: str, *assets: dg.AssetsDefinition) -> dg.JobDefinition:
    job = dg.define_asset_job(name, dg.AssetSelection.assets(*assets), executor_def=dg.in_process_executor)
    return dg.Definitions(assets, jobs=[job]).resolve_job_def(name)


def show() -> dg.JobDefinition:
    """Succeeds."""
    return _job("show", pictures)


def show_and_tear() -> dg.JobDefinition:
    """Does what ``show`` does, and fails."""
    return _job("show_and_tear", pictures, torn)
