"""A lane as the preprocessing stages leave it, without running them: metadata, tile index and manifest rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from blake3 import blake3

from uveitis_assets.imaging.geometry import ImageFrames, Tile
from uveitis_assets.storage.files import write_json
from uveitis_assets.storage.store import ArtefactStore, artefact_key

MANIFEST_SCHEMA: dict[str, Any] = {
    "image_id": pl.String,
    "filepath": pl.String,
    "dataset": pl.String,
    "split": pl.String,
    "label_format": pl.String,
    "width": pl.Int64,
    "height": pl.Int64,
    "patient_id": pl.String,
    "notes": pl.String,
    "content_hash": pl.String,
    "quarantine_reason": pl.String,
    "relative_path": pl.String,
    "label_paths": pl.List(pl.String),
    "label_hashes": pl.List(pl.String),
    "batch": pl.String,
    "fold_splits": pl.List(pl.String),
}


def tile_grid(width: int, height: int, size: int, stride: int) -> tuple[Tile, ...]:
    """Tiles of ``size`` at steps of ``stride``, the last ones shifted to the edge."""

    def starts(length: int) -> list[int]:
        steps = list(range(0, max(length - size, 0), stride))
        return [*steps, max(length - size, 0)]

    corners = [(x, y) for y in starts(height) for x in starts(width)]
    return tuple(
        Tile(f"tile_{index:03d}", x, y, min(x + size, width), min(y + size, height))
        for index, (x, y) in enumerate(corners)
    )


def frames_of(
    raw_size: tuple[int, int],
    crop_box: tuple[int, int, int, int] | None = None,
    *,
    frame: str = "global",
    global_size: int = 1024,
    tile_size: int = 768,
    stride: int = 576,
) -> ImageFrames:
    """Frames as the preprocessing makes them: the crop padded to a centred square and scaled."""
    crop = crop_box or (0, 0, *raw_size)
    width, height = crop[2] - crop[0], crop[3] - crop[1]
    side = max(width, height)
    tiled = (width, height) if frame == "native" else (global_size, global_size)
    return ImageFrames(
        raw_size=raw_size,
        crop_box=crop,
        global_size=global_size,
        pad_xy=((side - width) // 2, (side - height) // 2),
        padded_side=side,
        frame=frame,
        tiles=tile_grid(*tiled, tile_size, stride),
    )


@dataclass
class FakeLane:
    """Collects images; ``finish`` writes the tile indexes and returns the manifest with the labels as they are now."""

    store: ArtefactStore
    name: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    index: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def raw_folder(self) -> Path:
        return self.store.raw / self.name

    def add(
        self,
        stem: str,
        frames: ImageFrames,
        label_paths: list[str],
        *,
        label_format: str = "obb",
        split: str = "train",
        batch: str = "b00001",
        preprocessed: bool = True,
        **changes: Any,
    ) -> str:
        """One image; ``changes`` overrides manifest columns, ``indexed_hash`` the hash in the tile index."""
        image_id = f"{self.name}::{stem}"
        indexed_hash = changes.pop("indexed_hash", f"hash-{stem}")
        self.rows.append(
            {
                "image_id": image_id,
                "filepath": f"{stem}.jpg",
                "dataset": self.name,
                "split": split,
                "label_format": label_format,
                "width": frames.raw_size[0],
                "height": frames.raw_size[1],
                "patient_id": f"patient-{stem}",
                "notes": "",
                "content_hash": f"hash-{stem}",
                "quarantine_reason": None,
                "relative_path": f"{stem}.jpg",
                "label_paths": label_paths,
                "batch": batch,
                "fold_splits": [split, split],
                **changes,
            }
        )
        if preprocessed:
            key = artefact_key(image_id)
            write_json(self.store.crop_metadata(key), frames.crop_metadata())
            write_json(self.store.tiles_metadata(key), frames.tiles_metadata(image_id))
            row = {"image_id": image_id, "key": key, "content_hash": indexed_hash, "quarantine_reason": None}
            self.index.setdefault(batch, []).append(row)
        return image_id

    def write_label(self, path: str, content: str | bytes) -> str:
        """Put a label file into the raw folder and return its relative path."""
        target = self.raw_folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def finish(self) -> pl.DataFrame:
        schema = dict.fromkeys(("image_id", "key", "content_hash", "quarantine_reason"), pl.String)
        for batch, rows in self.index.items():
            path = self.store.stage_index(self.name, "tiles", batch)
            path.parent.mkdir(parents=True, exist_ok=True)
            pl.DataFrame(rows, schema=schema).write_parquet(path)
        rows = [{"label_hashes": [self._hash_of(path) for path in row["label_paths"]], **row} for row in self.rows]
        return pl.DataFrame(rows, schema=MANIFEST_SCHEMA)

    def _hash_of(self, path: str) -> str:
        label = self.raw_folder / path
        return blake3(label.read_bytes()).hexdigest() if label.exists() else ""
