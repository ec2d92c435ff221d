"""Newest materializations of assets and partitions, and what they were made of."""

from collections.abc import Collection

import dagster as dg

UPSTREAM_EVENT_METADATA = "upstream_event_id"


def latest_event_id(instance: dg.DagsterInstance, asset_keys: list[dg.AssetKey]) -> int:
    """Storage id of the newest materialization of any of the assets; 0 when there is none."""
    newest = 0
    for key in asset_keys:
        for record in instance.fetch_materializations(key, limit=1).records:
            newest = max(newest, record.storage_id)
    return newest


def newest_events(
    instance: dg.DagsterInstance, asset_key: dg.AssetKey, partitions: Collection[str] | None = None
) -> dict[str, int]:
    """Storage id of the newest materialization of each partition, of all or of the given ones.

    Partitions that have none are left out.
    """
    wanted = None if partitions is None else set(partitions)
    materialized = dg.DagsterEventType.ASSET_MATERIALIZATION
    return dict(instance.get_latest_storage_id_by_partition(asset_key, materialized, wanted))


def upstream_event_id(record: dg.EventLogRecord) -> int | None:
    """Storage id of the newest materialization that a materialization read.

    None where its metadata lack it.
    """
    event = record.asset_materialization
    value = event.metadata.get(UPSTREAM_EVENT_METADATA) if event else None
    return None if value is None else int(str(value.value))
