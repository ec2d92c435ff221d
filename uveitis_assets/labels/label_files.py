"""Label files of one image, checked against their registered hashes.

The bytes returned are those hashed.

A label that was changed, emptied or swapped after its registration must not be used: an emptied file would turn its
image into a negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uveitis_assets.landing.content_hash import content_hash
from uveitis_assets.landing.landed_files import read_landed_file
from uveitis_assets.landing.quarantine import QuarantineError
from uveitis_assets.storage.store import ArtefactStore


def read_label_files(
    store: ArtefactStore, lane: str, raw_folder: Path, row: Mapping[str, Any]
) -> list[tuple[str, bytes]]:
    """Name and bytes of every label file of an image, sorted by name.

    Args:
        store: its raw root is the boundary that symlinks must not leave, as for images.
        lane: the lane's name, for messages.
        raw_folder: the lane's landing folder; label paths start there.
        row: of the manifest, with ``batch``, ``label_paths`` and their ``label_hashes``.

    Raises:
        QuarantineError: ``changed_since_registration``, the reasons of ``read_landed_file``, or ``bad_label`` where
            the manifest names no label file or not its hash; callers add the image.
    """
    paths, hashes = row["label_paths"] or (), row["label_hashes"] or ()
    if not paths:
        raise QuarantineError("bad_label", "expected a label file, found none in the manifest")
    if len(paths) != len(hashes):
        raise QuarantineError(
            "bad_label",
            f"expected {len(paths)} label hashes in the manifest, found {len(hashes)}; "
            f"materialize {lane}/manifest[{row['batch']}] again",
        )
    files = []
    for path, registered in sorted(zip(paths, hashes, strict=True)):
        data = read_landed_file(store.raw, str(raw_folder / path), path)
        if content_hash(data) != registered:
            raise QuarantineError(
                "changed_since_registration",
                f"{path}: found other content than was registered; run `uveitis-assets register {lane}`, then "
                f"materialize {lane}/manifest[{row['batch']}] and {lane}/coco_labels",
            )
        files.append((path, data))
    return files
