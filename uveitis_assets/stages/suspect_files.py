"""Artefacts that a reader found damaged, noted beside their stage's index until the batch's next run.

Who reads must not remove or replace a file: a run may be writing it. The run of its batch, which holds the lock,
compares the noted files with their checksums, and makes again what is damaged.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import polars as pl

from uveitis_assets.stages.artefact_files import FILES
from uveitis_assets.stages.index import read_index_table
from uveitis_assets.storage.append_only import AppendOnlyFile
from uveitis_assets.storage.store import ArtefactStore


def suspects_file(index: Path) -> Path:
    """Where suspects of an index's stage and batch are noted."""
    return index.with_suffix(".suspects")


def note_suspects(index: Path, names: Collection[str]) -> None:
    """Notes files of a stage's batch, by their names below the store's root, for the next run."""
    known = read_suspects(index)
    new = sorted(set(names) - known)
    if not new:
        return
    with AppendOnlyFile(suspects_file(index)) as file:
        for name in new:
            file.append(json.dumps({"file": name}).encode())


def read_suspects(index: Path) -> frozenset[str]:
    """Names of the noted files; lines that cannot be read are ignored."""
    try:
        lines = suspects_file(index).read_bytes().splitlines()
    except FileNotFoundError:
        return frozenset()
    names = set()
    for line in lines:
        try:
            names.add(str(json.loads(line)["file"]))
        except (ValueError, TypeError, KeyError):
            continue
    return frozenset(names)


def forget_suspects(index: Path) -> None:
    """Removes the notes of a stage's batch."""
    suspects_file(index).unlink(missing_ok=True)


def report_damage(store: ArtefactStore, path: Path) -> bool:
    """Notes a damaged artefact beside the index that lists it; returns whether one does.

    Reads the indexes of all lanes until then: for readers that know a file only.
    """
    name = store.name_of(path)
    for index in sorted(store.root.glob("index/*/*/[!.]*.parquet")):
        if index.parent.name == "manifest":
            continue
        try:
            table = read_index_table(index)
        except (ValueError, FileNotFoundError):
            continue
        if FILES not in table.columns:
            continue
        listed = table.select(pl.col(FILES).explode().struct.field("name")).to_series()
        if (listed == name).any():
            note_suspects(index, [name])
            return True
    return False
