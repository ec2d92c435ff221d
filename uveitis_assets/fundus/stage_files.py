"""Files of the preprocessing stages: which an image has to have, and how they are removed."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from uveitis_assets.fundus.configuration import PreprocessConfiguration, PreprocessStage
from uveitis_assets.stages.index import Row
from uveitis_assets.storage.files import TEMPORARY_SUFFIX, temporary_beginning
from uveitis_assets.storage.store import ArtefactStore


def required_files(
    store: ArtefactStore, key: str, stage: PreprocessStage, configuration: PreprocessConfiguration, row: Row
) -> list[Path]:
    """Files that have to exist for a usable image's stage to be done."""
    persist = configuration.persist
    match stage:
        case "roi_masks":
            return [store.roi_mask(key)]
        case "normalized_crops":
            return [
                store.crop_metadata(key),
                store.normalization_metadata(key),
                *([store.crop(key)] if "crops" in persist else []),
                *([store.normalized_crop(key)] if "norm" in persist else []),
            ]
        case "tiles":
            numbers = range(row["n_tiles"]) if "tiles" in persist else ()
            return [
                store.tiles_metadata(key),
                *([store.global_image(key, row["global_size"])] if "global" in persist else []),
                *(store.tile(key, f"tile_{number:03d}") for number in numbers),
            ]


def remove_artefacts(store: ArtefactStore, key: str, stage: PreprocessStage, global_sizes: Collection[int]) -> None:
    """Removes all of a stage's files of one image; of global images those of the sizes given, px."""
    match stage:
        case "roi_masks":
            paths = [store.roi_mask(key)]
        case "normalized_crops":
            paths = [
                store.crop(key),
                store.normalized_crop(key),
                store.crop_metadata(key),
                store.normalization_metadata(key),
            ]
        case "tiles":
            paths = [store.tiles_metadata(key), *(store.global_image(key, size) for size in global_sizes)]
            shutil.rmtree(tile_folder(store, key), ignore_errors=True)
    for path in paths:
        path.unlink(missing_ok=True)


def remove_partial_files(store: ArtefactStore, keys: Collection[str], global_size: int) -> None:
    """Removes temporary files that a killed process left among these images' artefacts.

    Folders are listed once; those of other batches stay.
    """
    beginnings = {temporary_beginning(f"{key}{extension}") for key in keys for extension in (".png", ".json")}
    some = next(iter(keys), "")
    folders = {
        path.parent
        for path in (
            store.roi_mask(some),
            store.crop(some),
            store.crop_metadata(some),
            store.normalized_crop(some),
            store.normalization_metadata(some),
            store.global_image(some, global_size),
            store.tiles_metadata(some),
        )
    }
    for folder in sorted(folders):
        for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
            if path.name.rsplit(".", 2)[0] in beginnings:
                path.unlink(missing_ok=True)
    for key in keys:
        for path in tile_folder(store, key).glob(f".*{TEMPORARY_SUFFIX}"):
            path.unlink(missing_ok=True)


def keep_only_tiles(store: ArtefactStore, key: str, names: Collection[str]) -> None:
    """Removes tiles of an earlier configuration and unfinished files; with no names, the folder."""
    folder = tile_folder(store, key)
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink(missing_ok=True)
    if not names:
        folder.rmdir()


def tile_folder(store: ArtefactStore, key: str) -> Path:
    """Folder of one image's tiles."""
    return store.tile(key, "tile_000").parent
