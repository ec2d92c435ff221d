"""A landed sample, what is registered of it, and a problem met in the landing folder.

Layouts make these from a dataset's folder; the ledger adds identity and batch. No pixels, no file access.
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
class LandedSample:
    """One file, or several that belong together, as their dataset's layout describes them.

    All paths are POSIX paths relative to the dataset's raw folder. ``relative_path`` is the file or, for several, what
    they have in common (mostly their folder); no two samples of a scan share it. ``files`` are the several files in
    the order in which they are read, empty for a sample of one file. ``roles``, one per file, say what a file is in
    the sample (``image``, ``mask``, a slice number) where two files that exchange their content make another sample;
    empty where the files alone are the sample, whatever their names.

    ``patient`` is the raw patient id: it stays in the ledger. ``patient_from_name`` says that it only repeats the
    file's name, so that a renamed file keeps the patient it had. ``identifier`` replaces the file's stem in the image
    id where the dataset names its images itself.
    """

    relative_path: str
    dataset: str
    patient: str
    eye: Eye | None = None
    label_format: LabelFormat = "none"
    label_paths: tuple[str, ...] = ()
    notes: str = ""
    official_split: Split | None = None
    patient_from_name: bool = False
    identifier: str = ""
    files: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse roles that do not name each file's part.

        Raises:
            ValueError: there are roles, but not one per file.
        """
        if self.roles and len(self.roles) != len(self.files):
            raise ValueError(
                f"{self.relative_path}: expected one role per file, found {len(self.roles)} roles of "
                f"{len(self.files)} files; correct the layout"
            )

    @property
    def members(self) -> tuple[str, ...]:
        """All files of the sample, at least one."""
        return self.files or (self.relative_path,)


@dataclass(frozen=True, slots=True)
class SampleFacts:
    """What a probe finds in a sample's files; None where the modality has no such thing.

    ``width`` and ``height`` are pixels as the image is shown (after EXIF orientation).
    """

    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True)
class LandingProblem:
    """Something in the landing folder that could not be taken: a reason code, the place and what to do."""

    path: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class LandingScan:
    """Result of reading a dataset's raw folder; samples sorted by path.

    ``lost_patients`` are those of the problems for which patient ids that stand in a table are not known: such a scan
    is not registered, because each image would count as a patient of its own.
    """

    samples: tuple[LandedSample, ...]
    problems: tuple[LandingProblem, ...] = ()
    lost_patients: tuple[LandingProblem, ...] = ()


@dataclass(frozen=True, slots=True)
class RegisteredImage:
    """A ledger entry as the processing stages see it.

    ``path`` is the file's place now, ``content_hash`` the BLAKE3 hex digest of the bytes that were registered: other
    bytes found there are reported, not used. ``quarantine_reason`` is None for usable images. ``name`` is what
    messages call the image: its path below the dataset's raw folder or, where file names name patients, the image id
    with the file's extension. No patient data besides ``path`` and ``files``.

    ``files`` are the places of all files of the sample in their layout's order, of one file just ``path``;
    ``file_hashes`` are the digests of their registered bytes, one per file (none where the files were never read).
    ``content_hash`` of several files is that of all their digests (see `sample_content_hash`).
    """

    image_id: str
    dataset: str
    path: Path
    content_hash: str
    quarantine_reason: str | None = None
    quarantine_detail: str | None = None
    name: str = ""
    files: tuple[Path, ...] = ()
    file_hashes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Take the one file where no several are given."""
        if not self.files:
            object.__setattr__(self, "files", (self.path,))
            object.__setattr__(self, "file_hashes", (self.content_hash,) if self.content_hash else ())
