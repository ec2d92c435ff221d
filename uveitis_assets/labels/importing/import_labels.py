"""Imports label files of another tool into a lane: reads, matches, converts and writes them.

An image is imported whole or not at all: with part of its lesions it would teach the missing ones as background. So an
image of which any row is refused gets no label file, and every refused row is reported with its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import yaml

from uveitis_assets.labels.class_map import LabelSpace, load_class_map
from uveitis_assets.labels.configuration import LabelConfiguration
from uveitis_assets.labels.importing.class_names import ClassNames
from uveitis_assets.labels.importing.coco_json import read_coco
from uveitis_assets.labels.importing.convert import (
    by_label_class,
    check_stated_size,
    label_text,
    mask_png,
    oriented_line,
    pixels_of,
)
from uveitis_assets.labels.importing.cvat_xml import read_cvat
from uveitis_assets.labels.importing.foreign import (
    ForeignFileError,
    ForeignLabels,
    ForeignShape,
    ReaderOptions,
    Refusal,
    Units,
)
from uveitis_assets.labels.importing.label_studio import read_label_studio
from uveitis_assets.labels.importing.labelme import read_labelme
from uveitis_assets.labels.importing.lane_images import LaneImages
from uveitis_assets.labels.importing.text_rows import read_dota, read_yolo
from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.quarantine import QuarantineError
from uveitis_assets.storage.files import write_bytes
from uveitis_assets.storage.store import ArtefactStore

ForeignFormat = Literal["coco", "yolo", "yolo-obb", "yolo-seg", "dota", "cvat", "labelme", "label-studio"]
Reader = Callable[[Sequence[tuple[str, bytes]], ReaderOptions], ForeignLabels]
_READERS: Mapping[ForeignFormat, Reader] = {
    "coco": read_coco,
    "yolo": partial(read_yolo, rows="yolo"),
    "yolo-obb": partial(read_yolo, rows="yolo-obb"),
    "yolo-seg": partial(read_yolo, rows="yolo-seg"),
    "dota": read_dota,
    "cvat": read_cvat,
    "labelme": read_labelme,
    "label-studio": read_label_studio,
}
_EXTENSIONS: Mapping[ForeignFormat, str] = {
    "yolo": ".txt",
    "yolo-obb": ".txt",
    "yolo-seg": ".txt",
    "dota": ".txt",
    "coco": ".json",
    "labelme": ".json",
    "label-studio": ".json",
    "cvat": ".xml",
}
_UNITS_OPEN = frozenset({"yolo", "yolo-obb", "yolo-seg", "dota"})
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
        replace: overwrite label files that exist.
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
    """What an import wrote and what it refused.

    Attributes:
        written: label files, relative to the landing folder (with ``dry_run`` those that would be).
        n_images: images that have labels now.
        n_lesions: lesions written.
        n_left_out: rows of classes that the user leaves out, or below the confidence.
        images_left_out: images without label files because a row of theirs is refused.
        refusals: refused rows.
    """

    written: list[str] = field(default_factory=list)
    n_images: int = 0
    n_lesions: int = 0
    n_left_out: int = 0
    images_left_out: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def import_labels(
    store: ArtefactStore, lane: DatasetConfiguration, labels: LabelConfiguration, request: ImportRequest
) -> ImportReport:
    """Convert foreign label files into the lane's own and write them beside its landed images.

    Raises:
        ForeignFileError: files that are not of the format, options that are missing or wrong, or label files that
            exist already; nothing is written.
    """
    if labels.format == "none":
        raise ForeignFileError(f"{lane.name}: expected a lane with `labels.format: obb` or `mask`, found none")
    space = load_class_map().label_space(labels.format, label_classes=labels.label_classes)
    options = _reader_options(request)
    first = request.first_class if request.format.startswith("yolo") and request.names is None else None
    names = ClassNames(space, request.classes, load_class_map().names, first=first)
    foreign = _READERS[request.format](_source_files(request), options)
    work = _Import(LaneImages(store, lane), labels, space, names, request)
    files = work.label_files(foreign)
    existing = [path for path in files if (work.images.folder / path).exists()]
    if existing and not request.replace:
        raise ForeignFileError(
            f"{lane.name}: {len(existing)} label files exist already, the first is {existing[0]}; add --replace to "
            "overwrite them"
        )
    if not request.dry_run:
        for path, data in files.items():
            write_bytes(work.images.folder / path, data)
    work.report.written = list(files)
    return work.report


class _Import:
    """One import while it goes on: which image gets which label files, and the report."""

    def __init__(
        self,
        images: LaneImages,
        labels: LabelConfiguration,
        space: LabelSpace,
        names: ClassNames,
        request: ImportRequest,
    ) -> None:
        self.images = images
        self.report = ImportReport()
        self._labels = labels
        self._space = space
        self._names = names
        self._request = request

    def label_files(self, foreign: ForeignLabels) -> dict[str, bytes]:
        """Content of the label files by their path below the landing folder."""
        self.report.refusals = list(foreign.refusals)
        shapes: dict[str, list[tuple[str, ForeignShape]]] = {name: [] for name in foreign.sizes}
        for shape in foreign.shapes:
            self._add(shape, shapes)
        used = {label_class for of_image in shapes.values() for label_class, _ in of_image}
        folders = sorted(used | self._names.stated_targets)
        paths: dict[str, str] = {}
        files: dict[str, bytes] = {}
        for name in sorted(shapes):
            converted = self._converted(name, shapes[name], foreign.sizes.get(name), folders, paths)
            if any(refusal.image == name for refusal in self.report.refusals):
                self.report.images_left_out.append(name)
                continue
            files |= converted
            self.report.n_images += 1
            self.report.n_lesions += len(shapes[name])
        return files

    def _add(self, shape: ForeignShape, shapes: Mapping[str, list[tuple[str, ForeignShape]]]) -> None:
        """File a shape under its image, unless it is left out or refused."""
        try:
            label_class = self._names.label_class(shape.label_class)
            wanted = label_class is not None and self._is_confident(shape)
        except ValueError as error:
            self._refuse(shape.image, shape.place, error)
            return
        if label_class is None or not wanted:
            self.report.n_left_out += 1
        else:
            shapes[shape.image].append((label_class, shape))

    def _is_confident(self, shape: ForeignShape) -> bool:
        if shape.confidence is None:
            return True
        if self._request.min_confidence is None:
            raise ValueError(
                f"found a confidence ({shape.confidence:g}): a prediction, no label; state --min-confidence to take "
                "predictions as labels"
            )
        return shape.confidence >= self._request.min_confidence

    def _converted(
        self,
        name: str,
        shapes: Sequence[tuple[str, ForeignShape]],
        stated_size: tuple[int, int] | None,
        folders: Sequence[str],
        paths: dict[str, str],
    ) -> dict[str, bytes]:
        """The label files of an image; its rows that cannot be converted are refused."""
        try:
            path = self.images.find(name)
            if path in paths:
                raise ValueError(f"found the labels of {path} twice, as {paths[path]} and as {name}")
            paths[path] = name
            size = self.images.size(path)
            check_stated_size(stated_size, size)
        except (ValueError, QuarantineError) as error:
            self._refuse(name, shapes[0][1].place if shapes else name, error)
            return {}
        lines: list[str] = []
        for label_class, shape in shapes:
            try:
                if self._labels.format == "obb":
                    lines.append(oriented_line(shape, label_class, size, self._space, self._labels.edge_tolerance))
                else:
                    pixels_of(shape, size, self._labels.edge_tolerance)
            except ValueError as error:
                self._refuse(name, shape.place, error)
        # Labels lie beside the layout's folder of images, in the same subfolders.
        below = PurePosixPath(*PurePosixPath(path).parts[1:])
        if self._labels.format == "obb":
            return {f"Labels/{below.with_suffix('.txt')}": label_text(lines)}
        if any(refusal.image == name for refusal in self.report.refusals):
            return {}
        of_class = by_label_class(shapes)
        return {f"{folder}/{below.with_suffix('.png')}": mask_png(of_class.get(folder, ()), size) for folder in folders}

    def _refuse(self, image: str, place: str, error: Exception) -> None:
        detail = error.detail if isinstance(error, QuarantineError) else str(error)
        self.report.refusals.append(Refusal(image, place, detail))


def _reader_options(request: ImportRequest) -> ReaderOptions:
    """What the readers need; options that the format does not leave open, or that it needs, are errors."""
    if request.format in _UNITS_OPEN:
        if request.units is None:
            raise ForeignFileError(f"--units: expected pixel or share for {request.format}, found none")
    elif request.units is not None:
        raise ForeignFileError(f"--units: {request.format} files define their units; leave the option out")
    if not request.format.startswith("yolo"):
        if request.first_class is not None or request.names is not None:
            raise ForeignFileError(
                f"--first-class and --names: {request.format} files hold class names; leave them out"
            )
        return ReaderOptions(request.units)
    if request.names is None:
        if request.first_class is None and not request.classes:
            raise ForeignFileError(
                "--first-class: expected 0 or 1, found none: is the first class number of the files 0 or 1?"
            )
        return ReaderOptions(request.units)
    return ReaderOptions(request.units, _class_names(request.names, request.first_class))


def _class_names(path: Path, first_class: int | None) -> dict[int, str]:
    """Names of class numbers from a list of names or YOLO's data.yaml."""
    try:
        text = path.read_text("utf-8-sig")
        content = yaml.safe_load(text) if path.suffix.lower() in {".yaml", ".yml"} else text.split("\n")
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ForeignFileError(f"{path}: expected the names of classes, found {error}") from error
    names = content.get("names") if isinstance(content, dict) else content
    if isinstance(names, dict) and all(isinstance(number, int) for number in names):
        return {number: str(name) for number, name in names.items()}
    if not isinstance(names, list):
        raise ForeignFileError(f"{path}: expected a list of names, or `names` in a YAML file")
    if first_class is None:
        raise ForeignFileError(f"--first-class: expected 0 or 1 for the names of {path}, found none")
    listed = [str(name).strip() for name in names if str(name).strip()]
    return dict(enumerate(listed, start=first_class))


def _source_files(request: ImportRequest) -> list[tuple[str, bytes]]:
    """Names, relative to the source, and bytes of the files to read."""
    source, extension = request.source, _EXTENSIONS[request.format]
    if source.is_file():
        files = [source]
        root = source.parent
    else:
        files = sorted(path for path in source.rglob("*") if path.suffix.lower() == extension and path.is_file())
        root = source
    if not files:
        raise ForeignFileError(f"{source}: expected {request.format} files (*{extension}), found none")
    return [(path.relative_to(root).as_posix(), path.read_bytes()) for path in files]
