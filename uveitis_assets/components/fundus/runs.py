"""Runs of a fundus lane that have not ended, and the batches they work on."""

from collections.abc import Sequence

import dagster as dg

from uveitis_assets.components.fundus.keys import LANE_TAG, LaneKeys
from uveitis_assets.orchestration.batch_runs import partitions_of, recent_unfinished_runs


def unfinished_runs(instance: dg.DagsterInstance, keys: LaneKeys) -> list[dg.DagsterRun]:
    """Unfinished runs of at most a day that touch the lane, however they were started."""
    assets = {*keys.batch_assets, keys.coco_labels}
    return [
        run
        for run in recent_unfinished_runs(instance)
        if run.tags.get(LANE_TAG) == keys.lane or bool(assets.intersection(run.asset_selection or ()))
    ]


def batches_in_progress(instance: dg.DagsterInstance, keys: LaneKeys, ordered: Sequence[str]) -> set[str]:
    """Batches that an unfinished run makes or will make; ``ordered`` are all batches."""
    busy: set[str] = set()
    for run in unfinished_runs(instance, keys):
        makes_batches = run.asset_selection is None or not run.asset_selection.isdisjoint(keys.batch_assets)
        if run.job_name == keys.labels_job or not makes_batches:
            continue
        busy |= partitions_of(run, ordered)
    return busy
