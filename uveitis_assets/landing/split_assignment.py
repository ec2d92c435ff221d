"""Assigns a lane's registered images to splits: the ledger's patients under a split configuration.

A pure function of ledger, configuration and pinned splits, so that one batch assigned now and the whole lane assigned
later agree; the fingerprint tells assignments by different configurations apart.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from uveitis_assets.landing.configuration import SplitConfiguration
from uveitis_assets.landing.samples import Split
from uveitis_assets.landing.splits import patient_splits, read_pinned_splits, strictest

Patient = tuple[str, str]
_OWNER = ("split_dataset", "split_patient")
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class SplitAssignment:
    """A split configuration with the pinned splits it names; ``fingerprint`` changes when either does."""

    configuration: SplitConfiguration
    pinned: list[dict[str, Split]]
    fingerprint: str


def read_split_assignment(root: Path, configuration: SplitConfiguration) -> SplitAssignment:
    """Read the pinned splits, if any, that a configuration names.

    Raises:
        ValueError: a pinned splits file is missing or wrong; the message names it.
    """
    pinned = read_pinned_splits(root, configuration)
    digest = hashlib.blake2b(configuration.model_dump_json().encode(), digest_size=8)
    for split_by_id in pinned:
        digest.update(json.dumps(sorted(split_by_id.items())).encode())
    return SplitAssignment(configuration, pinned, digest.hexdigest())


def assign_splits(
    ledger: pl.LazyFrame, assignment: SplitAssignment, batch: str | None = None
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Assign one batch, or all, to splits in every fold.

    Entries that are gone or superseded are assigned too, and what they say about their patients counts.

    Args:
        ledger: all entries of the lane.
        assignment: by what to assign.
        batch: None: the whole lane.

    Returns:
        Columns ``batch``, ``image_id``, ``content_hash`` and ``fold_splits`` (split in fold 0, 1, ...) per ledger
        entry, and what is contradictory about the pinned splits.

    Raises:
        ValueError: the pinned splits name images of the lane, none of which is registered.
    """
    entries = ledger.select("batch", "image_id", "content_hash", *_OWNER, "patient_official_split")
    members = (entries if batch is None else entries.filter(pl.col("batch") == batch)).collect()
    claims = _official_claims(members)
    pinned, problems = _pinned_splits(entries, assignment.pinned, members)
    if assignment.pinned and not any(split for of_folds in pinned.values() for split in of_folds):
        _check_pins_are_registered(entries, assignment)
    configuration = assignment.configuration
    # Few combinations of splits over all folds occur: entries refer to them by number.
    numbers: dict[tuple[Split, ...], int] = {}
    number_of = {
        patient: numbers.setdefault(
            patient_splits(*patient, configuration, strictest(official), pinned.get(patient, ())),
            len(numbers),
        )
        for patient, official in claims.items()
    }
    owners = zip(members["split_dataset"].to_list(), members["split_patient"].to_list(), strict=True)
    combinations = pl.Series("fold_splits", [list(splits) for splits in numbers], pl.List(pl.String))
    fold_splits = combinations.gather([number_of[patient] for patient in owners])
    return members.select("batch", "image_id", "content_hash").with_columns(fold_splits), problems


def _check_pins_are_registered(entries: pl.LazyFrame, assignment: SplitAssignment) -> None:
    """Refuse a file that is meant for the lane and pins nothing: its test images would be split by hash.

    Files for several lanes may leave one out: only ids that begin as those of this lane count.
    """
    tags = set(entries.select(pl.col("image_id").str.split("::").list.first().unique()).collect().to_series())
    pinned = sorted({image_id for of_fold in assignment.pinned for image_id in of_fold})
    own = [image_id for image_id in pinned if image_id.partition("::")[0] in tags]
    if not own or entries.filter(pl.col("image_id").is_in(own)).head(1).collect().height:
        return
    known = entries.select(pl.col("image_id").sort()).head(_SHOWN).collect().to_series().to_list()
    raise ValueError(
        f"splits.pinned: {assignment.configuration.pinned}: names {len(own)} images of the lane, none of which is "
        f"registered; found {', '.join(own[:_SHOWN])}, expected ids such as {', '.join(known)}: correct the ids, or "
        "remove splits.pinned"
    )


def _official_claims(members: pl.DataFrame) -> dict[Patient, set[Split]]:
    """Patients of the entries with their official splits, which the ledger holds alike on all entries."""
    claims: dict[Patient, set[Split]] = {}
    for dataset, patient, official in members.select(*_OWNER, "patient_official_split").unique().iter_rows():
        claims.setdefault((dataset, patient), set()).update([official] if official else [])
    return claims


def _pinned_splits(
    entries: pl.LazyFrame, pinned: list[dict[str, Split]], members: pl.DataFrame
) -> tuple[dict[Patient, list[Split | None]], tuple[str, ...]]:
    """Per patient of the members the pinned split in each fold, from all pinned images of the patient.

    Images that are gone or superseded count too: a pinned patient stays in its split when the photograph that was
    pinned is removed or replaced.
    """
    if not pinned:
        return {}, ()
    images = (
        entries.select(*_OWNER, "image_id")
        .join(members.lazy().select(_OWNER).unique(), on=_OWNER, how="semi")
        .sort("image_id")
        .collect()
    )
    claims: dict[Patient, list[set[Split]]] = {}
    first_id: dict[Patient, str] = {}
    for dataset, patient, image_id in images.iter_rows():
        first_id.setdefault((dataset, patient), image_id)
        of_folds = claims.setdefault((dataset, patient), [set() for _ in pinned])
        for claimed, split_by_id in zip(of_folds, pinned, strict=True):
            if image_id in split_by_id:
                claimed.add(split_by_id[image_id])
    problems = tuple(
        f"the patient of {first_id[patient]} is pinned to several splits; the strictest holds"
        for patient, of_folds in claims.items()
        if any(len(claimed) > 1 for claimed in of_folds)
    )
    return {patient: [strictest(claimed) for claimed in of_folds] for patient, of_folds in claims.items()}, problems
