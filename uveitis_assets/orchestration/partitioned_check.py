"""Asset checks that report one result per partition, also in a run over a range of partitions.

An ``AssetCheckResult`` returned from a range run belongs to no partition: Dagster then keeps the partitions' results as
planned for ever and the UI shows the check as skipped. Hence each partition's result is logged as an evaluation.
"""

from collections.abc import Callable, Iterator
from typing import cast

import dagster as dg

# Not public, and the only way to name the materialization that an evaluation is about: without it a check's page shows
# the partition as missing. Tested in the real UI.
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData

Evaluate = Callable[[dg.DagsterInstance, str], dg.AssetCheckResult]


def partitioned_check(
    name: str,
    asset: dg.AssetKey,
    partitions: dg.PartitionsDefinition[str],
    description: str,
    begin: Callable[[], Evaluate],
) -> dg.AssetChecksDefinition:
    """Makes an asset check from a function of the instance and one partition key.

    A run calls the function for each of its keys. ``begin`` is called once per run and returns that function, so that
    what concerns all keys is read once.
    """
    spec = dg.AssetCheckSpec(name, asset=asset, partitions_def=partitions, description=description)

    @dg.multi_asset_check(name=f"{'__'.join(asset.path)}_{name}", specs=[spec], can_subset=True)
    def check(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        evaluate = begin()
        for partition in context.partition_keys:
            result = evaluate(context.instance, partition)
            evaluation = dg.AssetCheckEvaluation(
                asset_key=asset,
                check_name=name,
                passed=bool(result.passed),
                metadata=result.metadata,
                severity=result.severity,
                description=result.description,
                target_materialization_data=_newest_materialization(context.instance, asset, partition),
                partition=partition,
            )
            # log_event takes evaluations, against its annotation.
            context.op_execution_context.log_event(cast("dg.AssetObservation", evaluation))
        yield from ()

    return check


def _newest_materialization(
    instance: dg.DagsterInstance, asset: dg.AssetKey, partition: str
) -> AssetCheckEvaluationTargetMaterializationData | None:
    newest = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[partition])
    for record in instance.fetch_materializations(newest, limit=1).records:
        return AssetCheckEvaluationTargetMaterializationData(
            storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
        )
    return None
