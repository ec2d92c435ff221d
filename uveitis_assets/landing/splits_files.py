"""The splits files: image ids of train, val and test per fold, over all lanes that share a split name."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import polars as pl

from uveitis_assets.landing.configuration import SplitConfiguration
from uveitis_assets.landing.manifest_table import MANIFEST_SCHEMA, read_manifest, require_one_split_assignment
from uveitis_assets.landing.samples import SPLITS
from uveitis_assets.storage.files import json_bytes, write_bytes
from uveitis_assets.storage.store import ArtefactStore


def write_splits_files(store: ArtefactStore, split_name: str, folds: int) -> list[Path]:
    """Write ``splits/<name>_<fold>.json`` over all lanes whose manifests have the split name.

    Quarantined images are left out; ids are sorted. Files of folds that do not exist any more are removed.

    Raises:
        ValueError: a lane's manifest was made with fewer folds, or by several split configurations.
    """
    with store.lock(f"splits.{split_name}"):
        return _write_files(store, split_name, folds, _fold_splits_of_lanes(store, split_name, folds))


def remove_lane_from_splits_files(
    store: ArtefactStore, former_names: Collection[str], splits: SplitConfiguration
) -> None:
    """Remove a lane from the splits files of its former names.

    Files of names that no lane has any more are deleted. Called without the manifest's lock, which is taken inside that
    of the splits files. Files that the lane has pinned stay: they decide its splits.
    """
    pinned = [] if splits.pinned is None else [splits.pinned.replace("{fold}", str(k)) for k in range(splits.folds)]
    for name in sorted(former_names):
        with store.lock(f"splits.{name}"):
            files = store.splits_files(name)
            if any(store.name_of(path) in pinned for path in files.values()):
                continue
            folds = max(files, default=-1) + 1
            if frames := _fold_splits_of_lanes(store, name, folds):
                _write_files(store, name, folds, frames)
            else:
                for path in files.values():
                    path.unlink()


def _fold_splits_of_lanes(store: ArtefactStore, split_name: str, folds: int) -> list[pl.DataFrame]:
    """Usable images with their splits, one frame for each lane whose manifest has the split name."""
    frames = []
    for lane in store.lanes_with_manifests():
        manifest = read_manifest(store, lane)
        if split_name not in manifest["split_name"]:
            continue
        require_one_split_assignment(lane, manifest)
        if manifest.filter(pl.col("fold_splits").list.len() < folds).height:
            raise ValueError(
                f"{lane}/manifest: expected {folds} folds of {split_name}, found fewer; materialize it again, or "
                f"remove index/{lane} if the lane does not exist any more"
            )
        frames.append(manifest.filter(pl.col("quarantine_reason").is_null()).select("image_id", "fold_splits"))
    return frames


def _write_files(store: ArtefactStore, split_name: str, folds: int, frames: list[pl.DataFrame]) -> list[Path]:
    everything = pl.concat(frames).sort("image_id") if frames else pl.DataFrame(schema=MANIFEST_SCHEMA)
    paths = []
    for fold in range(folds):
        assigned = everything["fold_splits"].list.get(fold)
        value: dict[str, list[str]] = {
            split: everything.filter(assigned == split)["image_id"].to_list() for split in SPLITS
        }
        paths.append(store.splits_file(split_name, fold))
        write_bytes(paths[-1], json_bytes(value))
    for fold, path in store.splits_files(split_name).items():
        if fold >= folds:
            path.unlink()
    return paths
