"""What a lane does by itself while a daemon is up: register and run what lands, fill gaps at night, refresh labels.

Runs are requested as partition ranges, one step each; an asset backfill would cost the daemon up to a minute however
small it is.
"""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import dagster as dg

from uveitis_assets.components.fundus.keys import LABELS_TAG, LANE_TAG, LaneKeys
from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.components.fundus.runs import batches_in_progress, unfinished_runs
from uveitis_assets.fundus.configuration import STAGES
from uveitis_assets.orchestration.automation import AssetJob, schedule_status, sensor_status
from uveitis_assets.orchestration.batch_runs import BECAUSE_TAG, exhausted_batches, range_requests
from uveitis_assets.orchestration.materializations import UPSTREAM_EVENT_METADATA, latest_event_id
from uveitis_assets.orchestration.partition_runs import range_tags
from uveitis_assets.storage.store import ArtefactStore

if TYPE_CHECKING:
    from uveitis_assets.stages.stale_batches import StaleBatches

# Dagster gives a sensor 60 s by default; reading pauses well before.
_REGISTRATION_BUDGET_S = 20.0
_KEYS_PER_TICK = 500
# A folder that never comes to rest is registered all the same.
_RESTLESS_TICKS = 10
_LABEL_ATTEMPTS = 3
_UPSTREAM_EVENT_TAG = "uveitis/upstream_event"
_GAVE_UP = "were cancelled or did not help: mend the cause and materialize them, or wait for the schedule"


def lane_jobs(lane: LaneConfiguration) -> list[AssetJob]:
    """The lane's jobs: batches from manifest to tiles, and labels."""
    keys = LaneKeys.of(lane)
    tags = {LANE_TAG: lane.name}
    jobs = [
        dg.define_asset_job(
            keys.lane_job,
            selection=dg.AssetSelection.assets(*keys.batch_assets),
            tags=tags,
            description=f"{lane.name}: manifest to tiles for some batches",
        )
    ]
    if lane.labels.format != "none":
        jobs.append(
            dg.define_asset_job(
                keys.labels_job,
                selection=dg.AssetSelection.assets(keys.coco_labels),
                tags={**tags, LABELS_TAG: lane.name},
                description=f"{lane.name}: COCO files of all folds and splits",
            )
        )
    return jobs


def lane_sensors(lane: LaneConfiguration) -> list[dg.SensorDefinition]:
    """The landing sensor and, where the lane has lesion labels, the labels sensor."""
    sensors = [_landing_sensor(lane)]
    return sensors if lane.labels.format == "none" else [*sensors, _labels_sensor(lane)]


