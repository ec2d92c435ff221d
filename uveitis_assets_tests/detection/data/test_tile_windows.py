"""Moved, scaled and turned windows against painted pictures whose lesions are where the labels say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from uveitis_assets.detection.configuration import AugmentationConfiguration
from uveitis_assets.detection.data.labelled_split import LabelledImage, LabelledTile
from uveitis_assets.detection.data.tile_dataset import TileDataset
from uveitis_assets.detection.data.tile_windows import (
    Window,
    picture_truth,
    random_window,
    read_region,
    read_window,
    truth_in_window,
)
from uveitis_assets.detection.inference.detections import GroundTruth
from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets.imaging.tiling import cut_tile, padded_canvas, render_global
from uveitis_assets_tests.detection.known_detectors import small_frames

LESIONS = [(60.5, 50.5, 9.0), (150.5, 90.5, 15.0), (220.5, 160.5, 11.0), (90.5, 150.5, 21.0)]
EVERYTHING = AugmentationConfiguration(
    horizontal_flip=0, vertical_flip=0, brightness=0, contrast=0, saturation=0, gamma=0
)


class Picture:
    """A native crop of 300x200 px with bright discs, its tiles of 64 px and its global image, read from memory."""

    def __init__(self, whole: np.ndarray, frames: ImageFrames) -> None:
        self.whole, self.frames, self.reads = whole, frames, 0
        canvas, view = padded_canvas(frames)
        view[:] = whole
        self.global_image = render_global(canvas, frames.global_size)

    def read(self, image: LabelledImage, tile: int) -> np.ndarray:
        self.reads += 1
        place = self.frames.tiles[tile]
        return self.global_image.copy() if place.is_global else cut_tile(self.whole, place).copy()


def discs(value: int = 200) -> np.ndarray:
    whole = np.zeros((200, 300, 3), np.uint8)
    for x, y, diameter in LESIONS:
        rows, columns = np.mgrid[:200, :300] + 0.5
        whole[np.hypot(columns - x, rows - y) <= diameter / 2] = value
    return whole


@pytest.fixture
def picture() -> Picture:
    return Picture(discs(), small_frames(frame="native", crop=(300, 200), global_size=150).with_global_tile())


@pytest.fixture
def image(picture: Picture) -> LabelledImage:
    frames = picture.frames
    boxes = np.array([[x - d / 2, y - d / 2, x + d / 2, y + d / 2] for x, y, d in LESIONS])
    truth = GroundTruth(
        frames.crop_to_global.apply_boxes(boxes).astype(np.float32),
        np.arange(1, 5),
        np.full((4, 4, 2), np.nan, np.float32),
        np.ones(4, np.float32),
    )
    empty = GroundTruth(
        np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros((0, 4, 2), np.float32), np.zeros(0, np.float32)
    )
    tiles = tuple(LabelledTile(t.tile_id, Path(t.tile_id), t.width, t.height, empty) for t in frames.tiles)
    return LabelledImage("lane::eye", "lane__eye", "p", frames, truth, tiles)


def test_a_window_that_is_the_tile_shows_the_tile(picture: Picture, image: LabelledImage) -> None:
    for number, place in enumerate(picture.frames.tiles[:-1]):
        window = random_window(image, number, EVERYTHING, 64, np.random.default_rng(0))
        np.testing.assert_array_equal(read_window(picture, image, number, window), cut_tile(picture.whole, place))
        shown = truth_in_window(picture_truth(image, number), window)
        for box, label in zip(shown.boxes, shown.labels, strict=True):
            x, y, diameter = LESIONS[label - 1]
            right = np.array([x - diameter / 2, y - diameter / 2, x + diameter / 2, y + diameter / 2])
            right = np.clip(right - [place.x0, place.y0, place.x0, place.y0], 0, 64)
            np.testing.assert_allclose(box, right, atol=1e-3)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("tile", [2, -1])
def test_lesions_are_where_the_labels_of_a_window_say(
    picture: Picture, image: LabelledImage, seed: int, tile: int
) -> None:
    options = EVERYTHING.model_copy(update={"origin_shift": 0.5, "scale": 0.3, "rotation": 180.0})
    number = tile % len(picture.frames.tiles)
    window = random_window(image, number, options, 192, np.random.default_rng(seed))
    pixels = read_window(picture, image, number, window)
    shown = truth_in_window(picture_truth(image, number), window)
    n_parts, _, statistics, _ = cv2.connectedComponentsWithStats((pixels[..., 0] > 100).astype(np.uint8))
    lit = [tuple(row[:4]) for row in statistics[1:].tolist()]
    for box in shown.boxes:
        if (box[:2] > 1).all() and (box[2:] < 191).all():
            distances = [np.abs(box - [x, y, x + w, y + h]).max() for x, y, w, h in lit]
            # Discs of whole pixels are up to half a picture px off their circles.
            assert min(distances) <= 0.75 + 192 / window.side
    # Every disc that no edge of the window cuts has a label.
    uncut = [part for part in lit if min(part[:2]) > 0 and part[0] + part[2] < 192 and part[1] + part[3] < 192]
    assert len(uncut) <= len(shown)
    assert n_parts - 1 >= len(shown)


def test_turned_oriented_boxes_have_the_bounding_box_of_their_corners() -> None:
    corners = np.array([[[20, 30], [40, 30], [40, 36], [20, 36]]], np.float32)
    truth = GroundTruth(np.array([[20, 30, 40, 36]], np.float32), np.array([3]), corners, np.ones(1, np.float32))
    window = Window(centre=(32.0, 32.0), side=64.0, angle=np.pi / 2, drawn_side=64)
    shown = truth_in_window(truth, window)
    # A quarter turn: the window's x runs down the picture, so picture (x, y) is drawn at (y, 64 - x).
    right = [[[y, 64 - x] for x, y in corners[0]]]
    np.testing.assert_allclose(shown.corners, right, atol=1e-4)
    np.testing.assert_allclose(shown.boxes, [[30, 24, 36, 44]], atol=1e-4)
    upright = replace(truth, corners=np.full((1, 4, 2), np.nan, np.float32))
    np.testing.assert_allclose(truth_in_window(upright, window).boxes, [[30, 24, 36, 44]], atol=1e-4)


def test_mostly_hidden_lesions_are_left_out_and_cut_ones_clipped() -> None:
    boxes = np.array([[-9, 10, 1, 20], [-5, 10, 5, 20], [-100, -100, 164, 164]], np.float32)
    nothing = np.full((3, 4, 2), np.nan, np.float32)
    truth = GroundTruth(boxes, np.array([1, 2, 3]), nothing, np.ones(3, np.float32))
    shown = truth_in_window(truth, Window((32.0, 32.0), 64.0, 0.0, 64))
    assert shown.labels.tolist() == [2, 3]
    np.testing.assert_allclose(shown.boxes, [[0, 10, 5, 20], [0, 0, 64, 64]])


def test_a_region_is_the_pictures_own_pixels_from_few_tiles(picture: Picture, image: LabelledImage) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    reader = Picture(noise, picture.frames)
    region, origin = read_region(reader, image, (-10, 20, 100, 90))
    assert origin.tolist() == [0, 20]
    np.testing.assert_array_equal(region, noise[20:90, 0:100])
    assert reader.reads <= 6
    whole, _ = read_region(reader, image, (-5, -5, 400, 400))
    np.testing.assert_array_equal(whole, noise)


def test_items_depend_on_seed_epoch_and_draw_alone(picture: Picture, image: LabelledImage) -> None:
    options = AugmentationConfiguration(origin_shift=0.5, scale=0.2, rotation=180.0)
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    reader = Picture(noise, picture.frames)

    def item(epoch: int) -> np.ndarray:
        dataset = TileDataset([image], options, 7, 64, reader)
        dataset.set_epoch(epoch)
        pixels, target = dataset[3]
        assert target["boxes"].shape[1] == 4
        return pixels.numpy()

    np.testing.assert_array_equal(item(2), item(2))
    assert (item(2) != item(3)).any()
