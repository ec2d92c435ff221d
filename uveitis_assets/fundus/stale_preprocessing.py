"""Finds batches of a fundus lane to preprocess again, by comparing their indexes with the ledger."""

from __future__ import annotations

from uveitis_assets.fundus.configuration import STAGES
from uveitis_assets.fundus.stage_schemas import REFERENCE_COLOR_METADATA
from uveitis_assets.stages.stale_batches import StaleBatches, stale_batches
from uveitis_assets.storage.store import ArtefactStore


def stale_preprocessing(store: ArtefactStore, lane: str, *, reference_color: str | None = None) -> StaleBatches:
    """Compares manifest parts and stage indexes of a lane's batches with the ledger.

    See ``stale_batches``.

    Args:
        store: where ledger, parts and indexes are.
        lane: the lane's name.
        reference_color: digest of the present reference colours (see ``present_reference_digest``): crops and tiles
            made with others are stale. None does not look at them.
    """
    required: dict[str, dict[str, str]] = {}
    if reference_color is not None:
        # Masks do not depend on colours.
        required = {stage: {REFERENCE_COLOR_METADATA: reference_color} for stage in STAGES if stage != "roi_masks"}
    return stale_batches(store, lane, STAGES, index_metadata=required)
