"""What travels from the landing folder to the manifest: one landed image and one problem met on the way.

Adapters make these from a dataset's layout; the ledger adds identity and batch. No pixels, no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Eye = Literal["L", "R"]
LabelFormat = Literal["obb", "mask", "grade", "none"]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class LandedImage:
    """An image file as its dataset's layout describes it.

    ``relative_path`` and ``label_paths`` are POSIX paths relative to the dataset's raw folder. ``patient`` is the
    raw patient id: it stays in the ledger. ``patient_from_name`` says that it merely repeats the file's name, so that
    a renamed file keeps the patient it had. ``identifier`` replaces the file's stem in the image id where the
    dataset names its images itself.
    """

    relative_path: str
    dataset: str
    patient: str
    eye: Eye | None
    label_format: LabelFormat
    label_paths: tuple[str, ...] = ()
    notes: str = ""
    official_split: Split | None = None
    patient_from_name: bool = False
    identifier: str = ""


@dataclass(frozen=True, slots=True)
class LandingProblem:
    """Something in the landing folder that could not be taken: a reason code, the place and what to do."""

    path: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class LandingScan:
    """Result of reading a dataset's raw folder; images sorted by path."""

    images: tuple[LandedImage, ...]
    problems: tuple[LandingProblem, ...] = ()


@dataclass(frozen=True, slots=True)
class RegisteredImage:
    """A ledger entry as the preprocessing stages see it.

    ``path`` is the file's place now, ``content_hash`` the BLAKE3 hex digest of the bytes that were registered: other
    bytes found there are reported, not used. ``quarantine_reason`` is None for usable images. ``name`` is what
    messages call the image: its path below the dataset's raw folder or, where file names name patients, the image id
    with the file's extension. No patient data besides ``path``.
    """

    image_id: str
    dataset: str
    path: Path
    content_hash: str
    quarantine_reason: str | None = None
    quarantine_detail: str | None = None
    name: str = ""
