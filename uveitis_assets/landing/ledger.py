"""The ledger: which samples have landed, their image ids, and which batch each belongs to.

One Parquet file per lane under ``ledger/``, readable by its owner only because it holds raw patient ids. An entry's
identity is its content hash and path; size and times are kept only to see cheaply that a file may have changed. The
ledger, not the Dagster database, is the truth about batches, and a batch's members never change.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, cast

import polars as pl

from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.file_stamps import stamped_hash
from uveitis_assets.landing.ledger_table import (
    FILES_SCHEMA,
    LEDGER_SCHEMA,
    OPTIONAL_SCHEMA,
    RULE_SCHEMA,
    LedgerError,
    ledger_read_errors,
    read_ledger_table,
    scan_ledger,
)
from uveitis_assets.landing.samples import Eye, LabelFormat, RegisteredImage, Split
from uveitis_assets.storage.files import write_bytes
from uveitis_assets.storage.store import ArtefactStore

State = Literal["live", "gone", "superseded"]

_ROW_GROUP = 2048
_IMAGE_COLUMNS = ("image_id", "dataset", "relative_path", "content_hash", "quarantine_reason", "quarantine_detail")


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One registered sample; fields are the ledger's columns.

    ``size``, ``mtime_ns``, ``ctime_ns`` are those of the bytes hashed, of several files the sum and the latest times.
    ``label_stamps`` holds, per label path, ``size:mtime:ctime:hash``. ``width`` and ``height`` are 0 where the header
    could not be read, and None where the layout's samples have none.

    ``files`` and, once they were read, ``file_stamps`` (as ``label_stamps``) name the files of a sample of several:
    empty for one file. Ledgers without such samples lack these two columns.

    ``patient_rule`` is the `DatasetConfiguration.patient_rule` under which ``patient`` was last looked at, so that a
    changed rule is noticed. Ledgers whose lane never had one lack the column.

    ``split_dataset`` and ``split_patient`` name the patient whose split the image follows: its own or, for a copy, that
    of the first image registered with this content, even if that one is gone by now. ``patient_official_split`` is the
    strictest official split that any image of this patient claims or claimed, removed and replaced ones included.
    """

    image_id: str
    relative_path: str
    dataset: str
    patient: str
    eye: Eye | None
    label_format: LabelFormat
    label_paths: tuple[str, ...]
    notes: str
    official_split: Split | None
    content_hash: str
    size: int
    mtime_ns: int
    ctime_ns: int
    width: int | None
    height: int | None
    quarantine_reason: str | None
    quarantine_detail: str | None
    batch: str
    state: State = "live"
    duplicate_of: str | None = None
    label_fingerprint: str = ""
    label_stamps: tuple[str, ...] = ()
    split_dataset: str = ""
    split_patient: str = ""
    patient_official_split: Split | None = None
    files: tuple[str, ...] = ()
    file_stamps: tuple[str, ...] = ()
    patient_rule: str = ""


def refuse_lost_ledger(store: ArtefactStore, lane: str) -> None:
    """Refuse to begin a ledger, or go on without one, where one was: nothing else holds its ids.

    Raises:
        LedgerError: there is no ledger although the lane has manifest parts.
    """
    path = store.ledger_file(lane)
    parts = store.manifest_parts(lane)
    if parts and not path.exists():
        raise LedgerError(
            f"{path}: expected the ledger that the manifest of {lane} was made from, found none; restore it from the "
            f"backup of the folder {path.parent}. To begin anew with other batches, delete {parts[0].parents[1]} and "
            f"{store.manifest_export(lane, 'parquet').with_suffix('.*')}"
        )


def read_ledger(store: ArtefactStore, lane: str) -> list[LedgerEntry]:
    """All entries in the order of their registration; empty before the first one."""
    path = store.ledger_file(lane)
    if not path.exists():
        return []
    columns = [*LEDGER_SCHEMA, *OPTIONAL_SCHEMA]
    return [_entry(row) for row in read_ledger_table(path, columns).iter_rows()]


def _entry(row: tuple[Any, ...]) -> LedgerEntry:
    """The entry of a row: the ledger's columns are in the order of the fields."""
    values: list[Any] = [tuple(value) if isinstance(value, list) else value for value in row]
    return LedgerEntry(*values)


def registered_batches(store: ArtefactStore, lane: str) -> list[str]:
    """Keys of all batches of the lane, sorted; they are the partition keys."""
    path = store.ledger_file(lane)
    if not path.exists():
        return []
    return cast("list[str]", read_ledger_table(path, ["batch"])["batch"].unique().sort().to_list())


def registered_paths(store: ArtefactStore, lane: str) -> list[str]:
    """Paths below the dataset's folder of all live samples, sorted; they may hold patients' names."""
    path = store.ledger_file(lane)
    if not path.exists():
        return []
    table = read_ledger_table(path, ["relative_path", "state"]).filter(pl.col("state") == "live")
    return cast("list[str]", table["relative_path"].sort().to_list())


def registered_images(store: ArtefactStore, dataset: DatasetConfiguration, batch: str) -> list[RegisteredImage]:
    """The batch's live images (neither superseded nor gone), sorted by image id.

    Empty before the first registration.

    Raises:
        LedgerError: there is no ledger although the lane has manifest parts; or it is damaged.
    """
    path = store.ledger_file(dataset.name)
    if not path.exists():
        # Without its ledger a batch would pass for one that all images have left.
        refuse_lost_ledger(store, dataset.name)
        return []
    folder = store.raw_folder(dataset.folder)
    with ledger_read_errors(path):
        frame = (
            scan_ledger(path, (*LEDGER_SCHEMA, *FILES_SCHEMA))
            .filter((pl.col("batch") == batch) & (pl.col("state") == "live"))
            .select(*_IMAGE_COLUMNS, *FILES_SCHEMA)
            .sort("image_id")
            .collect()
        )
    return [
        RegisteredImage(
            image_id=image_id,
            dataset=tag,
            path=folder / relative_path,
            content_hash=digest,
            quarantine_reason=reason,
            quarantine_detail=detail,
            name=message_name(dataset, image_id, relative_path),
            files=tuple(folder / file for file in files),
            file_hashes=tuple(map(stamped_hash, file_stamps)),
        )
        for image_id, tag, relative_path, digest, reason, detail, files, file_stamps in frame.iter_rows()
    ]


def message_name(dataset: DatasetConfiguration, image_id: str, relative_path: str) -> str:
    """What messages call an image: its path, or its id where file names name patients."""
    if dataset.image_folder.identify_by_content:
        return image_id + PurePosixPath(relative_path).suffix
    return relative_path


def write_ledger(
    store: ArtefactStore, lane: str, entries: Sequence[LedgerEntry], loaded: Sequence[LedgerEntry]
) -> None:
    """Write the ledger unless the entries are those that were loaded from it."""
    path = store.ledger_file(lane)
    if path.exists() and list(entries) == list(loaded):
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    schema = LEDGER_SCHEMA | (FILES_SCHEMA if any(entry.files for entry in entries) else {})
    schema |= RULE_SCHEMA if any(entry.patient_rule for entry in entries) else {}
    columns = {name: [getattr(entry, name) for entry in entries] for name in schema}
    buffer = io.BytesIO()
    pl.DataFrame(columns, schema=schema).write_parquet(buffer, row_group_size=_ROW_GROUP)
    write_bytes(path, buffer.getbuffer(), mode=0o600)
