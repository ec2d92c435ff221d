"""Speed of loading tiles for a detector: decoded tiles against PNG, and loading against the network that is to be fed.

    python benchmarks/detector_loading.py

Two ratios are held to targets: reading a decoded tile over decoding its PNG, and tiles loaded per second (decoded
tiles, augmentation, boxes and batches, by one worker) over tiles that the network trains on per second here. Tiles
of 768 px are cut from generated regular fundus images. Every sample is taken in a fresh process, in turn; ratios are
medians over the repeats; training, hundreds of times slower on a CPU, is sampled once. Files are in the page cache:
what is measured is work, not the disk. The tiles a worker loads per second are printed too: divide the speed of a
training on a GPU by them to see how many workers it needs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

TILE_SIZE = 768
IMAGE_SIZE = 1024
TARGETS = {"cache over PNG": 10.0, "loading over training": 2.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12, help="images of four tiles")
    parser.add_argument("--repeats", type=int, default=3, help="samples per figure")
    parser.add_argument("--steps", type=int, default=1, help="training steps timed per sample, of two tiles each")
    parser.add_argument("--backbone", default="resnet50_fpn", help="network that loading is compared with")
    parser.add_argument("--sample", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.sample:
        print(json.dumps(take_sample(**json.loads(arguments.sample))))
        return
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), arguments)


def run(folder: Path, arguments: argparse.Namespace) -> None:
    write_lane(folder, arguments.images)
    print(f"{4 * arguments.images} tiles of {TILE_SIZE} px, medians of {arguments.repeats}", flush=True)
    modes = ("png", "cache", "items from png", "items from cache", "batches", "training")
    samples: dict[str, list[float]] = {mode: [] for mode in modes}
    for repeat in range(arguments.repeats):
        for mode in modes:
            if mode == "training" and repeat:
                continue
            sample = {"folder": str(folder), "mode": mode, "backbone": arguments.backbone, "steps": arguments.steps}
            samples[mode].append(fresh(sample))
    names = {"batches": "batches, 1 worker", "training": f"training {arguments.backbone}"}
    print(f"{'':28}{'tiles/s':>10}")
    for mode in modes:
        print(f"{names.get(mode, mode):28}{median(samples[mode]):10.1f}")
    ratios = {
        "cache over PNG": median_ratio(samples["cache"], samples["png"]),
        "loading over training": median(samples["batches"]) / samples["training"][0],
    }
    print(f"\n{'ratio':28}{'':>10}{'target':>10}")
    for name, ratio in ratios.items():
        print(f"{name:28}{ratio:10.1f}{TARGETS[name]:10.1f}")


def median_ratio(above: list[float], below: list[float]) -> float:
    return median(a / b for a, b in zip(above, below, strict=True))


def fresh(sample: dict[str, Any]) -> float:
    """Take one sample in a process of its own: tiles per second."""
    command = [sys.executable, __file__, "--sample", json.dumps(sample)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(result.stdout.splitlines()[-1])["tiles_per_s"])


def write_lane(folder: Path, n_images: int) -> None:
    """Tiles as PNG files, metadata, manifest and COCO files of a lane, as the platform writes them."""
    import cv2
    import numpy as np
    import polars as pl

    from uveitis_assets.imaging.configuration import TilingConfiguration
    from uveitis_assets.imaging.png import encode_png
    from uveitis_assets.imaging.tiling import cut_tile, image_frames
    from uveitis_assets.labels.coco_file import CocoFile
    from uveitis_assets.sample.regular_fundus import render_regular_fundus
    from uveitis_assets.storage.files import write_bytes, write_json
    from uveitis_assets.storage.store import ArtefactStore, artefact_key

    store = ArtefactStore(folder, folder / "raw")
    frames = image_frames((IMAGE_SIZE, IMAGE_SIZE), (0, 0, IMAGE_SIZE, IMAGE_SIZE), TilingConfiguration())
    globals_, tiles = CocoFile([{"id": 1, "name": "lesion"}]), CocoFile([{"id": 1, "name": "lesion"}])
    rng = np.random.default_rng(0)
    image_ids = [f"bench::{number:04d}" for number in range(n_images)]
    for number, image_id in enumerate(image_ids):
        key = artefact_key(image_id)
        picture = cv2.resize(render_regular_fundus(number, 1280).image_rgb, (IMAGE_SIZE, IMAGE_SIZE))
        write_json(store.crop_metadata(key), frames.crop_metadata())
        write_json(store.tiles_metadata(key), frames.tiles_metadata(image_id))
        globals_.add_image({"file_name": "x", "width": IMAGE_SIZE, "height": IMAGE_SIZE, "image_id": image_id})
        for tile in frames.tiles:
            path = store.tile(key, tile.tile_id)
            write_bytes(path, encode_png(np.ascontiguousarray(cut_tile(picture, tile))))
            entry = {"file_name": store.name_of(path), "width": tile.width, "height": tile.height}
            at = tiles.add_image({**entry, "image_id": image_id, "tile_id": tile.tile_id})
            for x, y, width, height in rng.integers(8, 200, (20, 4)).tolist():
                box = {"bbox": [x, y, width, height], "area": width * height, "iscrowd": 0, "obb": None}
                tiles.add_annotation({**box, "image_id": at, "category_id": 1})
    globals_.write(store.coco_file("bench", "train", 0, tiles=False))
    tiles.write(store.coco_file("bench", "train", 0, tiles=True))
    manifest = store.manifest_export("bench", "parquet")
    manifest.parent.mkdir(parents=True)
    pl.DataFrame({"image_id": image_ids, "dataset": "bench", "patient_id": image_ids}).write_parquet(manifest)


def take_sample(folder: str, mode: str, backbone: str, steps: int) -> dict[str, float]:
    """Measure once: tiles per second, after a first pass that is not timed."""
    from uveitis_assets.detection.configuration import AugmentationConfiguration
    from uveitis_assets.detection.data.coco_reader import read_labelled_split
    from uveitis_assets.detection.data.tile_dataset import TileDataset, TileFiles
    from uveitis_assets.detection.data.tile_store import open_tile_store
    from uveitis_assets.storage.store import ArtefactStore

    store = ArtefactStore(Path(folder), Path(folder) / "raw")
    images = read_labelled_split(store, "bench", fold=0, split="train").images
    cache = open_tile_store(store, images)
    if mode == "training":
        return {"tiles_per_s": training_speed(TileDataset(images, None, 0, TILE_SIZE, cache), backbone, steps)}
    if mode == "batches":
        return {"tiles_per_s": batches_speed(TileDataset(images, AugmentationConfiguration(), 0, TILE_SIZE, cache))}
    pixels = TileFiles() if mode.endswith("png") else cache
    dataset = TileDataset(images, AugmentationConfiguration(), 0, TILE_SIZE, pixels)
    places = [(image, tile) for image in images for tile in range(len(image.tiles))]
    started = time.perf_counter()
    for timed in (False, True):
        if timed:
            started = time.perf_counter()
        if mode.startswith("items"):
            for index in range(len(dataset)):
                dataset[index]
        else:
            for image, tile in places:
                pixels.read(image, tile)
    return {"tiles_per_s": len(places) / (time.perf_counter() - started)}


def batches_speed(dataset: Any) -> float:
    from uveitis_assets.detection.configuration import SamplingConfiguration
    from uveitis_assets.detection.data.loader import tile_loader
    from uveitis_assets.detection.data.sampling import EpochSampler

    sampler = EpochSampler(dataset.images, SamplingConfiguration(), 0)
    batches = tile_loader(dataset, sampler, batch_size=2, num_workers=1)
    list(batches)
    started = time.perf_counter()
    n_tiles = 0
    for epoch in (1, 2):
        dataset.set_epoch(epoch)
        sampler.set_epoch(epoch)
        n_tiles += sum(len(images) for images, _ in batches)
    return n_tiles / (time.perf_counter() - started)


def training_speed(dataset: Any, backbone: str, steps: int) -> float:
    """Forward and backward pass in float32 over batches of two tiles that are in memory already."""
    import torch

    from uveitis_assets.detection.model_configuration import ModelConfiguration
    from uveitis_assets.detection.models.detector import build_detector

    torch.manual_seed(0)
    model = build_detector(ModelConfiguration(backbone=backbone, input_size=TILE_SIZE, n_categories=1))
    items = [dataset[index] for index in range(2)]
    images = [pixels.float() / 255 for pixels, _ in items]
    targets = [target for _, target in items]
    started = time.perf_counter()
    for step in range(steps + 1):
        if step == 1:
            started = time.perf_counter()
        sum(model(images, targets).values()).backward()
    return 2 * steps / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
