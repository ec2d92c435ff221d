"""What a detector lane does by itself while a daemon is up: predict batches whose tiles are new.

Training never starts by itself. A new checkpoint leaves the predictions as they are; materialize them again to
have them by the new one.
"""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from uveitis_assets.components.batch_runs import (
    ATTEMPTS,
    exhausted_batches,
    partitions_of,
    range_requests,
    recent_unfinished_runs,
)
from uveitis_assets.components.detector_keys import DETECTOR_TAG, DetectorKeys, fold_key
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration

AssetJob = Any
_KEYS_PER_TICK = 500
_SHOWN = 10


def detector_jobs(detector: DetectorLaneConfiguration, keys: DetectorKeys) -> list[AssetJob]:
    """The lane's jobs: training with evaluation, and predictions."""
    tags = {DETECTOR_TAG: detector.name}
    return [
        dg.define_asset_job(
            keys.training_job,
            selection=dg.AssetSelection.assets(keys.checkpoint, keys.evaluation),
            tags=tags,
            description=f"{detector.name}: train and evaluate some folds",
        ),
        dg.define_asset_job(
            keys.predictions_job,
            selection=dg.AssetSelection.assets(keys.predictions),
            tags=tags,
            description=f"{detector.name}: predict some batches of {keys.predicted.lane}",
        ),
    ]


def predictions_sensor(detector: DetectorLaneConfiguration, keys: DetectorKeys) -> dg.SensorDefinition:
    """The sensor that predicts batches whose tiles are newer than their predictions."""
    running = detector.automation.predictions_sensor == "running"

    @dg.sensor(
        name=f"{detector.name}_predictions_refresh",
        job_name=keys.predictions_job,
        minimum_interval_seconds=detector.automation.predictions_interval_s,
        default_status=dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED,
        description=f"Predicts the batches of {keys.predicted.lane} whose tiles are newer than their predictions, once "
        "the chosen checkpoints are there.",
    )
    def predictions_refresh(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        instance = context.instance
        folds = keys.folds.get_partition_keys()
        chosen = {fold_key(fold) for fold in detector.inference.folds}
        absent = chosen - instance.get_materialized_partitions(keys.checkpoint)
        if absent:
            return dg.SkipReason(f"{keys.checkpoint.to_user_string()} lacks {', '.join(sorted(absent))}")
        runs = recent_unfinished_runs(instance)
        if any(chosen & _of_asset(run, keys.checkpoint, keys.training_job, folds) for run in runs):
            return dg.SkipReason(f"{keys.checkpoint.to_user_string()} is being trained: waiting for its end")
        tiles = _newest_events(instance, keys.predicted.stage("tiles"))
        predicted = _newest_events(instance, keys.predictions)
        ordered = sorted(instance.get_dynamic_partitions(keys.predicted.batches_name))
        stale = [batch for batch in ordered if tiles.get(batch, 0) > predicted.get(batch, 0)]
        if not stale:
            return dg.SkipReason("predictions are as new as the tiles")
        states = {batch: str(tiles[batch]) for batch in stale}
        busy = {batch for run in runs for batch in _of_asset(run, keys.predictions, keys.predictions_job, stale)}
        exhausted = exhausted_batches(instance, keys.predictions_job, states) - busy
        ready = [batch for batch in stale if batch not in busy | exhausted]
        requests = range_requests(
            ordered,
            set(ready[:_KEYS_PER_TICK]),
            [keys.predictions],
            longest=detector.automation.max_batches_per_run,
            why="newer tiles",
            states=states,
        )
        waiting = [
            *([f"{len(busy)} batches are being predicted"] if busy else []),
            *(
                [
                    f"runs of {', '.join(sorted(exhausted)[:_SHOWN])}{', ...' if len(exhausted) > _SHOWN else ''} were "
                    f"cancelled or failed {ATTEMPTS} times: mend the cause and run {keys.predictions_job}"
                ]
                if exhausted
                else []
            ),
        ]
        return dg.SensorResult(run_requests=list(requests)) if ready else dg.SkipReason("; ".join(waiting))

    return predictions_refresh


def _of_asset(run: dg.DagsterRun, asset: dg.AssetKey, job_name: str, partitions: Sequence[str]) -> set[str]:
    """Which of the partitions of an asset a run makes, whether its job or a selection of assets says so."""
    if run.job_name != job_name and asset not in (run.asset_selection or ()):
        return set()
    return partitions_of(run, partitions)


def _newest_events(instance: dg.DagsterInstance, asset_key: dg.AssetKey) -> dict[str, int]:
    """Storage id of the newest materialization of each partition."""
    found = instance.get_latest_storage_id_by_partition(asset_key, dg.DagsterEventType.ASSET_MATERIALIZATION)
    return dict(found)
