"""Finds the images of a lane's landing folder that foreign label files name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.folder_tree import list_landing_tree
from uveitis_assets.landing.image_probe import is_image_name
from uveitis_assets.landing.landed_files import read_landed_file
from uveitis_assets.landing.layouts import find_layout
from uveitis_assets.storage.store import ArtefactStore


class LaneImages:
    """Images of a lane as its layout finds them, by name; sizes are read from their headers."""

    def __init__(self, store: ArtefactStore, lane: DatasetConfiguration) -> None:
        self._store = store
        self._folder = store.raw_folder(lane.folder)
        layout = find_layout(lane.layout)
        self._probe = layout.probe
        tree = list_landing_tree(self._folder, store.raw)
        self.paths = [sample.relative_path for sample in layout.scan(lane, tree).samples]

    @property
    def folder(self) -> Path:
        """The lane's landing folder."""
        return self._folder

    def find(self, name: str) -> str:
        """Path of the one image that a foreign name can mean: by whole name, else without extension.

        Folders in the name count where several images have it.

        Raises:
            ValueError: no image, or several.
        """
        wanted = PurePosixPath(normalize("NFC", name.replace("\\", "/")))
        parts = tuple(part for part in wanted.parts if part not in {"/", ".", ".."})
        if not parts:
            raise ValueError(f"found the image name {name!r}, expected a file name")
        for with_extension in (True, False):
            found = self._matching(parts, with_extension=with_extension)
            if len(found) == 1:
                return found[0]
            if found:
                raise ValueError(f"found {len(found)} images that {name!r} can mean: {', '.join(found[:3])}")
        raise ValueError(f"found no image {name!r} in {self._folder}; land it, or correct the name")

    def size(self, path: str) -> tuple[int, int]:
        """Width and height as displayed, px.

        Raises:
            QuarantineError: the image cannot be used.
        """
        facts = self._probe(read_landed_file(self._store.raw, str(self._folder / path), path), path)
        if facts.width is None or facts.height is None:
            raise ValueError(f"{path}: expected a picture with width and height, found none")
        return facts.width, facts.height

    def _matching(self, parts: Sequence[str], *, with_extension: bool) -> list[str]:
        """Images that share the longest possible end of the path with the wanted name."""
        found: list[str] = []
        wanted = tuple(parts) if with_extension else (*parts[:-1], _stem(parts[-1]))
        candidates = [(path, _parts(path, with_extension=with_extension)) for path in self.paths]
        for n_parts in range(1, len(wanted) + 1):
            matching = [path for path, own in candidates if own[-n_parts:] == wanted[-n_parts:]]
            if not matching:
                break
            found = matching
            if len(found) == 1:
                break
        return found


def _parts(path: str, *, with_extension: bool) -> tuple[str, ...]:
    parts = PurePosixPath(normalize("NFC", path)).parts
    return parts if with_extension else (*parts[:-1], _stem(parts[-1]))


def _stem(name: str) -> str:
    """A name without its extension; a stem with dots, as label files have it, stays whole."""
    return PurePosixPath(name).stem if is_image_name(name) else name
