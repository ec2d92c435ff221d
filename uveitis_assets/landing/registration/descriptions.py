"""Brings labels, eye, patient, notes and official split of entries up to the layout's description."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.content_hash import content_hash
from uveitis_assets.landing.file_stamps import file_stamp, is_stamp_of, stamp_of, stamp_text
from uveitis_assets.landing.landed_files import read_landed_file_and_stat
from uveitis_assets.landing.ledger import LedgerEntry
from uveitis_assets.landing.quarantine import QuarantineError
from uveitis_assets.landing.registration.ledger_update import LedgerUpdate
from uveitis_assets.landing.registration.matching import patient_of
from uveitis_assets.landing.registration.reading import READ_THREADS
from uveitis_assets.landing.samples import LandedSample, LandingProblem
from uveitis_assets.storage.store import ArtefactStore


def describe_samples(
    update: LedgerUpdate,
    store: ArtefactStore,
    dataset: DatasetConfiguration,
    samples: Mapping[str, LandedSample],
    *,
    described: Sequence[int],
    pending: Sequence[LedgerEntry],
) -> list[LedgerEntry]:
    """Describe registered and new entries as the layout does, and find images labelled otherwise now.

    Args:
        update: gets the described entries.
        store: its raw root is the boundary that symlinks must not leave.
        dataset: the landing folder.
        samples: what the layout describes, by path.
        described: registered entries whose samples are there, by position.
        pending: new entries.

    Returns:
        The new entries, described.
    """
    known: dict[str, str] = {}
    for entry in update.entries:
        if entry.state == "live":
            known.update(zip(entry.label_paths, entry.label_stamps, strict=False))
    wanted = [*(samples[update.entries[index].relative_path] for index in described)]
    wanted.extend(samples[entry.relative_path] for entry in pending)
    stamps, problems = _label_stamps(store, dataset, wanted, known)
    update.problems.extend(problems)
    for index in described:
        entry = update.entries[index]
        updated = _described(entry, samples[entry.relative_path], stamps, dataset.patient_rule)
        if updated.label_fingerprint != entry.label_fingerprint:
            update.found["relabelled"].append(entry.image_id)
            update.touched.add(entry.batch)
        elif updated.label_paths != entry.label_paths:
            update.touched.add(entry.batch)
        update.entries[index] = updated
    return [_described(entry, samples[entry.relative_path], stamps, dataset.patient_rule) for entry in pending]


def _label_stamps(
    store: ArtefactStore, dataset: DatasetConfiguration, samples: Sequence[LandedSample], known: Mapping[str, str]
) -> tuple[dict[str, str], list[LandingProblem]]:
    """Stamps of every lesion label file, read only where size or times differ from the known stamps."""
    folder = str(store.raw / dataset.folder)
    paths = sorted(
        {path for sample in samples if sample.label_format in ("obb", "mask") for path in sample.label_paths}
    )
    stamps: dict[str, str] = {}
    to_read = []
    for path in paths:
        stored = known.get(path, "")
        if is_stamp_of(stored, file_stamp(f"{folder}/{path}")):
            stamps[path] = stored
        else:
            to_read.append(path)

    def read(path: str) -> str | LandingProblem:
        try:
            data, state = read_landed_file_and_stat(store.raw, f"{folder}/{path}", path)
        except QuarantineError as error:
            return LandingProblem(path, error.reason, error.detail)
        return stamp_text(stamp_of(state), content_hash(data))

    problems = []
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for path, found in zip(to_read, pool.map(read, to_read), strict=True):
            if isinstance(found, LandingProblem):
                problems.append(found)
                stamps[path] = f":::{found.reason}"
            else:
                stamps[path] = found
    return stamps, problems


def _described(
    entry: LedgerEntry, sample: LandedSample, label_stamps: Mapping[str, str], patient_rule: str
) -> LedgerEntry:
    patient = patient_of(entry, sample, patient_rule)
    stamps = tuple(label_stamps.get(path, "") for path in sample.label_paths)
    description = (
        patient,
        sample.eye,
        sample.label_format,
        sample.label_paths,
        sample.notes,
        sample.official_split,
        stamps,
        patient_rule,
    )
    if entry.label_fingerprint and description == (
        entry.patient,
        entry.eye,
        entry.label_format,
        entry.label_paths,
        entry.notes,
        entry.official_split,
        entry.label_stamps,
        entry.patient_rule,
    ):
        return entry
    hashes = [stamp.rpartition(":")[2] for stamp in stamps]
    fingerprinted = [sample.label_format, sample.notes, sample.eye, patient, sample.official_split, *hashes]
    return dataclasses.replace(
        entry,
        patient=patient,
        eye=sample.eye,
        label_format=sample.label_format,
        label_paths=sample.label_paths,
        notes=sample.notes,
        official_split=sample.official_split,
        label_fingerprint=hashlib.blake2b(json.dumps(fingerprinted).encode(), digest_size=16).hexdigest(),
        label_stamps=stamps,
        patient_rule=patient_rule,
    )
