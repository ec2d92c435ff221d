"""Finds the images of a lane's landing folder that foreign label files name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from uveitis_assets.labels.class_map import LesionLabelFormat
from uveitis_assets.labels.importing.foreign import ForeignFileError
from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.folder_tree import list_landing_tree
from uveitis_assets.landing.image_probe import is_image_name
from uveitis_assets.landing.landed_files import read_landed_file
from uveitis_assets.landing.layouts import find_layout, scan_landing_folder
from uveitis_assets.landing.layouts.file_names import without_image_extension
from uveitis_assets.storage.files import PathEscapesRootError, resolve_inside
from uveitis_assets.storage.store import ArtefactStore


class LaneImages:
    """Images of a lane as its layout finds them, by name; sizes are read from their headers.

    Attributes:
        folder: the lane's landing folder.
    """

    def __init__(self, store: ArtefactStore, lane: DatasetConfiguration, label_format: LesionLabelFormat) -> None:
        """Scan the lane's landing folder.

        Raises:
            ForeignFileError: the folder lies outside the raw folder.
        """
        try:
            self.folder: Path = store.raw_folder(lane.folder)
        except PathEscapesRootError as error:
            raise ForeignFileError(f"{lane.name}: {error}") from error
        self._store = store
        self._probe = find_layout(lane.layout).probe
        paths = [sample.relative_path for sample in scan_landing_folder(lane, store).samples]
        self._by_name = _grouped(paths, lambda path: _composed(path).rpartition("/")[2])
        self._by_stem = _grouped(paths, lambda path: _stem(path).rpartition("/")[2])
        self._by_place = _grouped(paths, _place)
        is_label = _is_box_file if label_format == "obb" else _is_mask
        # Also those that the layout gives to no image, because several of them could be its label.
        self._labels_by_place = _grouped(filter(is_label, list_landing_tree(self.folder, store.raw).files), _place)

    def find(self, name: str) -> str:
        """Path of the one image that a foreign name can mean: by whole name, else without extension.

        Folders in the name count where several images have it, with or without extension.

        Raises:
            ValueError: no image, several, or one whose labels would have the name of another image's.
        """
        wanted = PurePosixPath(_composed(name.replace("\\", "/")))
        parts = [part for part in wanted.parts if part not in {"/", ".", ".."}]
        if not parts:
            raise ValueError(f"found the image name {name!r}, expected a file name")
        *folders, last = parts
        by_stem = self._by_stem.get(without_image_extension(last), [])
        of_folders = _in_folders(by_stem, folders)
        found = _in_folders(self._by_name.get(last, []), folders) or of_folders
        if len(of_folders) < len(by_stem) and not set(found) & set(of_folders):
            found = [*found, *of_folders]  # the extension speaks for one image, the folder for another
        if not found:
            raise ValueError(f"found no image {name!r} in {self.folder}; land it, or correct the name")
        if len(found) > 1:
            raise ValueError(f"found {len(found)} images that {name!r} can mean: {', '.join(found[:3])}")
        alike = self._by_place[_place(found[0])]
        if len(alike) > 1:
            raise ValueError(
                f"found the images {' and '.join(alike)}, whose labels would have one name; give each image a name of "
                "its own"
            )
        return found[0]

    def label_paths(self, path: str) -> list[str]:
        """Label files that an image has now, relative to the landing folder."""
        return self._labels_by_place.get(_place(path), [])

    def place_of_label(self, label_path: str) -> Path:
        """Where a label file lies; links of folders are followed, one of the file itself is replaced.

        Raises:
            PathEscapesRootError: the folder leads out of the raw folder.
        """
        path = self.folder / label_path
        return resolve_inside(self._store.raw, path.parent) / path.name

    def size(self, path: str) -> tuple[int, int]:
        """Width and height as displayed, px.

        Raises:
            QuarantineError: the image cannot be used.
        """
        facts = self._probe(read_landed_file(self._store.raw, str(self.folder / path), path), path)
        if facts.width is None or facts.height is None:
            raise ValueError(f"{path}: expected a picture with width and height, found none")
        return facts.width, facts.height


def _in_folders(paths: list[str], folders: Sequence[str]) -> list[str]:
    """Of several images those that share the longest possible end of their folders with the wanted ones."""
    for n_folders in range(1, len(folders) + 1):
        if len(paths) <= 1:
            break
        inside = [
            path
            for path in paths
            if list(PurePosixPath(_composed(path)).parent.parts[-n_folders:]) == list(folders[-n_folders:])
        ]
        if not inside:
            break
        paths = inside
    return paths


def _composed(path: str) -> str:
    return normalize("NFC", path)


def _stem(path: str) -> str:
    return without_image_extension(_composed(path))


def _place(path: str) -> str:
    """What paths of an image and its labels share: all but the first folder and the extension."""
    return _composed(path).partition("/")[2].rpartition(".")[0]


def _is_box_file(path: str) -> bool:
    return path.startswith("Labels/") and path.lower().endswith(".txt")


def _is_mask(path: str) -> bool:
    return path.partition("/")[0].endswith("_Masks") and is_image_name(path)


def _grouped(paths: Iterable[str], key: Callable[[str], str]) -> Mapping[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(key(path), []).append(path)
    return groups
