"""Marks copies, and decides whose split every image follows."""

from __future__ import annotations

from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.ledger import LedgerEntry
from uveitis_assets.landing.registration.ledger_update import LedgerUpdate
from uveitis_assets.landing.samples import SPLITS, LandingProblem, Split
from uveitis_assets.landing.splits import strictest

_Patient = tuple[str, str]


def mark_duplicates(update: LedgerUpdate) -> None:
    """Point every live entry at the first live one with the same content."""
    first: dict[str, int] = {}
    for index, entry in enumerate(update.entries):
        duplicate_of = None
        if entry.state == "live" and entry.content_hash and entry.quarantine_reason is None:
            original = first.setdefault(entry.content_hash, index)
            if original != index:
                duplicate_of = update.entries[original].image_id
        if duplicate_of != entry.duplicate_of:
            update.replace(index, duplicate_of=duplicate_of)
            if index < update.n_loaded:
                update.touched.add(entry.batch)
        if duplicate_of and index >= update.n_loaded:
            update.found["duplicates"].append(entry.image_id)


def assign_split_patients(update: LedgerUpdate, dataset: DatasetConfiguration) -> None:
    """Decide whose split every image follows; report patients that copies or official splits pull apart.

    What gone and superseded entries tell about their patients stays true: a patient does not leave the test set because
    the photograph that put it there was removed. Only patients found by another rule than the present one do not count.
    """
    hides_names = dataset.image_folder.identify_by_content
    first: dict[str, LedgerEntry] = {}
    for entry in update.entries:
        # Quarantined files are left out: empty files are not copies of each other.
        if entry.content_hash and entry.quarantine_reason is None and not _is_outdated(entry, dataset):
            first.setdefault(entry.content_hash, entry)
    owners = [_patient(first.get(entry.content_hash, entry)) for entry in update.entries]
    claims: dict[_Patient, set[Split]] = {}
    for entry, owner in zip(update.entries, owners, strict=True):
        if entry.official_split is not None:
            claims.setdefault(owner, set()).add(entry.official_split)
    conflicting = {patient for patient, splits in claims.items() if len(splits) > 1}
    for index, owner in enumerate(owners):
        entry = update.entries[index]
        official = strictest(claims.get(owner, ()))
        if (entry.split_dataset, entry.split_patient, entry.patient_official_split) != (*owner, official):
            update.replace(index, split_dataset=owner[0], split_patient=owner[1], patient_official_split=official)
            if index < update.n_loaded and entry.state == "live":
                update.touched.add(entry.batch)
        if entry.state != "live":
            continue
        path = entry.image_id if hides_names else entry.relative_path
        # A quarantined copy is in no split; its reason is reported.
        if owner != _patient(entry) and entry.quarantine_reason is None:
            detail = _other_patient_detail(entry, first[entry.content_hash])
            update.problems.append(LandingProblem(path, "duplicate_of_other_patient", detail))
        if owner in conflicting:
            conflicting.discard(owner)
            detail = _conflict_detail(entry, claims[owner], official)
            update.problems.append(LandingProblem(path, "conflicting_official_splits", detail))


def _is_outdated(entry: LedgerEntry, dataset: DatasetConfiguration) -> bool:
    """Say whether the patient of an image that is not there any more was found by another rule.

    An entry without a rule may be older than the column, where the layout's own options find patients.
    """
    if entry.state == "live" or entry.patient_rule == dataset.patient_rule:
        return False
    return dataset.patients is not None or entry.patient_rule != ""


def _patient(entry: LedgerEntry) -> _Patient:
    return entry.dataset, entry.patient


def _other_patient_detail(entry: LedgerEntry, first: LedgerEntry) -> str:
    """Why an image follows the split of another patient than its own, and what to do."""
    fate = {"live": "", "gone": ", removed since,", "superseded": ", replaced since by another photograph,"}[
        first.state
    ]
    return (
        f"{entry.image_id} has the same content as {first.image_id}{fate} of another patient and follows its split, "
        "other images of its own patient do not; correct the patient ids if the patient is the same, else remove the "
        "image"
    )


def _conflict_detail(entry: LedgerEntry, claimed: set[Split], official: Split | None) -> str:
    splits = ", ".join(split for split in SPLITS if split in claimed)
    return (
        f"the patient of {entry.image_id} has the official splits {splits}; {official} holds; removed and "
        "replaced images count"
    )
