"""Registers a landing folder: compares it with the ledger, gives ids and batches to what is new.

In this order: `reading` reads what is new or may have changed, `matching` finds what was replaced, renamed, returned or
is gone, `descriptions` brings labels and patients up to date, `identity` gives ids and batches, `relations` marks
copies and decides whose split an image follows, `report` lists what was found.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence

from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.layouts import scan_landing_folder
from uveitis_assets.landing.ledger import read_ledger, refuse_lost_ledger, write_ledger
from uveitis_assets.landing.pseudonyms import patient_key
from uveitis_assets.landing.registration.descriptions import describe_samples
from uveitis_assets.landing.registration.identity import ImageNaming, append_new_entries
from uveitis_assets.landing.registration.ledger_update import LedgerUpdate
from uveitis_assets.landing.registration.matching import match_known_paths, match_new_paths
from uveitis_assets.landing.registration.reading import read_changed_samples
from uveitis_assets.landing.registration.refusal import (
    LostPatientsError,
    RegistrationRefusedError,
    UnmatchedTableError,
    refuse_lost_patients,
    refuse_unmatched_tables,
)
from uveitis_assets.landing.registration.relations import assign_split_patients, mark_duplicates
from uveitis_assets.landing.registration.report import RegistrationReport, registration_report
from uveitis_assets.landing.samples import LandingProblem
from uveitis_assets.storage.files import write_bytes
from uveitis_assets.storage.store import ArtefactStore

__all__ = ["LostPatientsError", "RegistrationRefusedError", "RegistrationReport", "UnmatchedTableError", "register"]


def register(
    store: ArtefactStore,
    dataset: DatasetConfiguration,
    *,
    time_budget_s: float | None = None,
    files_per_time_check: int = 256,
) -> RegistrationReport:
    """Compare the landing folder with the ledger, read what is new or changed, and write the ledger.

    Idempotent, atomic and serialized between processes. New entries, sorted by path, fill new batches of at most
    ``dataset.batch_size``; existing batches keep their members. Every new file is opened once.

    Args:
        store: where ledger and raw folders are.
        dataset: the landing folder and its layout.
        time_budget_s: after so many seconds no further file is read: ``n_deferred`` of the report counts the samples
            left for the next call.
        files_per_time_check: files read between two looks at the clock; so many are read in any case.

    Raises:
        LedgerError: the ledger is damaged, or gone although the lane has manifest parts.
        LostPatientsError: patient ids stand in a table that cannot be read.
        UnmatchedTableError: no row of a table is of an image.
    """
    with store.lock(f"{dataset.name}.register"):
        refuse_lost_ledger(store, dataset.name)
        deadline = math.inf if time_budget_s is None else time.monotonic() + time_budget_s
        loaded = read_ledger(store, dataset.name)
        hides_names = dataset.image_folder.identify_by_content
        key = patient_key(store) if hides_names else b""
        scan = scan_landing_folder(dataset, store)
        refuse_lost_patients(dataset, scan)
        refuse_unmatched_tables(dataset, scan)
        naming = ImageNaming(
            hides_names=hides_names,
            key=key,
            identifiers={sample.relative_path: sample.identifier for sample in scan.samples if sample.identifier},
        )
        update = LedgerUpdate(entries=list(loaded), n_loaded=len(loaded), problems=list(scan.problems))
        samples = {sample.relative_path: sample for sample in scan.samples}
        live = update.live_by_path()
        contents, n_deferred = read_changed_samples(
            store,
            dataset,
            samples,
            {path: loaded[index] for path, index in live.items()},
            deadline=deadline,
            files_per_time_check=files_per_time_check,
        )
        described, pending = match_known_paths(update, dataset, samples, live, contents)
        placed, added = match_new_paths(update, dataset, samples, live, contents)
        pending = describe_samples(
            update, store, dataset, samples, described=[*described, *placed], pending=[*pending, *added]
        )
        new_batches = append_new_entries(update, pending, naming, dataset.batch_size)
        mark_duplicates(update)
        assign_split_patients(update, dataset)
        report = registration_report(update, dataset, naming, new_batches, n_deferred)
        write_ledger(store, dataset.name, update.entries, loaded)
        _write_problems(store, dataset.name, update.problems)
        return report


def _write_problems(store: ArtefactStore, lane: str, problems: Sequence[LandingProblem]) -> None:
    lines = [dataclasses.asdict(problem) for problem in problems]
    data = (json.dumps({"problems": lines}, indent=2, ensure_ascii=False) + "\n").encode(errors="replace")
    path = store.landing_problems_file(lane)
    if not path.exists() or path.read_bytes() != data:
        write_bytes(path, data, mode=0o600)
