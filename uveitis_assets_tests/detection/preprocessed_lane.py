"""A preprocessed batch on disk whose lesions are painted rectangles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.fundus.stage_schemas import STAGE_SCHEMAS
from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets.imaging.png import encode_png
from uveitis_assets.imaging.tiling import cut_tile, padded_canvas, render_global
from uveitis_assets.stages.index import write_stage_index
from uveitis_assets.storage.files import write_bytes, write_json
from uveitis_assets.storage.store import ArtefactStore, artefact_key
from uveitis_assets_tests.detection.known_detectors import painted, small_frames

LANE = "clinic"
BATCH = "b00001"
Boxes = Mapping[int, tuple[int, int, int, int]]


def write_preprocessed_batch(
    store: ArtefactStore,
    images: Mapping[str, Boxes],
    *,
    crop: tuple[int, int] = (100, 100),
    frame: str = "global",
    persist: tuple[str, ...] = ("global", "tiles"),
    quarantined: tuple[str, ...] = (),
    fingerprint: str = "f0",
) -> dict[str, ImageFrames]:
    """Write crops of ``crop`` px with painted boxes (crop px) and their tiles of 64 px; returns frames by image id."""
    frames_of: dict[str, ImageFrames] = {}
    rows: list[dict[str, Any]] = []
    for stem, boxes in images.items():
        image_id = f"{LANE}::{stem}"
        key = artefact_key(image_id)
        frames = small_frames(crop=crop, global_size=100, tile_size=64, frame=frame, origin=(40, 30))
        frames_of[image_id] = frames
        whole = painted(crop[1], crop[0], dict(boxes))
        canvas, view = padded_canvas(frames)
        view[:] = whole
        global_image: NDArray[np.uint8] = render_global(canvas, 100)
        tiled = whole if frame == "native" else global_image
        if "global" in persist:
            write_bytes(store.global_image(key, 100), encode_png(global_image))
        if "norm" in persist:
            write_bytes(store.normalized_crop(key), encode_png(whole))
        if "tiles" in persist:
            for tile in frames.tiles:
                write_bytes(store.tile(key, tile.tile_id), encode_png(cut_tile(tiled, tile)))
        write_json(store.crop_metadata(key), frames.crop_metadata())
        write_json(store.tiles_metadata(key), frames.tiles_metadata(image_id))
        rows.append(
            {
                "image_id": image_id,
                "key": key,
                "dataset": LANE,
                "content_hash": f"hash of {stem}",
                "fingerprint": fingerprint,
                "quarantine_reason": "truncated" if stem in quarantined else None,
                "quarantine_detail": None,
                "n_tiles": len(frames.tiles),
                "global_size": 100,
                "frame": frame,
                "reconstruction_abs_error": 0.0,
                "black_ratio": 0.0,
            }
        )
    write_stage_index(store.stage_index(LANE, "tiles", BATCH), STAGE_SCHEMAS["tiles"], rows)
    return frames_of
