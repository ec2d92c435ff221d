"""Splits of patients into train, validation and test: pure functions of seed, dataset and patient.

A patient's splits depend on nothing but these (and on an official or pinned split), so that no image moves when others
land. The patients outside test are assigned to folds; in fold f those of fold f validate and the rest train. One kind
of file is read, the pinned splits; everything else comes in as arguments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from unicodedata import normalize

from uveitis_assets.landing.configuration import SplitConfiguration
from uveitis_assets.landing.samples import SPLITS, Split
from uveitis_assets.storage.files import resolve_inside


def hashed_splits(dataset: str, patient: str, configuration: SplitConfiguration) -> tuple[Split, ...]:
    """Split of a patient (raw id) in every fold, from BLAKE2b of seed, dataset tag and patient."""
    if _uniform("test", dataset, patient, configuration.seed) < configuration.test_ratio:
        splits: list[Split] = ["test"] * configuration.folds
    else:
        splits = ["train"] * configuration.folds
        splits[int(_uniform("fold", dataset, patient, configuration.seed) * configuration.folds)] = "val"
    return tuple(splits)


def patient_splits(
    dataset: str,
    patient: str,
    configuration: SplitConfiguration,
    official: Split | None = None,
    pinned: Sequence[Split | None] = (),
) -> tuple[Split, ...]:
    """Split of a patient in every fold: the pinned one, else the official one, else the hashed one.

    Args:
        dataset: dataset tag.
        patient: raw id.
        configuration: how patients are assigned.
        official: the dataset's own split of the patient.
        pinned: per fold, the split of the patient's images in the pinned splits file; None where it names none.
    """
    splits = list(hashed_splits(dataset, patient, configuration))
    if configuration.use_official and official is not None:
        splits = [official] * configuration.folds
    for fold, split in enumerate(pinned):
        if split is not None:
            splits[fold] = split
    return tuple(splits)


def strictest(splits: Collection[Split]) -> Split | None:
    """Of contradictory splits the one furthest from training: test, then val, then train."""
    return max(splits, key=SPLITS.index, default=None)


def read_pinned_splits(root: Path, configuration: SplitConfiguration) -> list[dict[str, Split]]:
    """Read the pinned splits as image id -> split, one dictionary per fold; empty when nothing is pinned.

    Raises:
        PathEscapesRootError: a link leads out of the root.
        ValueError: a file is missing, is not ``{"train": [ids], "val": [ids], "test": [ids]}``, or names an image in
            two splits; the message names the file.
    """
    if configuration.pinned is None:
        return []
    names = [configuration.pinned.replace("{fold}", str(fold)) for fold in range(configuration.folds)]
    paths = [resolve_inside(root, name) for name in names]
    read = {path: _read_splits_file(path) for path in dict.fromkeys(paths)}
    return [read[path] for path in paths]


def _read_splits_file(path: Path) -> dict[str, Split]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(
            f"{path}: the pinned splits file cannot be read ({error.strerror}); correct `pinned`"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: expected a JSON object of image ids, found {error}; correct the file") from error
    if not isinstance(value, dict) or set(value) != set(SPLITS):
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise ValueError(f"{path}: expected the keys train, val and test, found {found}; correct the file")
    split_by_id: dict[str, Split] = {}
    for split in SPLITS:
        for image_id in value[split]:
            if not isinstance(image_id, str):
                raise ValueError(f"{path}: expected image ids in {split}, found {image_id!r}; correct the file")
            if split_by_id.setdefault(image_id, split) != split:
                raise ValueError(f"{path}: {image_id} stands in {split_by_id[image_id]} and {split}; correct the file")
    return split_by_id


def _uniform(purpose: str, dataset: str, patient: str, seed: int) -> float:
    """A number in [0, 1) that depends on nothing but the arguments."""
    text = "\0".join((str(seed), purpose, dataset, normalize("NFC", patient)))
    # 53 bits: every value is an exact float and stays below 1.
    return (int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 11) / 2**53
