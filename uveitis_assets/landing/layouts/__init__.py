"""Layouts: how the folder of each kind of dataset names its images, labels, patients and splits.

A layout is a `Layout` that `register_layout` adds; those for photographs of the fundus are registered here, those of
other families by their own packages.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from uveitis_assets.landing.folder_tree import LandingTree, list_landing_tree
from uveitis_assets.landing.layouts import deepdrid, eyepacs, fgadr, image_folder, uwf700
from uveitis_assets.landing.layouts.patient_rule import apply_patient_rule
from uveitis_assets.landing.layouts.registry import (
    Layout,
    find_layout,
    layout_names,
    register_layout,
    unregister_layout,
)
from uveitis_assets.landing.samples import LandingProblem, LandingScan
from uveitis_assets.storage.files import PathEscapesRootError
from uveitis_assets.storage.store import ArtefactStore

if TYPE_CHECKING:
    from uveitis_assets.landing.configuration import DatasetConfiguration

__all__ = ["Layout", "find_layout", "layout_names", "register_layout", "scan_landing_folder", "unregister_layout"]

_UNREAD_EXTENSIONS = (".gif", ".webp", ".dcm", ".jp2", ".heic", ".heif", ".avif", ".psd")

for _layout in (uwf700.LAYOUT, fgadr.LAYOUT, deepdrid.LAYOUT, eyepacs.LAYOUT, image_folder.LAYOUT):
    register_layout(_layout)


def scan_landing_folder(dataset: DatasetConfiguration, store: ArtefactStore) -> LandingScan:
    """Describe everything in the dataset's raw folder by its layout; samples sorted by path.

    A missing folder is a problem in the result, not an exception. No image is opened.
    """
    try:
        folder = store.raw_folder(dataset.folder)
    except PathEscapesRootError as error:
        return LandingScan((), (LandingProblem(dataset.folder, "escapes_root", str(error)),))
    tree = list_landing_tree(folder, store.raw)
    scan = apply_patient_rule(dataset, tree, find_layout(dataset.layout).scan(dataset, tree))
    unread = _files_not_read(tree, scan)
    if unread:
        kinds = ", ".join(sorted({"." + file.rpartition(".")[2].lower() for file in unread}))
        detail = f"{len(unread)} files of the types {kinds} are not read; convert them to PNG or JPEG"
        return replace(scan, problems=(*scan.problems, LandingProblem(".", "unsupported_file_type", detail)))
    return scan


def _files_not_read(tree: LandingTree, scan: LandingScan) -> list[str]:
    """Images of types that most layouts do not read, without those that are part of a sample."""
    unread = [file for file in tree.files if file.lower().endswith(_UNREAD_EXTENSIONS)]
    if not unread:
        return []
    members = {file for sample in scan.samples for file in sample.members}
    return [file for file in unread if file not in members]
