"""Removal of a lane's label files of folds that `splits.folds` does not have any more.

Left behind, they would pass for labels of splits that nothing decides or updates. Files of other lanes, fold 0 and
whatever somebody else put there stay, and so do the folders of folds: another lane may be about to write into one.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from uveitis_assets.landing.samples import SPLITS, Split
from uveitis_assets.storage.files import read_json, write_json
from uveitis_assets.storage.store import ArtefactStore


def remove_dropped_folds(store: ArtefactStore, lane: str, folds: int) -> list[int]:
    """Remove the lane's label files of folds from ``folds`` on; return these folds.

    These are COCO files, summary entries and overlays.
    """
    removed = {
        fold
        for fold in store.labelled_folds()
        for split in SPLITS
        if fold >= folds and _remove(store, lane, fold, split)
    }
    return sorted(removed)


def _remove(store: ArtefactStore, lane: str, fold: int, split: Split) -> bool:
    overlays = store.label_overlay_folder(lane, split, fold)
    entry = f"{lane}_{split}"

    def files() -> list[Path]:
        coco_files = [store.coco_file(lane, split, fold, tiles=tiles) for tiles in (False, True)]
        return [path for path in (*coco_files, *sorted(overlays.glob("*_overlay.png"))) if path.exists()]

    if not files() and entry not in _read_summary(store, fold):
        return False
    # A run that began before the folds were reduced may still be at work on this one.
    with store.labels_lock(lane, split, fold):
        for path in files():
            path.unlink(missing_ok=True)
        with suppress(OSError):  # gone already, or somebody keeps files of their own there
            overlays.rmdir()
        with store.lock("coco_summary"):
            content = _read_summary(store, fold)
            if content.pop(entry, None) is not None:
                if content:
                    write_json(store.coco_summary_file(fold), content)
                else:
                    store.coco_summary_file(fold).unlink()
    return True


def _read_summary(store: ArtefactStore, fold: int) -> dict[str, object]:
    path = store.coco_summary_file(fold)
    return read_json(path) if path.exists() else {}
