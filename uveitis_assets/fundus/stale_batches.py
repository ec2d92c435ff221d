"""Says whether a batch's preprocessing still describes the registered images, from the books alone.

For automation that must not run more than what changed. It knows nothing of configurations: a changed setting is
found when the batch is materialized.
"""

from __future__ import annotations

from collections.abc import Sequence

from uveitis_assets.fundus.landed import RegisteredImage
from uveitis_assets.fundus.stage_fingerprint import STAGES
from uveitis_assets.fundus.stage_index import read_stage_index
from uveitis_assets.storage import ArtefactStore


def preprocessing_is_stale(store: ArtefactStore, lane: str, batch: str, images: Sequence[RegisteredImage]) -> bool:
    """Say whether any stage index of the batch lists other images, other content or other quarantine than registered.

    An image that only preprocessing has set aside counts as stale too: its file may have been mended. A batch of which
    a stage was never materialized is stale.

    Args:
        store: where the stage indexes lie.
        lane: the lane's name.
        batch: the batch's key.
        images: all registered images of the batch.
    """
    registered = {image.image_id: (image.content_hash, image.quarantine_reason is None) for image in images}
    for stage in STAGES:
        path = store.stage_index(lane, stage, batch)
        if not path.exists():
            return True
        rows = read_stage_index(path)
        if {name: (row["content_hash"], row["quarantine_reason"] is None) for name, row in rows.items()} != registered:
            return True
    return False
