"""What a detector lane does by itself while a daemon is up: predict batches whose tiles are new.

Training never starts by itself. A new checkpoint leaves the predictions as they are; materialize them again to
have them by the new one.
"""

from typing import Any

import dagster as dg

from uveitis_assets.components.detector_keys import DETECTOR_TAG, DetectorKeys, fold_key
from uveitis_assets.components.partition_runs import contiguous_ranges, range_tags
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration

AssetJob = Any
_ATTEMPTS = 3
_KEYS_PER_TICK = 500
_TILES_EVENT_TAG = "uveitis/upstream_event"
_FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_IN_PROGRESS = [status for status in dg.DagsterRunStatus if status not in _FINISHED]


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
        chosen = {fold_key(fold) for fold in detector.inference.folds}
        absent = chosen - instance.get_materialized_partitions(keys.checkpoint)
        if absent:
            return dg.SkipReason(f"{keys.checkpoint.to_user_string()} lacks {', '.join(sorted(absent))}")
        tiles = _newest_events(instance, keys.predicted.stage("tiles"))
        predicted = _newest_events(instance, keys.predictions)
        ordered = list(instance.get_dynamic_partitions(keys.predicted.batches_name))
        stale = {batch for batch in ordered if tiles.get(batch, 0) > predicted.get(batch, 0)}
        if not stale:
            return dg.SkipReason("predictions are as new as the tiles")
        if instance.get_runs_count(filters=dg.RunsFilter(job_name=keys.predictions_job, statuses=_IN_PROGRESS)):
            return dg.SkipReason(f"{len(stale)} batches wait for the predictions that are being made")
        requests = []
        for first, last in contiguous_ranges(
            ordered, set(sorted(stale)[:_KEYS_PER_TICK]), detector.automation.max_batches_per_run
        ):
            newest = max(tiles.get(batch, 0) for batch in ordered[ordered.index(first) : ordered.index(last) + 1])
            tags = {_TILES_EVENT_TAG: str(newest), **range_tags(first, last)}
            failed = instance.get_runs_count(
                filters=dg.RunsFilter(job_name=keys.predictions_job, tags=tags, statuses=[dg.DagsterRunStatus.FAILURE])
            )
            if failed < _ATTEMPTS:
                why = {"uveitis/requested_because": "newer tiles"}
                requests.append(
                    dg.RunRequest(
                        run_key=f"{detector.name}-predictions-{first}-{last}-{newest}-{failed}", tags={**tags, **why}
                    )
                )
        if not requests:
            return dg.SkipReason(
                f"{len(stale)} batches failed {_ATTEMPTS} times: mend the cause and run {keys.predictions_job}"
            )
        return dg.SensorResult(run_requests=requests)

    return predictions_refresh


def _newest_events(instance: dg.DagsterInstance, asset_key: dg.AssetKey) -> dict[str, int]:
    """Storage id of the newest materialization of each partition."""
    found = instance.get_latest_storage_id_by_partition(asset_key, dg.DagsterEventType.ASSET_MATERIALIZATION)
    return dict(found)
