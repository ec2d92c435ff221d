"""Automation of a detector lane: predicts batches whose tiles are new, while a daemon is up.

The metadata of predictions hold the event id of the tiles that they read: tiles that were made again while their
batch was being predicted are older than the predictions, and unread all the same. Training never starts by itself. A
fold that is trained again predicts by its finished checkpoint until then. A new checkpoint leaves the predictions as
they are; materialize them again to have them by the new one.
"""

import json
from collections.abc import Mapping

import dagster as dg

from uveitis_assets.components.detector.keys import DETECTOR_TAG, DetectorKeys
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration
from uveitis_assets.messages import enumeration
from uveitis_assets.orchestration.automation import AssetJob, sensor_status
from uveitis_assets.orchestration.batch_runs import exhausted_batches, keys_in_progress
from uveitis_assets.orchestration.fold_keys import fold_key
from uveitis_assets.orchestration.materializations import newest_events, upstream_event_id
from uveitis_assets.orchestration.request_planner import Wanted, plan_requests

_EVENTS_PER_PAGE = 100
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

    @dg.sensor(
        name=f"{detector.name}_predictions_refresh",
        job_name=keys.predictions_job,
        minimum_interval_seconds=detector.automation.predictions_interval_s,
        default_status=sensor_status(detector.automation.predictions_sensor),
        description=f"Predicts the batches of {keys.predicted.lane} whose tiles are newer than those that their "
        "predictions were made of, once the chosen checkpoints are there (and, for operating points, evaluated); also "
        "while one of them is trained again.",
    )
    def predictions_refresh(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        instance = context.instance
        chosen = {fold_key(fold) for fold in detector.inference.folds}
        for needed in keys.predicts_from(detector):
            absent = chosen - instance.get_materialized_partitions(needed)
            if absent:
                return dg.SkipReason(f"{needed.to_user_string()} lacks {enumeration(sorted(absent), _SHOWN)}")
        ordered = sorted(instance.get_dynamic_partitions(keys.predicted.batches_name))
        # Read before the events: a run that ends in between is in progress here, or its predictions are seen.
        busy = keys_in_progress(instance, [keys.predictions_job], [keys.predictions], ordered)
        tiles = newest_events(instance, keys.predicted.stage("tiles"))
        predicted = newest_events(instance, keys.predictions)
        read = _tiles_read(instance, keys.predictions, predicted, json.loads(context.cursor or "{}"))
        context.update_cursor(json.dumps(read))
        stale = [batch for batch in ordered if batch in tiles and tiles[batch] > read.get(batch, [0, 0])[1]]
        if not stale:
            return dg.SkipReason("predictions are as new as the tiles")
        states = {batch: str(tiles[batch]) for batch in stale}
        plan = plan_requests(
            [Wanted(stale, (keys.predictions,), "newer tiles")],
            busy,
            exhausted_batches(instance, keys.predictions_job, states),
            ordered=ordered,
            longest=detector.automation.max_batches_per_run,
            states=states,
        )
        return plan.skip_reason(f"run {keys.predictions_job}") or dg.SensorResult(run_requests=plan.run_requests)

    return predictions_refresh


def _tiles_read(
    instance: dg.DagsterInstance,
    predictions: dg.AssetKey,
    newest: Mapping[str, int],
    known: Mapping[str, list[int]],
) -> dict[str, list[int]]:
    """Storage ids of each batch's newest predictions and of the tiles that they read; 0 for a missing one.

    ``known`` are those of the last look: events are large, because they hold a picture, and are fetched once.
    """
    read = {batch: known[batch] for batch, event in newest.items() if batch in known and known[batch][0] == event}
    unknown = sorted(set(newest.values()) - {event for event, _ in read.values()})
    for start in range(0, len(unknown), _EVENTS_PER_PAGE):
        ids = unknown[start : start + _EVENTS_PER_PAGE]
        page = instance.fetch_materializations(dg.AssetRecordsFilter(predictions, storage_ids=ids), limit=len(ids))
        for record in page.records:
            if record.partition_key is not None:
                read[record.partition_key] = [record.storage_id, upstream_event_id(record) or 0]
    return read
