"""A lane with global images, and a pretraining on it that takes milliseconds a step."""

from __future__ import annotations

import numpy as np
import polars as pl

from uveitis_assets.detection.pretraining.configuration import EncoderPretrainingConfiguration
from uveitis_assets.imaging.geometry import ImageFrames, Tile
from uveitis_assets.imaging.png import encode_png
from uveitis_assets.landing.manifest_table import EXPORTED_COLUMNS
from uveitis_assets.storage.files import write_bytes, write_json
from uveitis_assets.storage.store import ArtefactStore


def lane_of_images(store: ArtefactStore, n_images: int = 6) -> None:
    """A lane with global images of coloured squares; the last image is a test image."""
    rng = np.random.default_rng(0)
    frames = ImageFrames((96, 96), (0, 0, 96, 96), 96, (0, 0), 96, "global", (Tile("tile_000", 0, 0, 96, 96),))
    rows = []
    for number in range(n_images):
        key = f"uwf700__{number}"
        grid = np.kron(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
        for path in (store.global_image(key, 96), store.tile(key, "tile_000")):
            write_bytes(path, encode_png(grid))
        write_json(store.crop_metadata(key), frames.crop_metadata())
        write_json(store.tiles_metadata(key), frames.tiles_metadata(f"uwf700::{number}"))
        rows.append(
            {
                "image_id": f"uwf700::{number}",
                "key": key,
                "content_hash": f"hash{number}",
                "fingerprint": "f",
                "quarantine_reason": None,
                "fold_splits": ["test" if number == n_images - 1 else "train"] * 5,
            }
        )
    frame = pl.DataFrame(rows, schema_overrides={"quarantine_reason": pl.String})
    part = frame.with_columns(
        pl.lit(None).alias(name) for name in (*EXPORTED_COLUMNS, "batch") if name not in frame.columns
    )
    for path, table in (
        (store.manifest_part("uwf700", "b00001"), part),
        (store.stage_index("uwf700", "tiles", "b00001"), frame),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        table.write_parquet(path)


def configuration(**changes: object) -> EncoderPretrainingConfiguration:
    settings: dict[str, object] = {
        "name": "mae",
        "learn_from": ["uwf700"],
        "encoder": "tiny_p16",
        "epochs": 4,
        "batch_size": 2,
        "learning_rate": 0.1,
        "warmup_epochs": 1,
        "checkpoint_every_steps": 1,
    }
    return EncoderPretrainingConfiguration.model_validate(settings | changes)
