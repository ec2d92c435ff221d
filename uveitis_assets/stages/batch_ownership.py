"""Which batch an image's artefacts belong to, from the ledger.

Artefacts are named by the image's id, and the id can move: when a file's content is replaced, the entry in the old
batch is superseded, and a new batch gets an entry with the same id.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from uveitis_assets.landing.ledger_table import read_ledger_table
from uveitis_assets.storage.store import ArtefactStore, artefact_identity, artefact_key


@dataclass(frozen=True, slots=True)
class BatchOwnership:
    """Former batches of a batch's images, and artefacts that the batch no longer needs.

    ``former_batches``: sorted keys of the batches that held an id of this batch's live images before it; a run of
    theirs that began earlier may still write artefacts under these ids. ``released_keys``: sorted artefact names of
    images that left the batch, and whose id no live image of the lane has.
    """

    former_batches: tuple[str, ...] = ()
    released_keys: tuple[str, ...] = ()


def batch_ownership(store: ArtefactStore, lane: str, batch: str) -> BatchOwnership:
    """Looks up a batch in the ledger; empty where there is no ledger."""
    path = store.ledger_file(lane)
    if not path.exists():
        return BatchOwnership()
    live: set[str] = set()
    own: set[str] = set()
    left: list[tuple[str, str]] = []
    for image_id, entry_batch, state in read_ledger_table(path, ["image_id", "batch", "state"]).iter_rows():
        if state != "live":
            left.append((image_id, entry_batch))
            continue
        live.add(artefact_identity(image_id))
        if entry_batch == batch:
            own.add(artefact_identity(image_id))
    return BatchOwnership(
        tuple(sorted({other for image_id, other in left if other != batch and artefact_identity(image_id) in own})),
        tuple(
            sorted(
                {
                    artefact_key(image_id)
                    for image_id, former in left
                    if former == batch and artefact_identity(image_id) not in live
                }
            )
        ),
    )


@contextmanager
def hold_batch(
    store: ArtefactStore, lane: str, batch: str, lock_name: Callable[[str], str]
) -> Iterator[BatchOwnership]:
    """Holds a batch's lock and those of its images' former batches; yields the ownership.

    A run that began before an image was replaced must not overwrite the new content's artefacts with the former's.

    Args:
        store: where ledger and locks are.
        lane: name of the lane.
        batch: its batch.
        lock_name: name of the lock of a batch.
    """
    held: set[str] = set()
    while True:
        with ExitStack() as locks:
            # In one order everywhere, so that two runs never wait for each other.
            for name in sorted({batch, *held}):
                locks.enter_context(store.lock(lock_name(name)))
            ownership = batch_ownership(store, lane, batch)
            if held.issuperset(ownership.former_batches):
                yield ownership
                return
        held.update(ownership.former_batches)


def ids_owned_by_other_batches(store: ArtefactStore, lane: str, batch: str, image_ids: Iterable[str]) -> frozenset[str]:
    """Those of the ids that live images of other batches have, and whose artefacts are theirs now."""
    path = store.ledger_file(lane)
    if not path.exists():
        return frozenset()
    stamp = path.stat()
    batches = _batches_of_live_images(path, (stamp.st_ino, stamp.st_size, stamp.st_mtime_ns))
    return frozenset(image_id for image_id in image_ids if batches.get(artefact_identity(image_id), batch) != batch)


@functools.lru_cache(maxsize=2)
def _batches_of_live_images(ledger: Path, stamp: tuple[int, int, int]) -> dict[str, str]:
    """Batch of every live image; kept, because all batches of a lane are asked about one after the other."""
    columns = read_ledger_table(ledger, ["image_id", "batch", "state"]).filter(pl.col("state") == "live")
    return {artefact_identity(image_id): batch for image_id, batch, _ in columns.iter_rows()}
