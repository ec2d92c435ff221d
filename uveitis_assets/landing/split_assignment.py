"""A lane's registered images dealt into splits: the ledger's patients brought together with the split configuration.

A pure function of ledger, configuration and pinned splits, so that one batch dealt now and the whole lane dealt later
agree; the fingerprint tells dealings by different configurations apart. It writes nothing and reads no manifest.
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


@dataclass(frozen=True, slots=True)
class SplitAssignment:
    """A split configuration with the pinned splits it names; ``fingerprint`` changes when either does."""

    configuration: SplitConfiguration
    pinned: list[dict[str, Split]]
    fingerprint: str


def read_split_assignment(root: Path, configuration: SplitConfiguration) -> SplitAssignment:
    """Read the pinned splits, if any, and say by what the sides are decided.

    Raises:
        ValueError: a pinned splits file is missing or wrong; the message names it.
    """
    pinned = read_pinned_splits(root, configuration)
    digest = hashlib.blake2b(configuration.model_dump_json().encode(), digest_size=8)
    for split_by_id in pinned:
        digest.update(json.dumps(sorted(split_by_id.items())).encode())
    return SplitAssignment(configuration, pinned, digest.hexdigest())


def assign_splits(
    ledger: pl.LazyFrame, dealing: SplitAssignment, batch: str | None = None
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Deal one batch, or all, into every fold.

    Entries that are gone or superseded are dealt too, and what they say about their patients counts.

    Args:
        ledger: all entries of the lane.
        dealing: by what to deal.
        batch: None: the whole lane.

    Returns:
        Columns ``batch``, ``image_id``, ``content_hash`` and ``fold_splits`` (side in fold 0, 1, ...) per ledger
        entry, and what is contradictory about the pinned splits.
    """
    entries = ledger.select("batch", "image_id", "content_hash", *_OWNER, "patient_official_split")
    members = (entries if batch is None else entries.filter(pl.col("batch") == batch)).collect()
    claims = _official_claims(members)
    pinned, problems = _pinned_sides(entries, dealing.pinned, members)
    # There are few ways to stand in all folds: entries refer to them by number.
    numbers: dict[tuple[Split, ...], int] = {}
    number_of = {
        patient: numbers.setdefault(
            patient_splits(*patient, dealing.configuration, strictest(official), pinned.get(patient, ())), len(numbers)
        )
        for patient, official in claims.items()
    }
    owners = zip(members["split_dataset"].to_list(), members["split_patient"].to_list(), strict=True)
    ways = pl.Series("fold_splits", [list(sides) for sides in numbers], pl.List(pl.String))
    fold_splits = ways.gather([number_of[patient] for patient in owners])
    return members.select("batch", "image_id", "content_hash").with_columns(fold_splits), problems


def _official_claims(members: pl.DataFrame) -> dict[Patient, set[Split]]:
    """Patients of the entries with their official splits; the ledger has settled them alike on all entries."""
    claims: dict[Patient, set[Split]] = {}
    for dataset, patient, official in members.select(*_OWNER, "patient_official_split").unique().iter_rows():
        claims.setdefault((dataset, patient), set()).update([official] if official else [])
    return claims


def _pinned_sides(
    entries: pl.LazyFrame, pinned: list[dict[str, Split]], members: pl.DataFrame
) -> tuple[dict[Patient, list[Split | None]], tuple[str, ...]]:
    """Per patient of the members the pinned side in each fold, from whichever of the patient's images are pinned.

    Images that are gone or superseded count too: a pinned patient stays on its side when the photograph that bore the
    pin is removed or replaced.
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
        sides = claims.setdefault((dataset, patient), [set() for _ in pinned])
        for side, split_by_id in zip(sides, pinned, strict=True):
            if image_id in split_by_id:
                side.add(split_by_id[image_id])
    problems = tuple(
        f"the patient of {first_id[patient]} stands on several sides of the pinned splits; the strictest holds"
        for patient, sides in claims.items()
        if any(len(side) > 1 for side in sides)
    )
    return {patient: [strictest(side) for side in sides] for patient, sides in claims.items()}, problems
