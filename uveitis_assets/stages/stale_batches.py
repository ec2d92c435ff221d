"""Finds batches whose records (manifest parts, stage indexes) no longer describe what is registered.

For automation and for the command line, which must neither run more than what changed nor depend on who noticed the
change. No image is opened and no configuration read: a changed setting is found when the batch is materialized.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from uveitis_assets.landing.ledger_table import read_ledger_table
from uveitis_assets.landing.manifest_table import manifest_state
from uveitis_assets.landing.pseudonyms import patient_key
from uveitis_assets.landing.quarantine import TRANSIENT_REASONS
from uveitis_assets.landing.registration_digest import registered_states
from uveitis_assets.stages.index import read_index_metadata
from uveitis_assets.stages.suspect_files import suspects_file
from uveitis_assets.storage.store import ArtefactStore

# Folder times are coarse on some file systems: a record written this recently may be followed by another one unseen.
_SETTLED_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class StaleBatches:
    """Batches whose manifest part, or any stage of whose preprocessing, has to be made again; sorted.

    ``states`` holds, for each of them, a digest of what is registered: another state is another reason to run.
    """

    manifest: tuple[str, ...] = ()
    preprocessing: tuple[str, ...] = ()
    states: dict[str, str] = field(default_factory=dict)

    @property
    def batches(self) -> tuple[str, ...]:
        """All of them, sorted."""
        return tuple(sorted({*self.manifest, *self.preprocessing}))


def stale_batches(
    store: ArtefactStore,
    lane: str,
    stages: Sequence[str],
    *,
    index_metadata: Mapping[str, Mapping[str, str]] | None = None,
) -> StaleBatches:
    """Compare the manifest parts and stage indexes of all batches with the ledger.

    A part is stale when anything that it lists is registered differently now. An index is stale when it lists other
    images or other content, or other images as quarantined than registered, is damaged, or files of it were found
    damaged (see ``suspect_files``). Images that only a run has quarantined
    count where the reason may be gone by itself (TRANSIENT_REASONS). What was never made is stale.

    Args:
        store: where ledger, parts and indexes are.
        lane: the lane's name.
        stages: names of the stages whose indexes are compared.
        index_metadata: per stage, the metadata that its index has to have: one made with other values is stale.
    """
    path = store.ledger_file(lane)
    if not path.exists():
        return StaleBatches()
    ledger = read_ledger_table(path)
    states = registered_states(ledger, patient_key(store))
    registered: dict[str, dict[str, tuple[str, str | None]]] = {batch: {} for batch in states}
    live = ledger.filter(pl.col("state") == "live").select("batch", "image_id", "content_hash", "quarantine_reason")
    for batch, image_id, content, reason in live.iter_rows():
        registered[batch][image_id] = (content, reason)
    manifest = [batch for batch in states if _part_is_stale(store, lane, batch, states[batch], registered[batch])]
    preprocessing = [
        batch
        for batch in states
        if any(
            _index_is_stale(
                store.stage_index(lane, stage, batch), registered[batch], (index_metadata or {}).get(stage, {})
            )
            for stage in stages
        )
    ]
    stale = {*manifest, *preprocessing}
    return StaleBatches(
        tuple(manifest), tuple(preprocessing), {batch: state for batch, state in states.items() if batch in stale}
    )


def records_stamp(store: ArtefactStore, lane: str, stages: Sequence[str]) -> str | None:
    """A stamp of the records' times: while it stays equal, `stale_batches` finds the same.

    Costs a few system calls, however many batches there are. None when a record was written just now, so that a later
    write might leave the stamp unchanged.
    """
    records = (
        store.ledger_file(lane),
        store.patient_key_file(),
        store.manifest_part(lane, "any").parent,
        *(store.stage_index(lane, stage, "any").parent for stage in stages),
    )
    stamps = []
    for record in records:
        try:
            state = record.stat()
        except FileNotFoundError:
            stamps.append("none")
            continue
        if time.time() - state.st_mtime < _SETTLED_AFTER_S:
            return None
        stamps.append(f"{state.st_ino}:{state.st_mtime_ns}")
    return " ".join(stamps)


def _part_is_stale(
    store: ArtefactStore, lane: str, batch: str, state: str, registered: dict[str, tuple[str, str | None]]
) -> bool:
    path = store.manifest_part(lane, batch)
    return manifest_state(path) != state or not _describes(path, registered)


def _index_is_stale(index: Path, registered: dict[str, tuple[str, str | None]], metadata: Mapping[str, str]) -> bool:
    if suspects_file(index).exists() or not _describes(index, registered):
        return True
    return any(read_index_metadata(index, name) != value for name, value in metadata.items())


def _describes(record: Path, registered: dict[str, tuple[str, str | None]]) -> bool:
    """Whether a part or an index lists exactly the registered images with their content and quarantine."""
    try:
        rows = pl.read_parquet(
            record, columns=["image_id", "content_hash", "quarantine_reason"], memory_map=False
        ).iter_rows()
    except (FileNotFoundError, pl.exceptions.PolarsError):
        # The run reports a damaged one.
        return False
    listed = {image_id: (content, reason) for image_id, content, reason in rows}
    return listed.keys() == registered.keys() and all(
        _agree(listed[image_id], registered[image_id]) for image_id in registered
    )


def _agree(listed: tuple[str, str | None], registered: tuple[str, str | None]) -> bool:
    content, reason = registered
    if reason is not None:
        return listed[1] == reason
    return listed[0] == content and listed[1] not in TRANSIENT_REASONS
