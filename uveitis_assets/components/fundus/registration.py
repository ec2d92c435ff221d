"""Registering a lane outside a sensor: the ledger first, then the instance's partition keys."""

from typing import TYPE_CHECKING

import dagster as dg

from uveitis_assets.components.fundus.keys import LaneKeys
from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.storage.store import ArtefactStore

if TYPE_CHECKING:
    from uveitis_assets.landing.registration import RegistrationReport


def register_lane(
    store: ArtefactStore, lane: LaneConfiguration, instance: dg.DagsterInstance
) -> "tuple[RegistrationReport, int]":
    """Register and bring the instance's partition keys up to the ledger; returns the number of keys added."""
    from uveitis_assets.landing.ledger import registered_batches
    from uveitis_assets.landing.registration import register

    store.remove_dead_partial_files()
    report = register(store, lane)
    name = LaneKeys.of(lane).batches_name
    known = set(instance.get_dynamic_partitions(name))
    added = [batch for batch in registered_batches(store, lane.name) if batch not in known]
    for start in range(0, len(added), 10_000):
        instance.add_dynamic_partitions(name, added[start : start + 10_000])
    return report, len(added)
