"""A small lane with labels, tiles' pixels and everything else that a labelled split is read from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import polars as pl

from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.labels.coco import build_coco_split
from uveitis_assets.labels.configuration import LabelConfiguration
from uveitis_assets.storage.files import write_bytes
from uveitis_assets.storage.store import ArtefactStore, artefact_key
from uveitis_assets_tests.labels.lane import FakeLane, frames_of

SMALL = {"global_size": 128, "tile_size": 96, "stride": 72}


def small_frames(*, frame: str = "global") -> ImageFrames:
    """Raw 300x200, cropped to 280x200: a global image of 128 px and its tiles of 96 px."""
    return frames_of((300, 200), (10, 0, 290, 200), frame=frame, **SMALL)


def obb_line(category: int, centre: tuple[float, float], size: tuple[float, float], angle: float = 0.3) -> str:
    """A label line: an oriented box by centre and size in shares of the raw image."""
    cos, sin = np.cos(angle), np.sin(angle)
    half = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * np.array(size) / 2
    points = half @ np.array([[cos, sin], [-sin, cos]]) + centre
    return f"{category} " + " ".join(f"{value:.6f}" for value in points.ravel()) + "\n"


def tile_pixels(image_id: str, tile_id: str, width: int, height: int) -> np.ndarray:
    """Pixels that no two tiles share."""
    words = [*image_id.encode(), *tile_id.encode()]
    return np.random.default_rng(words).integers(1, 256, (height, width, 3), dtype=np.uint8)


def write_tiles(store: ArtefactStore, image_id: str, frames: ImageFrames) -> None:
    key = artefact_key(image_id)
    for tile in frames.tiles:
        pixels = tile_pixels(image_id, tile.tile_id, tile.width, tile.height)
        png = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1]
        write_bytes(store.tile(key, tile.tile_id), png.tobytes())


def write_lane(
    store: ArtefactStore,
    labels: Sequence[str | None],
    *,
    name: str = "uwf700",
    frames: ImageFrames | None = None,
    splits: Sequence[str] = (),
    **label_options: Any,
) -> FakeLane:
    """Images ``eye000``, ``eye001``, ... with the given label texts (None: unlabelled), COCO files of folds 0 and 1."""
    lane = FakeLane(store, name)
    frames = frames or small_frames()
    for number, text in enumerate(labels):
        stem = f"eye{number:03d}"
        paths = [] if text is None else [lane.write_label(f"{stem}.txt", text)]
        image_id = lane.add(
            stem,
            frames,
            paths,
            label_format="none" if text is None else "obb",
            split=splits[number] if splits else "train",
        )
        write_tiles(store, image_id, frames)
    manifest = lane.finish()
    write_manifest(store, name, manifest)
    configuration = LabelConfiguration(format="obb", **label_options)
    for fold in (0, 1):
        for split in sorted({row["split"] for row in lane.rows}):
            build_coco_split(
                store,
                name,
                lane.raw_folder,
                configuration,
                load_class_map(),
                fold=fold,
                split=split,
                manifest=manifest,
            )
    return lane


def write_manifest(store: ArtefactStore, name: str, manifest: pl.DataFrame) -> None:
    path = store.manifest_export(name, "parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest.select("image_id", "dataset", "split", "patient_id", "content_hash").write_parquet(path)
