"""Metadata files of preprocessed images, compared with the checksums that the stage indexes record."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from uveitis_assets.stages.artefact_files import FILES, FileStamp, read_artefact, recorded_stamps
from uveitis_assets.stages.index import read_index_table
from uveitis_assets.storage.store import ArtefactStore


def metadata_stamps(store: ArtefactStore, lane: str, batch: str, stages: Collection[str]) -> dict[str, FileStamp]:
    """Stamps of the JSON files of a batch's stages, by names below the store's root.

    Stages without an index, and indexes of a version that recorded no files, have none.
    """
    stamps: dict[str, FileStamp] = {}
    for stage in stages:
        try:
            table = read_index_table(store.stage_index(lane, stage, batch))
        except FileNotFoundError:
            continue
        if FILES not in table.columns:
            continue
        for (files,) in table.select(FILES).iter_rows():
            recorded = recorded_stamps({FILES: files})
            stamps |= {name: stamp for name, stamp in recorded.items() if name.endswith(".json")}
    return stamps


def read_metadata(store: ArtefactStore, path: Path, stamps: Mapping[str, FileStamp]) -> dict[str, Any]:
    """Reads a JSON file and compares it with its stamp, or parses it at least where there is none.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedArtefactError: it is damaged; the message names it.
    """
    content: dict[str, Any] = json.loads(read_artefact(path, stamps.get(store.name_of(path))))
    return content