def _landing_sensor(lane: LaneConfiguration) -> dg.SensorDefinition:
    keys = LaneKeys.of(lane)

    @dg.sensor(
        name=f"{lane.name}_landing",
        job_name=keys.lane_job,
        minimum_interval_seconds=lane.automation.landing_interval_s,
        default_status=sensor_status(lane.automation.landing_sensor),
        description=f"Registers images that land in {lane.folder} once the folder is at rest, and runs the lane for "
        "just the batches whose manifest or preprocessing no longer tells what is registered.",
    )
    def landing(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from uveitis_assets.landing.change_detection import landing_fingerprint
        from uveitis_assets.landing.ledger import registered_batches
        from uveitis_assets.landing.registration import register

        store = ArtefactStore.from_environment()
        if not store.raw_folder(lane.folder).is_dir():
            registered_before = store.ledger_file(lane.name).exists()
            state = "is gone; mount or restore it" if registered_before else "is not there yet"
            return dg.SkipReason(f"{store.raw_folder(lane.folder)} {state}")
        cursor = {"registered": "", "seen": "", "tick": 0, "restless": 0, **json.loads(context.cursor or "{}")}
        seen = landing_fingerprint(store, lane, cursor["tick"])
        # A lost ledger shows in no folder: registering says what to do about it.
        if seen != cursor["registered"] or not store.ledger_file(lane.name).exists():
            if seen != cursor["seen"] and cursor["restless"] < _RESTLESS_TICKS:
                cursor |= {"seen": seen, "restless": cursor["restless"] + 1}
                return dg.SensorResult(
                    cursor=json.dumps(cursor), skip_reason=dg.SkipReason("files are arriving: waiting for a rest")
                )
            store.remove_dead_partial_files()
            report = register(store, lane, time_budget_s=_REGISTRATION_BUDGET_S)
            for problem in report.problems:
                context.log.warning(f"{lane.name}: {problem.path}: {problem.reason}: {problem.detail}")
            registered = "" if report.n_deferred else landing_fingerprint(store, lane, cursor["tick"])
            cursor |= {"registered": registered, "seen": registered, "restless": 0}
        else:
            cursor |= {"seen": seen, "restless": 0, "tick": cursor["tick"] + 1}
        known = set(context.instance.get_dynamic_partitions(keys.batches_name))
        new = [key for key in registered_batches(store, lane.name) if key not in known][:_KEYS_PER_TICK]
        stale = _stale_batches(store, lane, cursor)
        requests, waiting = _requests(context.instance, lane, known, set(new), stale)
        return dg.SensorResult(
            run_requests=requests,
            cursor=json.dumps(cursor),
            dynamic_partitions_requests=[keys.batches.build_add_request(new)] if new else [],
            skip_reason=None if requests else dg.SkipReason(waiting or "nothing new has landed"),
        )

    return landing


def lane_schedule(lane: LaneConfiguration) -> dg.ScheduleDefinition:
    """The nightly schedule that fills missing partitions."""
    keys = LaneKeys.of(lane)

    @dg.schedule(
        name=f"{lane.name}_fill_missing",
        job_name=keys.lane_job,
        cron_schedule=lane.automation.fill_cron,
        execution_timezone=lane.automation.timezone,
        default_status=schedule_status(lane.automation.fill_schedule),
        description="Runs the batches that lack a manifest, masks, crops or tiles, or whose images or reference "
        "colours changed since.",
    )
    def fill_missing(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        from uveitis_assets.fundus.reference_color import present_reference_digest
        from uveitis_assets.fundus.stale_preprocessing import stale_preprocessing
        from uveitis_assets.landing.ledger import refuse_lost_ledger, registered_batches

        store = ArtefactStore.from_environment()
        refuse_lost_ledger(store, lane.name)
        batches = registered_batches(store, lane.name)
        context.instance.add_dynamic_partitions(keys.batches_name, batches)
        missing = {
            batch
            for asset_key in keys.batch_assets
            for batch in set(batches) - context.instance.get_materialized_partitions(asset_key)
        }
        reference_color = present_reference_digest(store, lane.normalize)
        stale = stale_preprocessing(store, lane.name, reference_color=reference_color)
        busy = batches_in_progress(context.instance, keys, batches)
        whole = missing.union(stale.preprocessing)
        longest = lane.automation.max_batches_per_run
        requests = [
            *range_requests(
                batches,
                whole - busy,
                keys.batch_assets,
                longest=longest,
                why="missing partitions, changed images or reference colours",
                states=stale.states,
            ),
            *range_requests(
                batches,
                set(stale.manifest) - whole - busy,
                (keys.manifest,),
                longest=longest,
                why="landed files changed",
                states=stale.states,
            ),
        ]
        if requests:
            return requests
        waiting = busy & whole.union(stale.manifest)
        if waiting:
            return dg.SkipReason(f"runs of {', '.join(sorted(waiting))} are in progress")
        return dg.SkipReason(f"all {len(batches)} batches of {lane.name} are materialized and up to date")

    return fill_missing


def _labels_sensor(lane: LaneConfiguration) -> dg.SensorDefinition:
    keys = LaneKeys.of(lane)

    @dg.sensor(
        name=f"{lane.name}_labels_refresh",
        job_name=keys.labels_job,
        minimum_interval_seconds=lane.automation.labels_interval_s,
        default_status=sensor_status(lane.automation.labels_sensor),
        description="Makes the COCO files again when tiles or the manifest are newer and no batch is running.",
    )
    def labels_refresh(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        if not context.instance.fetch_materializations(keys.stage("tiles"), limit=1).records:
            return dg.SkipReason(f"{lane.name} has no tiles yet")
        newest = latest_event_id(context.instance, [keys.manifest, keys.stage("tiles")])
        partitions = keys.fold_splits.get_partition_keys()
        stale = set(partitions) - _partitions_built_from(context.instance, keys, newest)
        if not stale:
            return dg.SkipReason("labels are as new as the tiles")
        running = len(unfinished_runs(context.instance, keys))
        if running:
            return dg.SkipReason(f"{running} runs of {lane.name} are in progress: waiting for the last tiles")
        tags = {_UPSTREAM_EVENT_TAG: str(newest)}
        failed = context.instance.get_runs_count(
            filters=dg.RunsFilter(job_name=keys.labels_job, tags=tags, statuses=[dg.DagsterRunStatus.FAILURE])
        )
        if failed >= _LABEL_ATTEMPTS:
            return dg.SkipReason(f"{failed} runs failed on the same tiles: mend the cause and run {keys.labels_job}")
        return dg.RunRequest(
            run_key=f"{lane.name}-labels-{newest}-{failed}",
            tags={**tags, **range_tags(partitions[0], partitions[-1]), BECAUSE_TAG: "newer tiles"},
        )

    return labels_refresh


def _partitions_built_from(instance: dg.DagsterInstance, keys: LaneKeys, upstream_event: int) -> set[str]:
    """Label partitions whose newest inputs were at least as new as the given event."""
    built: set[str] = set()
    filters = dg.AssetRecordsFilter(asset_key=keys.coco_labels, after_storage_id=upstream_event)
    cursor = None
    while True:
        page = instance.fetch_materializations(filters, limit=100, cursor=cursor)
        for record in page.records:
            event = record.asset_materialization
            value = event.metadata.get(UPSTREAM_EVENT_METADATA) if event else None
            if record.partition_key and value is not None and int(str(value.value)) >= upstream_event:
                built.add(record.partition_key)
        if not page.has_more:
            return built
        cursor = page.cursor


def _stale_batches(store: ArtefactStore, lane: LaneConfiguration, cursor: dict[str, Any]) -> "StaleBatches":
    """What the books call for; kept in the cursor and looked up again only when a book was written since."""
    from uveitis_assets.fundus.stale_preprocessing import stale_preprocessing
    from uveitis_assets.stages.stale_batches import StaleBatches, records_stamp

    stamp = records_stamp(store, lane.name, STAGES)
    if stamp is not None and stamp == cursor.get("books"):
        return StaleBatches(**cursor["stale"])
    stale = stale_preprocessing(store, lane.name)
    cursor |= {"books": stamp, "stale": asdict(stale)}
    return stale


def _requests(
    instance: dg.DagsterInstance, lane: LaneConfiguration, known: set[str], new: set[str], stale: "StaleBatches"
) -> tuple[list[dg.RunRequest], str]:
    """Runs for new and stale batches that no run is at work on, and what keeps the others waiting."""
    keys = LaneKeys.of(lane)
    wanted = new.union(known.intersection(stale.batches))
    if not wanted:
        return [], ""
    ordered = sorted(known | new)
    busy = wanted & batches_in_progress(instance, keys, ordered)
    exhausted = (wanted & exhausted_batches(instance, keys.lane_job, stale.states)) - busy
    ready = wanted - busy - exhausted
    to_preprocess = ready.intersection(stale.preprocessing) - new

    def requests(batches: set[str], assets: tuple[dg.AssetKey, ...], why: str) -> list[dg.RunRequest]:
        longest = lane.automation.max_batches_per_run
        return list(range_requests(ordered, batches, assets, longest=longest, why=why, states=stale.states))

    waiting = [
        *([f"runs of {', '.join(sorted(busy))} are in progress"] if busy else []),
        *([f"runs of {', '.join(sorted(exhausted))} {_GAVE_UP}"] if exhausted else []),
    ]
    return [
        *requests(ready & new, keys.batch_assets, "images landed"),
        *requests(to_preprocess, keys.batch_assets, "landed files changed or were never run"),
        *requests(ready - new - to_preprocess, (keys.manifest,), "landed files changed"),
    ], "; ".join(waiting)
