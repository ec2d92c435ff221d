"""Checks cheaply whether registering a landing folder would find something new."""

from __future__ import annotations

import hashlib
from pathlib import Path

import polars as pl

from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.file_stamps import file_stamp, is_stamp_of
from uveitis_assets.landing.folder_tree import walk_landing_folders
from uveitis_assets.landing.ledger_table import FILES_SCHEMA, ledger_read_errors, scan_ledger
from uveitis_assets.landing.samples import LandingProblem
from uveitis_assets.storage.store import ArtefactStore

_FILES_PER_TICK = 4096
_TICKS_PER_ROUND = 24


def landing_fingerprint(
    store: ArtefactStore, dataset: DatasetConfiguration, tick: int = 0, *, fewest_files_per_tick: int = 256
) -> str:
    """Tell cheaply whether `register` would find something: equal values mean that nothing was noticed.

    Every call sees names and folder times: files that land, vanish, are renamed, or replaced by a rename, and changed
    CSV files and tables that the configuration names; it also sees changed options of the layout and of patients. Files
    rewritten in place are found by comparing size and times with the ledger, which costs five times the listing: each
    call does so for one slice of the ledger, chosen by ``tick``. A caller that counts ``tick`` up by one each time
    notices an in-place change after at most max(24, files / 4096) calls, at once below 256 files: with one call every
    30 s after 12 minutes, or 13 for 100,000 files. While a noticed in-place change is not registered, the value changes
    back on calls that look elsewhere.

    Args:
        store: where ledger and raw folders are.
        dataset: the landing folder.
        tick: number of the call.
        fewest_files_per_tick: so many registered files are compared by each call, where there are as many.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{dataset.layout} {dataset.image_folder.model_dump_json()} {dataset.patient_rule}".encode())
    problems: list[LandingProblem] = []
    folder = str(store.raw / dataset.folder)
    for prefix, names, path in sorted(walk_landing_folders(Path(folder), store.raw, problems)):
        names.sort()
        digest.update(f"{prefix}\0{file_stamp(path)}\0".encode(errors="surrogateescape"))
        listing = "\0".join(names)
        digest.update(listing.encode(errors="surrogateescape"))
        if ".csv" in listing.lower():
            for name in names:
                if name.lower().endswith(".csv"):
                    digest.update(str(file_stamp(f"{path}/{name}")).encode())
    for table in dataset.tables:
        digest.update(str(file_stamp(f"{folder}/{table}")).encode())
    for line in _rewritten_in_place(store, dataset.name, folder, tick, fewest_files_per_tick):
        digest.update(line.encode())
    return digest.hexdigest()


def _rewritten_in_place(
    store: ArtefactStore, lane: str, folder: str, tick: int, fewest_files_per_tick: int
) -> list[str]:
    """Files of this tick's slice of the ledger whose size or times are not those registered."""
    ledger = store.ledger_file(lane)
    if not ledger.exists():
        return []
    table = scan_ledger(ledger)
    with ledger_read_errors(ledger):
        several = [*FILES_SCHEMA] if "files" in table.collect_schema() else []
        n_rows = n_files = table.select(pl.len()).collect().item()
        if not n_rows:
            return []
        if several:
            n_files = table.select(pl.col("files").list.len().clip(1).sum()).collect().item()
        n_slices = max(min(_TICKS_PER_ROUND, -(-n_files // fewest_files_per_tick)), -(-n_files // _FILES_PER_TICK))
        slice_rows = -(-n_rows // n_slices)
        rows = (
            table.slice(tick % n_slices * slice_rows, slice_rows)
            .filter((pl.col("state") == "live") & (pl.col("content_hash") != ""))
            .select("relative_path", "size", "mtime_ns", "ctime_ns", "label_paths", "label_stamps", *several)
            .collect()
        )
    if several:
        is_group = pl.col("files").list.len() > 0
        rows = rows.select(
            "relative_path",
            pl.when(~is_group).then("size"),
            "mtime_ns",
            "ctime_ns",
            label_paths=pl.concat_list("files", "label_paths"),
            label_stamps=pl.concat_list("file_stamps", "label_stamps"),
        )
    found = []
    for path, size, mtime_ns, ctime_ns, stamped_paths, stamps in rows.iter_rows():
        if size is not None:
            state = file_stamp(f"{folder}/{path}")
            if state is not None and state != (size, mtime_ns, ctime_ns):
                found.append(f"{path}{state}")
        for stamped_path, stamp in zip(stamped_paths, stamps, strict=True):
            state = file_stamp(f"{folder}/{stamped_path}") if stamp else None
            if state is not None and not is_stamp_of(stamp, state):
                found.append(f"{stamped_path}{state}")
    return found
