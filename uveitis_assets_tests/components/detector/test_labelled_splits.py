"""What the lanes materialize is what the detectors read: labelled splits, their tiles and batches."""

import cv2
import numpy as np
import polars as pl
import pytest

from uveitis_assets.detection.configuration import AugmentationConfiguration, SamplingConfiguration
from uveitis_assets.detection.data.coco_reader import read_labelled_split
from uveitis_assets.detection.data.loader import tile_loader
from uveitis_assets.detection.data.sampling import EpochSampler
from uveitis_assets.detection.data.tile_dataset import TileDataset
from uveitis_assets.detection.data.tile_store import open_tile_store
from uveitis_assets_tests.components.running_platform import Platform

SPLITS = ("train", "val", "test")


@pytest.mark.parametrize("lane", ["uwf700", "fgadr"])
def test_every_fold_and_split_is_read_without_unlabelled_images_or_shared_patients(
    finished_once: Platform, lane: str
) -> None:
    manifest = pl.read_parquet(finished_once.store.manifest_export(lane, "parquet"))
    labelled = manifest.filter(pl.col("label_format") != "none", pl.col("quarantine_reason").is_null())
    for fold in range(5):
        splits = [read_labelled_split(finished_once.store, lane, fold=fold, split=split) for split in SPLITS]
        read = [image for split in splits for image in split.images]
        assert sorted(image.image_id for image in read) == sorted(labelled["image_id"])
        patients = [{image.patient for image in split.images} for split in splits]
        assert len(set.union(*patients)) == sum(map(len, patients)) == labelled["patient_id"].n_unique()
        assert len({split.fingerprint for split in splits if split.images}) == sum(bool(s.images) for s in splits)
        # Pixels are known by what they were made from, whatever the fold.
        if fold == 0:
            known = {image.image_id: image.tiles_fingerprint for image in read}
        assert {image.image_id: image.tiles_fingerprint for image in read} == known
    assert len(set(known.values())) == len(known)


@pytest.mark.parametrize("lane", ["uwf700", "fgadr"])
def test_an_epoch_shows_the_materialized_tiles(finished: Platform, lane: str) -> None:
    store = finished.store
    images = next(
        split.images
        for split in (read_labelled_split(store, lane, fold=fold, split="train") for fold in range(5))
        if any(len(tile.truth) for image in split.images for tile in image.tiles)
    )
    cache = open_tile_store(store, images)
    for image in images:
        assert image.frames.frame == "global"
        picture = cv2.imread(str(store.global_image(image.key, image.frames.global_size)), cv2.IMREAD_COLOR_RGB)
        for number, tile in enumerate(image.frames.tiles):
            np.testing.assert_array_equal(cache.read(image, number), picture[tile.y0 : tile.y1, tile.x0 : tile.x1])
    dataset = TileDataset(images, AugmentationConfiguration(), 1, 128, cache)
    shown = 0
    for pixels, targets in tile_loader(dataset, EpochSampler(images, SamplingConfiguration(), 1), batch_size=4):
        for target in targets:
            assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
            assert (target["boxes"] >= 0).all()
            assert (target["boxes"] <= 128).all()
            shown += len(target["labels"])
        assert {tuple(tile.shape) for tile in pixels} == {(3, 128, 128)}
    assert shown > 0
