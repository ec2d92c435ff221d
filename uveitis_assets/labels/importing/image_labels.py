"""Decides which image gets which label files: whole images, whose rows are all accepted."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.labels.class_map import LabelSpace
from uveitis_assets.labels.configuration import LabelConfiguration
from uveitis_assets.labels.importing.class_names import ClassNames
from uveitis_assets.labels.importing.convert import check_stated_size, label_text, mask_png, oriented_line, pixels_of
from uveitis_assets.labels.importing.foreign import (
    UNREADABLE,
    ForeignImage,
    ForeignLabels,
    ForeignShape,
    Refusal,
    reason_of,
)
from uveitis_assets.labels.importing.lane_images import LaneImages
from uveitis_assets.labels.importing.request import ImportReport, ImportRequest
from uveitis_assets.landing.layouts.file_names import without_image_extension
from uveitis_assets.landing.quarantine import QuarantineError
from uveitis_assets.storage.files import PathEscapesRootError

_Shapes = Sequence[tuple[str, ForeignShape]]


@dataclass(frozen=True, slots=True)
class ImageLabels:
    """Label files of one image, and earlier ones to remove; all paths lie below the raw folder."""

    files: Sequence[tuple[Path, bytes]] = ()
    stale: Sequence[Path] = ()


class ImageImport:
    """One import while it goes on: which image gets which label files, and the report."""

    def __init__(
        self,
        images: LaneImages,
        labels: LabelConfiguration,
        space: LabelSpace,
        names: ClassNames,
        request: ImportRequest,
    ) -> None:
        self.report = ImportReport()
        self._images = images
        self._labels = labels
        self._space = space
        self._names = names
        self._request = request
        self._refused: set[str] = set()

    def labels_of_images(self, foreign: ForeignLabels) -> Iterator[ImageLabels]:
        """Label files of the images of which no row is refused, sorted by image; the report grows with them."""
        for refusal in foreign.refusals:
            self._refuse(refusal.image, refusal.place, refusal.reason)
        shapes: dict[str, list[tuple[str, ForeignShape]]] = {image.name: [] for image in foreign.images}
        for shape in foreign.shapes:
            self._add(shape, shapes)
        used = {label_class for of_image in shapes.values() for label_class, _ in of_image}
        folders = sorted(used | self._names.stated_targets)
        for path, listings in sorted(self._images_by_path(foreign.images).items()):
            names = sorted({listing.name for listing in listings})
            of_image = [entry for name in names for entry in shapes[name]]
            files = self._converted(path, listings, of_image, folders)
            earlier = self._earlier(path, files)
            targets = self._targets(path, listings[0], {*files, *earlier})
            if self._refused.intersection(names):
                self.report.images_left_out.append(path)
                continue
            stale = [file for file in earlier if file not in files]
            self.report.written += files
            self.report.removed += stale
            self.report.n_images += 1
            self.report.n_lesions += len(of_image)
            yield ImageLabels(
                [(targets[file], data) for file, data in files.items()], [targets[file] for file in stale]
            )

    def _images_by_path(self, listed: Sequence[ForeignImage]) -> dict[str, list[ForeignImage]]:
        """Every time that the files list an image, by the image's path; names of none are refused."""
        by_path: dict[str, list[ForeignImage]] = {}
        by_name: dict[str, list[ForeignImage]] = {}
        for image in listed:
            by_name.setdefault(image.name, []).append(image)
        for name, listings in sorted(by_name.items()):
            try:
                by_path.setdefault(self._images.find(name), []).extend(listings)
            except ValueError as error:
                self._refuse(name, listings[0].place, str(error))
                self.report.images_left_out.append(name)
        for path, listings in sorted(by_path.items()):
            if len(listings) > 1:
                found = " and ".join(f"{listing.place} ({listing.name})" for listing in listings)
                self._refuse(
                    listings[0].name, listings[0].place, f"found labels of {path} in {found}; keep one of them"
                )
        return by_path

    def _add(self, shape: ForeignShape, shapes: Mapping[str, list[tuple[str, ForeignShape]]]) -> None:
        """File a shape under its image, unless it is left out or refused."""
        try:
            label_class = self._names.label_class(shape.label_class)
            wanted = label_class is not None and self._is_confident(shape)
        except ValueError as error:
            self._refuse(shape.image, shape.place, str(error))
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
        if not 0 <= shape.confidence <= 1:
            raise ValueError(f"found the confidence {shape.confidence:g}, expected one within 0..1")
        return shape.confidence >= self._request.min_confidence

    def _converted(
        self, path: str, listings: Sequence[ForeignImage], shapes: _Shapes, folders: Sequence[str]
    ) -> dict[str, bytes]:
        """The label files of an image by path; rows that cannot be converted are refused."""
        first = listings[0]
        try:
            size = self._images.size(path)
            for listing in listings:
                check_stated_size(listing.size, size)
        except (ValueError, QuarantineError) as error:
            self._refuse(first.name, first.place, error.detail if isinstance(error, QuarantineError) else str(error))
            return {}
        # Labels lie beside the layout's folder of images, in the same subfolders.
        below = without_image_extension(str(PurePosixPath(*PurePosixPath(path).parts[1:])))
        if self._labels.format == "obb":
            return {f"Labels/{below}.txt": label_text(self._lines(shapes, size))}
        if not folders:
            self._refuse(
                first.name,
                first.place,
                "found an image without lesions, and no class that it was examined for; state the classes with --class",
            )
        masks = self._masks(shapes, size)
        blank = np.zeros(size[::-1], np.bool_)
        return {f"{folder}/{below}.png": mask_png(masks.get(folder, blank)) for folder in folders}

    def _lines(self, shapes: _Shapes, size: tuple[int, int]) -> list[str]:
        lines = []
        for label_class, shape in shapes:
            try:
                lines.append(oriented_line(shape, label_class, size, self._space, self._labels.edge_tolerance))
            except UNREADABLE as error:
                self._refuse(shape.image, shape.place, reason_of(error))
        return lines

    def _masks(self, shapes: _Shapes, size: tuple[int, int]) -> dict[str, NDArray[np.bool_]]:
        """Pixels of each label class."""
        masks: dict[str, NDArray[np.bool_]] = {}
        for label_class, shape in shapes:
            try:
                pixels = pixels_of(shape, size, self._labels.edge_tolerance)
            except UNREADABLE as error:
                self._refuse(shape.image, shape.place, reason_of(error))
            else:
                mask = masks.setdefault(label_class, pixels)
                mask |= pixels
                if mask.all():
                    self._refuse(shape.image, shape.place, "found every pixel marked as lesion, expected a background")
        return masks

    def _earlier(self, path: str, files: Collection[str]) -> list[str]:
        """Label files that new ones replace; without ``--replace`` masks of other classes are none of them."""
        earlier = self._images.label_paths(path)
        if self._request.replace:
            return earlier
        folders = {file.partition("/")[0] for file in files}
        return [file for file in earlier if file.partition("/")[0] in folders]

    def _targets(self, path: str, image: ForeignImage, files: Collection[str]) -> dict[str, Path]:
        """Where label files lie; the image is refused where one may not be written or replaced."""
        targets: dict[str, Path] = {}
        for file in sorted(files):
            try:
                targets[file] = self._images.place_of_label(file)
            except PathEscapesRootError as error:
                self._refuse(image.name, image.place, f"{file}: {error}")
        existing = [file for file, target in targets.items() if os.path.lexists(target)]
        if existing and not self._request.replace:
            self._refuse(
                image.name,
                image.place,
                f"found label files of {path} already: {', '.join(existing)}; add --replace to write the new ones in "
                "their place",
            )
        return targets

    def _refuse(self, image: str, place: str, reason: str) -> None:
        self._refused.add(image)
        self.report.refusals.append(Refusal(image, place, reason))
