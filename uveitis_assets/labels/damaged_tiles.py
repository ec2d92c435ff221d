"""Finds labelled images whose tiles or metadata are damaged, which labels leave out."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from uveitis_assets.stages.artefact_files import (
    DamagedArtefactError,
    compare_size,
    described,
    read_artefact,
    recorded_stamps,
)
from uveitis_assets.stages.index import Row, read_stage_index
from uveitis_assets.stages.suspect_files import note_suspects
from uveitis_assets.storage.store import ArtefactStore, artefact_key


def damaged_tiles(store: ArtefactStore, lane: str, rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Images of which a file that labels refer to is damaged, with files and findings in a line.

    Compares the sizes of global image and tiles and the bytes of the metadata with the stage indexes. Where an index of
    an earlier version records no files, images must not be empty and metadata have to be JSON. Files that are gone are
    left to ``label_sanity``, which knows what the lane persists. What is damaged is noted for the next run of its
    stage.

    Args:
        store: where all artefacts are.
        lane: the lane's name.
        rows: manifest rows of the images.
    """
    ids: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        ids[row["batch"]].append(row["image_id"])
    found: dict[str, str] = {}
    for batch in sorted(ids):
        crops = store.stage_index(lane, "normalized_crops", batch)
        tiles = store.stage_index(lane, "tiles", batch)
        recorded = {index: read_stage_index(index) for index in (crops, tiles)}
        for image_id in ids[batch]:
            key = artefact_key(image_id)
            damaged = {
                crops: _damaged_metadata(store, store.crop_metadata(key), recorded[crops].get(image_id, {})),
                tiles: [
                    *_damaged_metadata(store, store.tiles_metadata(key), recorded[tiles].get(image_id, {})),
                    *_damaged_images(store, key, recorded[tiles].get(image_id, {})),
                ],
            }
            for index, errors in damaged.items():
                if errors:
                    note_suspects(index, [store.name_of(error.path) for error in errors])
            if errors := [*damaged[crops], *damaged[tiles]]:
                found[image_id] = described(store.root, errors)
    return found


def _damaged_metadata(store: ArtefactStore, path: Path, row: Row) -> list[DamagedArtefactError]:
    try:
        read_artefact(path, recorded_stamps(row).get(store.name_of(path)))
    except FileNotFoundError:
        return []
    except DamagedArtefactError as error:
        return [error]
    return []


def _damaged_images(store: ArtefactStore, key: str, row: Row) -> list[DamagedArtefactError]:
    """Global image and tiles of another size than recorded; without a record, those that are empty."""
    errors = []
    recorded = recorded_stamps(row)
    for path in [store.root / name for name in recorded] or _unrecorded_images(store, key, row):
        if path.suffix != ".png" or not path.is_file():
            continue
        try:
            if recorded:
                compare_size(path, recorded[store.name_of(path)])
            elif os.path.getsize(path) == 0:  # noqa: PTH202 - half the time of Path.stat
                raise DamagedArtefactError(path, "expected a PNG, found an empty file")
        except DamagedArtefactError as error:
            errors.append(error)
    return errors


def _unrecorded_images(store: ArtefactStore, key: str, row: Row) -> list[Path]:
    tiles = [store.tile(key, f"tile_{number:03d}") for number in range(row.get("n_tiles") or 0)]
    size = row.get("global_size")
    return tiles if size is None else [store.global_image(key, size), *tiles]
