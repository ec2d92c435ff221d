"""Runs over several partition keys: each key succeeds or fails alone; key ranges for automatic runs.

Dagster treats a run over many keys as one step. Here good keys end materialized with their own metadata even if
another key of the same run fails.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

MetadataEntry = int | float | str | dg.MetadataValue[Any]
Metadata = Mapping[str, MetadataEntry]
RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"


def materialize_keys(
    context: dg.AssetExecutionContext,
    asset_keys: Sequence[dg.AssetKey],
    work: Callable[[str], Mapping[dg.AssetKey, Metadata]],
    finish: Callable[[], None] | None = None,
) -> Iterator[dg.MaterializeResult[None]]:
    """Do the work of each partition key and report it for each asset.

    Args:
        context: of the running asset.
        asset_keys: assets that the step materializes, upstream first.
        work: makes one partition key's artefacts and returns the metadata of each asset.
        finish: called once all keys were tried and before any is reported, so that what is made over all keys is up to
            date when a materialization appears.

    Raises:
        dagster.Failure: some keys or the finish failed; the good keys are recorded as materialized.
    """
    metadata: dict[str, Mapping[dg.AssetKey, Metadata]] = {}
    failures: dict[str, Exception] = {}
    for key in context.partition_keys:
        try:
            metadata[key] = work(key)
        except Exception as error:
            context.log.exception(f"{asset_keys[-1].to_user_string()}[{key}] failed")
            failures[key] = error
    finish_failure: Exception | None = None
    if finish is not None and metadata:
        try:
            finish()
        except Exception as error:
            context.log.exception(f"{asset_keys[-1].to_user_string()}: what is made over all partitions failed")
            finish_failure = error
    if failures or finish_failure:
        for key, of_assets in metadata.items():
            for asset_key in asset_keys:
                context.log_event(
                    dg.AssetMaterialization(asset_key, partition=key, metadata=dict(of_assets[asset_key]))
                )
        lines = [f"[{key}] {type(error).__name__}: {error}" for key, error in failures.items()]
        if finish_failure:
            lines.append(f"what is made over all partitions: {type(finish_failure).__name__}: {finish_failure}")
        raise dg.Failure(
            f"{len(failures)} of {len(context.partition_keys)} partitions failed, the others are done:\n"
            + "\n".join(lines),
            metadata={"failed_partitions": ", ".join(failures) or "none"},
            allow_retries=False,
        )
    for asset_key in asset_keys:
        for key, of_assets in metadata.items():
            context.add_asset_metadata(dict(of_assets[asset_key]), asset_key=asset_key, partition_key=key)
        yield dg.MaterializeResult(asset_key=asset_key)


def materialize_asset(
    context: dg.AssetExecutionContext,
    asset_key: dg.AssetKey,
    work: Callable[[str], Metadata],
    finish: Callable[[], None] | None = None,
) -> Iterator[dg.MaterializeResult[None]]:
    """``materialize_keys`` for a step of one asset.

    Each key's metadata also hold the duration of its work.
    """

    def timed(key: str) -> Mapping[dg.AssetKey, Metadata]:
        started = time.perf_counter()
        metadata = work(key)
        return {asset_key: {**metadata, "duration_s": round(time.perf_counter() - started, 3)}}

    yield from materialize_keys(context, [asset_key], timed, finish)


def contiguous_ranges(ordered: Sequence[str], wanted: set[str], longest: int) -> list[tuple[str, str]]:
    """First and last key of each run of neighbouring wanted keys, none longer than ``longest``."""
    ranges: list[list[str]] = []
    previous_wanted = False
    for key in ordered:
        if key in wanted:
            if previous_wanted and len(ranges[-1]) < longest:
                ranges[-1].append(key)
            else:
                ranges.append([key])
        previous_wanted = key in wanted
    return [(keys[0], keys[-1]) for keys in ranges]


def range_tags(first: str, last: str) -> dict[str, str]:
    """Run tags that make one run cover all keys from first to last."""
    return {RANGE_START_TAG: first, RANGE_END_TAG: last}
