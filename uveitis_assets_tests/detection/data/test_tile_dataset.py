"""Items of the tile dataset: the labels' pixels and boxes at the input size, reproducible by seed, epoch and draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uveitis_assets.detection.configuration import AugmentationConfiguration
from uveitis_assets.detection.data.coco_reader import read_labelled_split
from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.data.letterbox import fit_to_input
from uveitis_assets.detection.data.tile_dataset import TileDataset, TileDraw, collate
from uveitis_assets.detection.data.tile_files import UnreadableTilesError
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.detection.tiled_lane import obb_line, tile_pixels, write_lane
from uveitis_assets_tests.labels.lane import frames_of

TWO = obb_line(4, (0.3, 0.4), (0.1, 0.15)) + obb_line(15, (0.7, 0.6), (0.2, 0.1))


@pytest.fixture
def split(store: ArtefactStore) -> LabelledSplit:
    write_lane(store, [TWO, "", TWO])
    return read_labelled_split(store, "uwf700", fold=0, split="train")


def test_without_augmentation_an_item_is_the_tile_and_its_labels(split: LabelledSplit) -> None:
    dataset = TileDataset(split.images, None, seed=1, input_size=96)
    assert len(dataset) == 12
    for index in range(12):
        pixels, target = dataset[index]
        image, tile = split.images[index // 4], split.images[index // 4].tiles[index % 4]
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 96, 96))
        np.testing.assert_array_equal(pixels.permute(1, 2, 0), tile_pixels(image.image_id, tile.tile_id, 96, 96))
        np.testing.assert_array_equal(target["boxes"], tile.truth.boxes)
        np.testing.assert_array_equal(target["labels"], tile.truth.labels)
        np.testing.assert_array_equal(target["corners"], tile.truth.corners)
        assert (int(target["image_index"]), int(target["tile_index"])) == (index // 4, index % 4)
        assert [target[name].dtype for name in ("boxes", "labels", "corners")] == [
            torch.float32,
            torch.int64,
            torch.float32,
        ]


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(16, 128),
    edges=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_tiles_of_any_size_are_scaled_and_padded_and_their_boxes_with_them(
    width: int, height: int, size: int, edges: tuple[float, float, float, float]
) -> None:
    pixels = np.full((height, width, 3), 200, np.uint8)
    fitted, to_input = fit_to_input(pixels, size)
    assert fitted.shape == (size, size, 3)
    lit = np.flatnonzero(fitted.any(axis=(1, 2))), np.flatnonzero(fitted.any(axis=(0, 2)))
    # The whole tile is the whole lit part: the map takes its corners there exactly.
    whole = to_input.apply_boxes([0, 0, width, height])
    np.testing.assert_allclose(whole, [0, 0, lit[1][-1] + 1, lit[0][-1] + 1], atol=1e-9)
    assert max(whole) == pytest.approx(size)
    assert (fitted[: lit[0][-1] + 1, : lit[1][-1] + 1] == 200).all()
    box = np.array([min(edges[:2]), min(edges[2:]), max(edges[:2]), max(edges[2:])]) * [width, height, width, height]
    np.testing.assert_allclose(to_input.inverse().apply_boxes(to_input.apply_boxes(box)), box, atol=1e-9)


def test_a_rectangle_painted_into_a_tile_is_found_at_its_scaled_box() -> None:
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[20:40, 30:60] = 255
    for size in (30, 180, 120):
        fitted, to_input = fit_to_input(pixels, size)
        rows, columns = np.nonzero(fitted[..., 0] > 127)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(to_input.apply_boxes([30, 20, 60, 40]), found, atol=0.51)


def test_small_and_large_tiles_of_one_lane_come_at_the_input_size(store: ArtefactStore) -> None:
    frames = frames_of((70, 50), frame="native", global_size=128, tile_size=96, stride=72)
    write_lane(store, [TWO], frames=frames)
    split = read_labelled_split(store, "uwf700", fold=0, split="train")
    (tile,) = split.images[0].tiles
    assert (tile.width, tile.height) == (70, 50)
    pixels, target = TileDataset(split.images, None, seed=1, input_size=140)[0]
    assert pixels.shape == (3, 140, 140)
    assert not pixels[:, 100:].any()
    np.testing.assert_allclose(target["boxes"], tile.truth.boxes * 2, rtol=1e-6)
    np.testing.assert_allclose(target["corners"], tile.truth.corners * 2, rtol=1e-6)


def test_items_depend_on_seed_epoch_and_draw_and_on_nothing_else(split: LabelledSplit) -> None:
    augmentation = AugmentationConfiguration()
    dataset = TileDataset(split.images, augmentation, seed=1, input_size=96)
    dataset.set_epoch(3)
    first = [dataset[index][0] for index in range(12)]
    again = TileDataset(split.images, augmentation, seed=1, input_size=96)
    again.set_epoch(3)
    for index in reversed(range(12)):
        assert torch.equal(again[index][0], first[index])
        assert torch.equal(again[TileDraw(index, 0)][0], first[index])
        assert not torch.equal(again[TileDraw(index, 1)][0], first[index])
    again.set_epoch(4)
    assert not torch.equal(again[0][0], first[0])
    other = TileDataset(split.images, augmentation, seed=2, input_size=96)
    other.set_epoch(3)
    assert not torch.equal(other[0][0], first[0])


def test_items_own_their_arrays(split: LabelledSplit) -> None:
    dataset = TileDataset(split.images, None, seed=1, input_size=96)
    index = next(i for i in range(12) if len(dataset[i][1]["labels"]))
    for tensor in (dataset[index][0], *dataset[index][1].values()):
        tensor.zero_()
    _, target = dataset[index]
    assert target["labels"].min() > 0
    assert target["boxes"].max() > 0


def test_a_batch_is_two_lists(split: LabelledSplit) -> None:
    dataset = TileDataset(split.images, None, seed=1, input_size=96)
    images, targets = collate([dataset[0], dataset[4]])
    assert [image.shape for image in images] == [(3, 96, 96)] * 2
    assert [int(target["image_index"]) for target in targets] == [0, 1]


def test_a_tile_that_is_gone_broken_or_of_another_size_is_named(split: LabelledSplit) -> None:
    dataset = TileDataset(split.images, None, seed=1, input_size=96)
    tile = split.images[0].tiles[1]
    other = split.images[1].tiles[0].file.read_bytes()
    tile.file.write_bytes(other[:100])
    with pytest.raises(UnreadableTilesError, match=r"uwf700::eye000: .*tile_001\.png: .*damaged \(100 bytes"):
        dataset[1]
    tile.file.unlink()
    with pytest.raises(
        UnreadableTilesError, match=r"uwf700::eye000: .*tile_001\.png: .*missing; materialize the lane's"
    ):
        dataset[1]
