"""Which batch an image's artefacts belong to, from the ledger.

Artefacts bear the image's id, and the id passes on: when a file's content is replaced, the entry in the old batch is
superseded and an entry with the same id stands in a new one. It knows no pixels and removes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from unicodedata import normalize

import polars as pl

from uveitis_assets.storage import ArtefactStore, artefact_key


@dataclass(frozen=True, slots=True)
class BatchOwnership:
    """What a batch has to do with others.

    ``former_batches``: sorted keys of the batches that held an id of this batch's live images before it; a run of
    theirs that began earlier may still write artefacts under these ids. ``released_keys``: sorted artefact names of
    images that left the batch, and that no live image of the lane bears.
    """

    former_batches: tuple[str, ...] = ()
    released_keys: tuple[str, ...] = ()


def batch_ownership(store: ArtefactStore, lane: str, batch: str) -> BatchOwnership:
    """Look up a batch in the ledger; nothing where there is no ledger."""
    path = store.ledger_file(lane)
    if not path.exists():
        return BatchOwnership()
    live: set[str] = set()
    own: set[str] = set()
    left: list[tuple[str, str]] = []
    for image_id, entry_batch, state in pl.read_parquet(path, columns=["image_id", "batch", "state"]).iter_rows():
        if state != "live":
            left.append((image_id, entry_batch))
            continue
        live.add(_file_identity(image_id))
        if entry_batch == batch:
            own.add(_file_identity(image_id))
    return BatchOwnership(
        tuple(sorted({other for image_id, other in left if other != batch and _file_identity(image_id) in own})),
        tuple(
            sorted(
                {
                    artefact_key(image_id)
                    for image_id, former in left
                    if former == batch and _file_identity(image_id) not in live
                }
            )
        ),
    )


def _file_identity(image_id: str) -> str:
    """Equal for two ids whose artefacts would be the same file, also on file systems that ignore case."""
    return normalize("NFC", artefact_key(image_id)).casefold()
