"""The preprocessed images of a batch: their frames and the files of their tiles, without labels.

The tiles' index lists which images are usable; an image whose id has moved to another batch since, because its file was
replaced, is left to that one. Pixels are read by ``tile_files``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets.stages.artefact_files import DamagedArtefactError
from uveitis_assets.stages.batch_ownership import ids_owned_by_other_batches
from uveitis_assets.stages.index import read_stage_index
from uveitis_assets.stages.recorded_metadata import metadata_stamps, read_metadata
from uveitis_assets.stages.suspect_files import report_damage
from uveitis_assets.storage.digests import short_digest
from uveitis_assets.storage.store import ArtefactStore, artefact_key


@dataclass(frozen=True, slots=True)
class PreprocessedTile:
    """One tile; ``file`` is its RGB PNG, which exists when tiles are persisted."""

    file: Path


@dataclass(frozen=True, slots=True)
class PreprocessedImage:
    """One usable image of a batch.

    ``fingerprint`` changes with the image's content and with everything that its tiles depend on.
    """

    image_id: str
    key: str
    frames: ImageFrames
    tiles: tuple[PreprocessedTile, ...]
    fingerprint: str


def read_preprocessed_images(
    store: ArtefactStore, lane: str, batch: str, *, global_tile: bool = False
) -> list[PreprocessedImage]:
    """Usable images of a batch, sorted by id; those quarantined or moved to another batch are left out.

    With ``global_tile`` the global image is one more tile where tiles are cut from the native crop.

    Raises:
        FileNotFoundError: the batch's tiles have not been materialized, or an image's metadata is gone.
        DamagedArtefactError: an image's metadata are damaged, which is noted for the next run of their stage.
    """
    path = store.stage_index(lane, "tiles", batch)
    if not path.exists():
        raise FileNotFoundError(f"{lane}/tiles[{batch}]: expected {path}, found none; materialize the tiles first")
    rows = read_stage_index(path)
    moved = ids_owned_by_other_batches(store, lane, batch, rows)
    stamps = metadata_stamps(store, lane, batch, ("normalized_crops", "tiles"))
    images = []
    for image_id, row in sorted(rows.items()):
        if row["quarantine_reason"] is not None or image_id in moved:
            continue
        key = artefact_key(image_id)
        try:
            frames = ImageFrames.from_metadata(
                read_metadata(store, store.crop_metadata(key), stamps),
                read_metadata(store, store.tiles_metadata(key), stamps),
            )
        except DamagedArtefactError as error:
            report_damage(store, error.path)
            raise
        content = f"{row['content_hash']}:{row['fingerprint']}"
        files = [store.tile(key, tile.tile_id) for tile in frames.tiles]
        if global_tile and frames.frame == "native":
            frames = frames.with_global_tile()
            files.append(store.global_image(key, frames.global_size))
            content += ":global"
        images.append(
            PreprocessedImage(
                image_id=image_id,
                key=key,
                frames=frames,
                tiles=tuple(map(PreprocessedTile, files)),
                fingerprint=short_digest(content),
            )
        )
    return images
