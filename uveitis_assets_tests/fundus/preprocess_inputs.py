"""Small landed images and configurations for the preprocessing tests."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from uveitis_assets.fundus.configuration import (
    STAGES,
    NormalizationConfiguration,
    PreprocessConfiguration,
    PreprocessStage,
)
from uveitis_assets.fundus.preprocess import preprocess_batch
from uveitis_assets.imaging.configuration import TilingConfiguration
from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.ledger import registered_images
from uveitis_assets.landing.samples import RegisteredImage
from uveitis_assets.stages.batch_outcome import BatchOutcome
from uveitis_assets.storage.store import ArtefactStore

SMALL = PreprocessConfiguration(tiling=TilingConfiguration(global_size=128, tile_size=96, overlap=0.25))


def fundus_picture(seed: int, width: int = 240, height: int = 200) -> NDArray[np.uint8]:
    """(height, width, 3) RGB: a textured orange disc with dark vessels on black."""
    generator = np.random.default_rng(seed)
    texture = cv2.GaussianBlur(generator.normal(0.0, 25.0, (height, width)).astype(np.float32), (0, 0), 3.0) * 4.0
    color = np.array([170.0, 90.0, 40.0]) + generator.uniform(-15, 15, 3)
    picture = np.clip(color + texture[..., None], 30, 250).astype(np.uint8)
    for _ in range(6):
        ends = generator.integers(0, (width, height), (2, 2))
        cv2.line(picture, ends[0].tolist(), ends[1].tolist(), (90, 30, 20), 2)
    disc = np.zeros((height, width), dtype=np.uint8)
    cv2.ellipse(disc, (width // 2, height // 2), (int(width * 0.42), int(height * 0.45)), 0, 0, 360, 255, -1)
    picture[disc == 0] = 0
    return picture


def land(store: ArtefactStore, name: str, picture: NDArray[np.uint8], dataset: str = "lane") -> RegisteredImage:
    """Write a picture below the raw folder and register it."""
    path = store.raw / "lane" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return register(path, dataset)


def register(path: Path, dataset: str = "lane") -> RegisteredImage:
    return RegisteredImage(f"lane::{path.stem}", dataset, path, blake3(path.read_bytes()).hexdigest())


def land_many(store: ArtefactStore, n_images: int) -> list[RegisteredImage]:
    return [land(store, f"image{number:02d}.png", fundus_picture(number)) for number in range(n_images)]


def preprocess_registered(
    store: ArtefactStore,
    dataset: DatasetConfiguration,
    batch: str,
    stages: Collection[PreprocessStage] = STAGES,
    configuration: PreprocessConfiguration = SMALL,
) -> BatchOutcome[PreprocessStage]:
    """Preprocess a batch's images as the ledger has them."""
    return preprocess_batch(
        store,
        dataset.name,
        batch,
        lambda: registered_images(store, dataset, batch),
        configuration,
        stages,
        workers=1,
        code_version="1",
    )


def with_normalization(method: str) -> PreprocessConfiguration:
    return SMALL.model_copy(update={"normalize": NormalizationConfiguration.model_validate({"method": method})})


def artefact_bytes(root: Path) -> dict[str, bytes]:
    """Content of every artefact and index below the root, by relative path."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for top in ("preproc", "index")
        for path in sorted((root / top).rglob("*"))
        if path.is_file()
    }


def read_rgb(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert image is not None, path
    return np.asarray(image, dtype=np.uint8)
