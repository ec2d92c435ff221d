"""Adapters: how each known dataset layout names its images, labels, patients and splits."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.folder_tree import list_landing_tree
from uveitis_assets.landing.samples import LandingProblem, LandingScan
from uveitis_assets.storage.files import PathEscapesRootError
from uveitis_assets.storage.store import ArtefactStore

_UNREAD_EXTENSIONS = (".gif", ".webp", ".dcm", ".jp2", ".heic", ".heif", ".avif", ".psd")


def scan_landing_folder(dataset: DatasetConfiguration, store: ArtefactStore) -> LandingScan:
    """Describe everything in the dataset's raw folder by its layout; images sorted by path.

    A missing folder is a problem in the result, not an exception. No image is opened.
    """
    try:
        folder = store.raw_folder(dataset.folder)
    except PathEscapesRootError as error:
        return LandingScan((), (LandingProblem(dataset.folder, "escapes_root", str(error)),))
    adapter = import_module(f"{__name__}.{dataset.layout}")
    tree = list_landing_tree(folder, store.raw)
    scan: LandingScan = adapter.scan(dataset, tree)
    unread = [file for file in tree.files if file.lower().endswith(_UNREAD_EXTENSIONS)]
    if unread:
        kinds = ", ".join(sorted({"." + file.rpartition(".")[2].lower() for file in unread}))
        detail = f"{len(unread)} files of the types {kinds} are not read; convert them to PNG or JPEG"
        return replace(scan, problems=(*scan.problems, LandingProblem(".", "unsupported_file_type", detail)))
    return scan
