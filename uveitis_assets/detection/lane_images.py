"""The images of a fundus lane that have tiles now, labelled or not: what detectors predict and encoders learn from.

Joins the manifest's parts with the tiles' index; it opens no image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from uveitis_assets.fundus.geometry import ImageFrames
from uveitis_assets.storage import ArtefactStore, read_json


@dataclass(frozen=True, slots=True)
class TiledImage:
    """One usable image with tiles.

    ``fingerprint`` changes with the image's content and with whatever its tiles depend on; ``sides`` is train, val or
    test in each fold.
    """

    image_id: str
    key: str
    fingerprint: str
    sides: tuple[str, ...]

    def frames(self, store: ArtefactStore) -> ImageFrames:
        """Read the coordinate frames of the image."""
        return ImageFrames.from_metadata(
            read_json(store.crop_metadata(self.key)), read_json(store.tiles_metadata(self.key))
        )

    def tile_files(self, store: ArtefactStore, frames: ImageFrames) -> list[Path]:
        """Files of the tiles, in the order of the frames."""
        return [store.tile(self.key, tile.tile_id) for tile in frames.tiles]


def tiled_images(store: ArtefactStore, lane: str, batches: list[str] | None = None) -> list[TiledImage]:
    """Usable images of some batches, or of all, sorted by image id; quarantined and untiled ones are left out.

    Raises:
        FileNotFoundError: a batch has no manifest or no tiles; the message says what to materialize.
    """
    chosen = store.indexed_batches(lane, "tiles") if batches is None else batches
    images: list[TiledImage] = []
    for batch in chosen:
        books = {"manifest": store.manifest_part(lane, batch), "tiles": store.stage_index(lane, "tiles", batch)}
        for asset, path in books.items():
            if not path.exists():
                raise FileNotFoundError(f"{path}: found none; materialize {lane}/{asset} of {batch} first")
        manifest = pl.scan_parquet(books["manifest"]).filter(pl.col("quarantine_reason").is_null())
        tiles = pl.scan_parquet(books["tiles"]).filter(pl.col("quarantine_reason").is_null())
        rows = tiles.join(manifest, on=["image_id", "content_hash"]).select(
            "image_id", "key", "content_hash", "fingerprint", "fold_splits"
        )
        images += [
            TiledImage(image_id, key, f"{content_hash}-{fingerprint}", tuple(sides))
            for image_id, key, content_hash, fingerprint, sides in rows.collect().iter_rows()
        ]
    return sorted(images, key=lambda image: image.image_id)
