"""Adapters: how each known dataset layout names its images, labels, patients and splits."""

from __future__ import annotations

from importlib import import_module

from uveitis_assets.fundus.configuration import DatasetConfiguration
from uveitis_assets.fundus.landed import LandingProblem, LandingScan
from uveitis_assets.fundus.landing_tree import list_landing_tree
from uveitis_assets.storage import ArtefactStore, PathEscapesRootError


def scan_landing_folder(dataset: DatasetConfiguration, store: ArtefactStore) -> LandingScan:
    """Describe everything in the dataset's raw folder by its layout; images sorted by path.

    A missing folder is a problem in the result, not an exception. No image is opened.
    """
    try:
        folder = store.raw_folder(dataset.folder)
    except PathEscapesRootError as error:
        return LandingScan((), (LandingProblem(dataset.folder, "escapes_root", str(error)),))
    adapter = import_module(f"{__name__}.{dataset.layout}")
    scan: LandingScan = adapter.scan(dataset, list_landing_tree(folder, store.raw))
    return scan
