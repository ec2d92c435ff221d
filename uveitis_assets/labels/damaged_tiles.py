"""Finds labelled images whose global image or tiles are damaged, which labels leave out."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from uveitis_assets.labels.coco_summary import BadLabel
from uveitis_assets.stages.artefact_files import (
    DamagedArtefactError,
    FileStamp,
    compare_size,
    described,
    recorded_stamps,
)
from uveitis_assets.stages.index import Row, read_stage_index
from uveitis_assets.stages.suspect_files import note_suspects
from uveitis_assets.storage.store import ArtefactStore, artefact_key


def damaged_tiles(
    store: ArtefactStore, lane: str, rows: Iterable[Mapping[str, Any]]
) -> tuple[dict[str, BadLabel], dict[str, FileStamp]]:
    """Images of which a file that labels refer to is damaged, and the recorded stamps of all metadata.

    Compares the sizes of global image and tiles with the tiles' indexes. Where an index of an earlier version records
    no files, images must not be empty. Files that are gone are left to ``label_sanity``, which knows what the lane
    persists. What is damaged is noted for the next run of its stage. The metadata files are compared with their stamps
    by who reads them (``image_lesions``).

    Args:
        store: where all artefacts are.
        lane: the lane's name.
        rows: manifest rows of the images.

    Returns:
        Findings by image id, and stamps by file name below the store's root.
    """
    ids: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        ids[row["batch"]].append(row["image_id"])
    found: dict[str, BadLabel] = {}
    stamps: dict[str, FileStamp] = {}
    for batch in sorted(ids):
        crops = read_stage_index(store.stage_index(lane, "normalized_crops", batch))
        index = store.stage_index(lane, "tiles", batch)
        tiles = read_stage_index(index)
        for image_id in ids[batch]:
            recorded = recorded_stamps(tiles.get(image_id, {}))
            of_image = recorded_stamps(crops.get(image_id, {})) | recorded
            stamps |= {name: stamp for name, stamp in of_image.items() if name.endswith(".json")}
            if errors := _damaged_images(store, artefact_key(image_id), tiles.get(image_id, {}), recorded):
                note_suspects(index, [store.name_of(error.path) for error in errors])
                found[image_id] = damaged_label(store, lane, image_id, errors)
    return found, stamps


def damaged_label(store: ArtefactStore, lane: str, image_id: str, errors: Iterable[DamagedArtefactError]) -> BadLabel:
    """The entry of an image that labels leave out because of damaged files, which it names."""
    advice = f"materialize {lane}/normalized_crops and {lane}/tiles again"
    return BadLabel(image_id, "damaged_artefact", f"{described(store.root, errors)}; {advice}")


def _damaged_images(
    store: ArtefactStore, key: str, row: Row, recorded: Mapping[str, FileStamp]
) -> list[DamagedArtefactError]:
    """Global image and tiles of another size than recorded; without a record, those that are empty."""
    errors = []
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
