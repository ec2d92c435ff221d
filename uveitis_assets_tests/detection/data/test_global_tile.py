"""The global image as one more tile beside tiles of the native crop."""

import cv2
import numpy as np
import pytest

from uveitis_assets.detection.configuration import InferenceConfiguration
from uveitis_assets.detection.data.coco_reader import read_labelled_split
from uveitis_assets.detection.data.preprocessed_images import read_preprocessed_images
from uveitis_assets.detection.data.tile_dataset import TileFiles
from uveitis_assets.detection.data.tile_files import read_tile_pixels
from uveitis_assets.detection.data.tile_store import open_tile_store
from uveitis_assets.detection.inference.predict_images import predict_images
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.detection.known_detectors import PaintedBoxDetector
from uveitis_assets_tests.detection.preprocessed_lane import BATCH, LANE, write_preprocessed_batch
from uveitis_assets_tests.detection.tiled_lane import obb_line, small_frames, write_lane

CROP = (300, 200)


def test_a_lesion_larger_than_a_tile_is_found_whole_in_the_global_image(store: ArtefactStore) -> None:
    lesion = (60, 31, 240, 181)
    write_preprocessed_batch(store, {"eye": {3: lesion}}, crop=CROP, frame="native", persist=("global", "tiles"))
    configuration = InferenceConfiguration(score_threshold=0.0, merge="nms")
    boxes = {}
    for global_tile in (False, True):
        images = read_preprocessed_images(store, LANE, BATCH, global_tile=global_tile)
        model = PaintedBoxDetector()
        [(image, found)] = predict_images(
            [model], images, configuration, device="cpu", read_tiles=lambda image: read_tile_pixels(store, image)
        )
        assert sum(model.passes) == len(small_tiles(image.frames)) + global_tile
        boxes[global_tile] = found.boxes
    # The crop of 300 x 200 px stands in a square of 300 px, of which the global image is a third of the size.
    right = np.array([60, 31 + 50, 240, 181 + 50]) / 3
    assert [np.abs(box - right).max() < 1.0 for box in boxes[True]].count(True) == 1
    assert not any(np.abs(box - right).max() < 1.0 for box in boxes[False])


def small_tiles(frames: object) -> list[object]:
    return [tile for tile in frames.tiles if not tile.is_global]  # type: ignore[attr-defined]


@pytest.mark.parametrize("persist", [("global", "tiles"), ("tiles",), ("norm",)])
def test_its_pixels_are_those_of_the_global_image_whatever_is_persisted(
    store: ArtefactStore, persist: tuple[str, ...]
) -> None:
    write_preprocessed_batch(store, {"eye": {3: (60, 30, 240, 180)}}, crop=CROP, frame="native", persist=persist)
    [image] = read_preprocessed_images(store, LANE, BATCH, global_tile=True)
    canvas = np.zeros((300, 300, 3), np.uint8)
    canvas[50 + 30 : 50 + 180, 60:240, 0] = 60
    right = cv2.resize(canvas, (100, 100), interpolation=cv2.INTER_AREA)
    pixels = read_tile_pixels(store, image)
    assert len(pixels) == len(image.frames.tiles)
    np.testing.assert_array_equal(pixels[-1], right)


def test_its_labels_are_the_images_own_and_cached_pixels_are_those_of_the_file(store: ArtefactStore) -> None:
    frames = small_frames(frame="native")
    write_lane(store, [obb_line(1, (0.5, 0.5), (0.2, 0.1))], frames=frames)
    [without] = read_labelled_split(store, "uwf700", fold=0, split="train").images
    split = read_labelled_split(store, "uwf700", fold=0, split="train", global_tile=True)
    [image] = split.images
    assert [tile.tile_id for tile in image.tiles[:-1]] == [tile.tile_id for tile in without.tiles]
    assert image.tiles[-1].tile_id == "global"
    assert (image.tiles[-1].width, image.tiles[-1].height) == (128, 128)
    np.testing.assert_array_equal(image.tiles[-1].truth.boxes, image.truth.boxes)
    assert image.tiles_fingerprint != without.tiles_fingerprint
    cached, decoded = open_tile_store(store, [image]), TileFiles(store)
    for tile in range(len(image.tiles)):
        np.testing.assert_array_equal(cached.read(image, tile), decoded.read(image, tile))


def test_tiles_of_the_global_image_and_their_fingerprints_stay_as_they_are(store: ArtefactStore) -> None:
    write_lane(store, [obb_line(1, (0.5, 0.5), (0.2, 0.1))])
    without = read_labelled_split(store, "uwf700", fold=0, split="train")
    split = read_labelled_split(store, "uwf700", fold=0, split="train", global_tile=True)
    assert split.fingerprint == without.fingerprint
    assert split.images[0].tiles_fingerprint == without.images[0].tiles_fingerprint
    write_preprocessed_batch(store, {"eye": {}}, crop=(100, 100))
    one, other = (read_preprocessed_images(store, LANE, BATCH, global_tile=wanted) for wanted in (False, True))
    assert one == other


def test_the_text_of_earlier_tiles_that_fingerprints_hold_has_not_changed() -> None:
    tile = small_frames().tiles[0]
    assert repr(tile) == "Tile(tile_id='tile_000', x0=0, y0=0, x1=96, y1=96)"
