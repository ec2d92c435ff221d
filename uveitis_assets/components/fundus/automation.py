"""Automation of a fundus lane: registers and runs new files, fills gaps at night, refreshes labels.

It works while a daemon is up. Runs are requested as partition ranges, one step each; an asset backfill would cost the
daemon up to a minute however small it is.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg

from uveitis_assets.components.fundus.keys import LABELS_TAG, LANE_TAG, LaneKeys
from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.fundus.configuration import STAGES
from uveitis_assets.orchestration.automation import AssetJob, schedule_status, sensor_status
from uveitis_assets.orchestration.batch_runs import exhausted_batches, keys_in_progress, unfinished_runs
from uveitis_assets.orchestration.materializations import latest_event_id, upstream_event_id
from uveitis_assets.orchestration.request_planner import (
    ATTEMPTS,
    MOST_KEYS_PER_TICK,
    RequestPlan,
    Wanted,
    plan_requests,
)
from uveitis_assets.storage.store import ArtefactStore

if TYPE_CHECKING:
    from uveitis_assets.stages.stale_batches import StaleBatches

# Dagster gives a sensor 60 s by default; reading pauses well before.
_REGISTRATION_BUDGET_S = 20.0
# A folder that never comes to rest is registered all the same.
_RESTLESS_TICKS = 10
_UPSTREAM_EVENT_TAG = "uveitis/upstream_event"


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
    if keys.has_lesion_labels:
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
    keys = LaneKeys.of(lane)
    sensors = [_landing_sensor(lane, keys)]
    return [*sensors, _labels_sensor(lane, keys)] if keys.has_lesion_labels else sensors


@dataclass
class _Cursor:
    """What the landing sensor remembers: fingerprints of the folder, and the stale batches as of a stamp."""

    registered: str = ""
    seen: str = ""
    tick: int = 0
    restless: int = 0
    records_stamp: str | None = None
    stale: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | None) -> "_Cursor":
        known = json.loads(text or "{}")
        return cls(**{name: known[name] for name in cls.__dataclass_fields__ if name in known})

    def __str__(self) -> str:
        return json.dumps(asdict(self))


def _landing_sensor(lane: LaneConfiguration, keys: LaneKeys) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{lane.name}_landing",
        job_name=keys.lane_job,
        minimum_interval_seconds=lane.automation.landing_interval_s,
        default_status=sensor_status(lane.automation.landing_sensor),
        description=f"Registers images that land in {lane.folder} once the folder is at rest, and runs the lane for "
        "just the batches whose manifest or preprocessing no longer agrees with what is registered.",
    )
    def landing(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from uveitis_assets.landing.ledger import registered_batches

        store, instance = ArtefactStore.from_environment(), context.instance
        if not store.raw_folder(lane.folder).is_dir():
            registered_before = store.ledger_file(lane.name).exists()
            state = "is gone; mount or restore it" if registered_before else "is not there yet"
            return dg.SkipReason(f"{store.raw_folder(lane.folder)} {state}")
        cursor = _Cursor.parse(context.cursor)
        if not _register_at_rest(store, lane, cursor, context):
            waiting = dg.SkipReason("files are arriving: registered once the folder does not change between two ticks")
            return dg.SensorResult(cursor=str(cursor), skip_reason=waiting)
        known = set(instance.get_dynamic_partitions(keys.batches_name))
        new = [key for key in registered_batches(store, lane.name) if key not in known][:MOST_KEYS_PER_TICK]
        plan = _plan_batches(instance, lane, known, new, _stale_batches(store, lane, cursor))
        return dg.SensorResult(
            run_requests=plan.run_requests,
            cursor=str(cursor),
            dynamic_partitions_requests=[keys.batches.build_add_request(new)] if new else [],
            skip_reason=plan.skip_reason("materialize them, or wait for the schedule", "nothing new has landed"),
        )

    return landing


def _register_at_rest(
    store: ArtefactStore, lane: LaneConfiguration, cursor: _Cursor, context: dg.SensorEvaluationContext
) -> bool:
    """Register what landed once the folder is at rest; False while files are arriving."""
    from uveitis_assets.landing.change_detection import landing_fingerprint
    from uveitis_assets.landing.registration import register

    seen = landing_fingerprint(store, lane, cursor.tick)
    # A lost ledger shows in no folder: registering raises with what to do about it.
    if seen == cursor.registered and store.ledger_file(lane.name).exists():
        cursor.seen, cursor.restless, cursor.tick = seen, 0, cursor.tick + 1
        return True
    if seen != cursor.seen and cursor.restless < _RESTLESS_TICKS:
        cursor.seen, cursor.restless = seen, cursor.restless + 1
        return False
    store.remove_dead_partial_files()
    report = register(store, lane, time_budget_s=_REGISTRATION_BUDGET_S)
    for problem in report.problems:
        context.log.warning(f"{lane.name}: {problem.path}: {problem.reason}: {problem.detail}")
    cursor.registered = "" if report.n_deferred else landing_fingerprint(store, lane, cursor.tick)
    cursor.seen, cursor.restless = cursor.registered, 0
    return True


def _stale_batches(store: ArtefactStore, lane: LaneConfiguration, cursor: _Cursor) -> "StaleBatches":
    """Batches to be made again.

    They are kept in the cursor and looked up only when a ledger, part or index was written.
    """
    from uveitis_assets.fundus.stale_preprocessing import stale_preprocessing
    from uveitis_assets.stages.stale_batches import StaleBatches, records_stamp

    stamp = records_stamp(store, lane.name, STAGES)
    if stamp is not None and stamp == cursor.records_stamp:
        return StaleBatches(**cursor.stale)
    stale = stale_preprocessing(store, lane.name)
    cursor.records_stamp, cursor.stale = stamp, asdict(stale)
    return stale


def _plan_batches(
    instance: dg.DagsterInstance, lane: LaneConfiguration, known: set[str], new: list[str], stale: "StaleBatches"
) -> RequestPlan:
    """Plan runs of new and stale batches."""
    keys = LaneKeys.of(lane)
    if not new and known.isdisjoint(stale.batches):
        return RequestPlan()
    ordered = sorted({*known, *new})
    return plan_requests(
        [
            Wanted(new, keys.batch_assets, "images landed"),
            Wanted(stale.preprocessing, keys.batch_assets, "landed files changed or were never run"),
            Wanted(stale.manifest, (keys.manifest,), "landed files changed"),
        ],
        keys_in_progress(instance, [keys.lane_job], keys.batch_assets, ordered),
        exhausted_batches(instance, keys.lane_job, stale.states),
        ordered=ordered,
        longest=lane.automation.max_batches_per_run,
        states=stale.states,
    )


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

        store, instance = ArtefactStore.from_environment(), context.instance
        refuse_lost_ledger(store, lane.name)
        batches = registered_batches(store, lane.name)
        instance.add_dynamic_partitions(keys.batches_name, batches)
        made = [instance.get_materialized_partitions(asset_key) for asset_key in keys.batch_assets]
        missing = {batch for batch in batches if not all(batch in materialized for materialized in made)}
        reference_color = present_reference_digest(store, lane.normalize)
        stale = stale_preprocessing(store, lane.name, reference_color=reference_color)
        whole = missing.union(stale.preprocessing)
        plan = plan_requests(
            [
                Wanted(whole, keys.batch_assets, "missing partitions, changed images or reference colours"),
                Wanted(stale.manifest, (keys.manifest,), "landed files changed"),
            ],
            keys_in_progress(instance, [keys.lane_job], keys.batch_assets, batches),
            ordered=batches,
            longest=lane.automation.max_batches_per_run,
            states=stale.states,
            # It ticks once a night.
            most_keys=None,
        )
        finished = f"all {len(batches)} batches of {lane.name} are materialized and up to date"
        return plan.skip_reason("materialize them", finished) or plan.run_requests

    return fill_missing


def _labels_sensor(lane: LaneConfiguration, keys: LaneKeys) -> dg.SensorDefinition:
    upstream = [keys.manifest, keys.stage("tiles")]

    @dg.sensor(
        name=f"{lane.name}_labels_refresh",
        job_name=keys.labels_job,
        minimum_interval_seconds=lane.automation.labels_interval_s,
        default_status=sensor_status(lane.automation.labels_sensor),
        description="Makes the COCO files again when tiles or the manifest are newer and no batch is running.",
    )
    def labels_refresh(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        instance = context.instance
        if not instance.fetch_materializations(keys.stage("tiles"), limit=1).records:
            return dg.SkipReason(f"{lane.name} has no tiles yet")
        newest = latest_event_id(instance, upstream)
        partitions = keys.fold_splits.get_partition_keys()
        if not set(partitions) - _partitions_built_from(instance, keys, newest):
            return dg.SkipReason("labels are as new as the tiles")
        assets = {*keys.batch_assets, keys.coco_labels}
        n_running = len(unfinished_runs(instance, [keys.lane_job, keys.labels_job], assets))
        tags = {_UPSTREAM_EVENT_TAG: str(newest)}
        n_failed = instance.get_runs_count(
            filters=dg.RunsFilter(job_name=keys.labels_job, tags=tags, statuses=[dg.DagsterRunStatus.FAILURE])
        )
        # All partitions in one run, even where one is missing: they are read from the same tiles.
        plan = plan_requests(
            [Wanted(partitions, (), "newer tiles")],
            partitions if n_running else (),
            partitions if n_failed >= ATTEMPTS else (),
            ordered=partitions,
            longest=len(partitions),
            most_keys=None,
        )
        if plan.busy:
            return dg.SkipReason(f"{n_running} runs of {lane.name} are in progress: waiting for the last tiles")
        if plan.exhausted:
            return dg.SkipReason(f"{n_failed} runs failed on the same tiles: fix the cause and run {keys.labels_job}")
        (whole,) = plan.ranges
        return whole.run_request(f"{lane.name}-labels-{newest}-{n_failed}", tags)

    return labels_refresh


def _partitions_built_from(instance: dg.DagsterInstance, keys: LaneKeys, upstream_event: int) -> set[str]:
    """Label partitions whose newest inputs were at least as new as the given event."""
    built: set[str] = set()
    filters = dg.AssetRecordsFilter(asset_key=keys.coco_labels, after_storage_id=upstream_event)
    cursor = None
    while True:
        page = instance.fetch_materializations(filters, limit=100, cursor=cursor)
        for record in page.records:
            event = upstream_event_id(record)
            if record.partition_key and event is not None and event >= upstream_event:
                built.add(record.partition_key)
        if not page.has_more:
            return built
        cursor = page.cursor
