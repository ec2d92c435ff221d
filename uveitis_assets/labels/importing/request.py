"""What the user of an import states, and what the import reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from uveitis_assets.labels.importing.foreign import Refusal, Units

ForeignFormat = Literal["coco", "yolo", "yolo-obb", "yolo-seg", "dota", "cvat", "labelme", "label-studio"]
FORMATS: tuple[str, ...] = get_args(ForeignFormat)


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """What the user states about the files.

    Attributes:
        source: a file, or a folder whose files of the format are read, subfolders too.
        format: of the files.
        units: of coordinates, where the format leaves them open.
        first_class: number of the first class, 0 or 1, where classes are numbers.
        names: file with the names of class numbers: one per line, or YOLO's data.yaml.
        classes: class of the files -> category or label class of the lane; empty text leaves a class out.
        min_confidence: rows with a confidence are predictions: imported from this confidence on; None refuses them.
        replace: write the labels of images that have some, in place of these.
        dry_run: write nothing.
    """

    source: Path
    format: ForeignFormat
    units: Units | None = None
    first_class: int | None = None
    names: Path | None = None
    classes: Mapping[str, str] = field(default_factory=dict)
    min_confidence: float | None = None
    replace: bool = False
    dry_run: bool = False


@dataclass(slots=True)
class ImportReport:
    """What an import wrote and what it refused; with ``dry_run`` what it would write.

    Attributes:
        written: label files, relative to the landing folder.
        removed: earlier label files of the same images that are not among ``written``.
        n_images: images that have labels now.
        n_lesions: lesions written.
        n_left_out: rows of classes that the user leaves out, or below the confidence.
        images_left_out: images without new label files because a row of theirs is refused; by their path, or by the
            name that the files have where no one image is found.
        refusals: refused rows.
    """

    written: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    n_images: int = 0
    n_lesions: int = 0
    n_left_out: int = 0
    images_left_out: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
