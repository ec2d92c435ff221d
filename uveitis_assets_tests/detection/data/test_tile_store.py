"""Decoded tiles: the PNGs' pixels, made once, kept whole through kills, and held to their room."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from uveitis_assets.detection.data import tile_store
from uveitis_assets.detection.data.coco_reader import read_labelled_split
from uveitis_assets.detection.data.labelled_split import LabelledImage
from uveitis_assets.detection.data.tile_dataset import TileDataset, TileFiles
from uveitis_assets.detection.data.tile_files import UnreadableTilesError
from uveitis_assets.detection.data.tile_store import TileStoreFullError, cached_file, open_tile_store, tile_pixels
from uveitis_assets.imaging.png import encode_png
from uveitis_assets.storage.files import write_bytes
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.detection.labelled_images import labelled_image
from uveitis_assets_tests.detection.tiled_lane import obb_line, small_frames, write_lane
from uveitis_assets_tests.labels.lane import frames_of
from uveitis_assets_tests.patience import patience

TWO = obb_line(4, (0.3, 0.4), (0.1, 0.15)) + obb_line(15, (0.7, 0.6), (0.2, 0.1))
IMAGE_BYTES = 4 * 96 * 96 * 3
LONG_AGO_S = 2 * 86400


@pytest.fixture
def images(store: ArtefactStore) -> tuple[LabelledImage, ...]:
    write_lane(store, [TWO, "", TWO])
    return read_labelled_split(store, "uwf700", fold=0, split="train").images


def files(store: ArtefactStore) -> list[Path]:
    return sorted(store.tile_cache_folder().iterdir())


def let_rest(store: ArtefactStore, images: Sequence[LabelledImage], seconds: float = LONG_AGO_S) -> None:
    for number, image in enumerate(images):
        then = time.time() - seconds - 100 * (len(images) - number)
        os.utime(cached_file(store.tile_cache_folder(), image), (then, then))


@pytest.mark.parametrize("frames", [small_frames(), small_frames(frame="native"), frames_of((70, 50), frame="native")])
def test_cached_tiles_are_the_decoded_ones(store: ArtefactStore, frames: object) -> None:
    write_lane(store, [TWO, "", TWO], frames=frames)
    images = read_labelled_split(store, "uwf700", fold=0, split="train").images
    reader = open_tile_store(store, images, workers=2)
    for image in images:
        for number in range(len(image.tiles)):
            np.testing.assert_array_equal(reader.read(image, number), TileFiles().read(image, number))
    assert pickle.loads(pickle.dumps(reader)).read(images[0], 0).any()


@pytest.mark.parametrize("frame", ["global", "native"])
@pytest.mark.parametrize("limit_gb", [0, 1])
def test_tiles_that_are_not_persisted_are_cut_from_the_larger_picture(
    store: ArtefactStore, frame: str, limit_gb: float
) -> None:
    write_lane(store, [TWO, TWO], frames=small_frames(frame=frame))
    images = read_labelled_split(store, "uwf700", fold=0, split="train").images
    pictures = {}
    for number, image in enumerate(images):
        width, height = (280, 200) if frame == "native" else (128, 128)
        picture = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = store.normalized_crop(image.key) if frame == "native" else store.global_image(image.key, 128)
        write_bytes(path, encode_png(picture))
        pictures[image.image_id] = picture
        for tile in image.tiles:
            tile.file.unlink()
    reader = tile_pixels(store, images, limit_gb=limit_gb)
    for image in (*images, images[0]):
        for number, tile in enumerate(image.frames.tiles):
            pixels = reader.read(image, number)
            np.testing.assert_array_equal(
                pixels, pictures[image.image_id][tile.y0 : tile.y1, tile.x0 : tile.x1], strict=True
            )
            pixels[:] = 0


def test_pictures_of_another_size_than_the_labels_are_refused(
    store: ArtefactStore, images: tuple[LabelledImage, ...]
) -> None:
    write_bytes(store.global_image(images[0].key, 128), encode_png(np.zeros((100, 128, 3), np.uint8)))
    for tile in images[0].tiles:
        tile.file.unlink()
    with pytest.raises(UnreadableTilesError, match=r"eye000: .*expected 96x96 px as in the labels, found 96x68"):
        tile_pixels(store, images, limit_gb=1)


def test_a_dataset_on_the_cache_gives_the_same_items(store: ArtefactStore, images: tuple[LabelledImage, ...]) -> None:
    cached = TileDataset(images, None, 1, 96, open_tile_store(store, images))
    plain = TileDataset(images, None, 1, 96)
    for index in range(len(plain)):
        assert cached[index][0].equal(plain[index][0])
        cached[index][0].zero_()
        assert cached[index][0].equal(plain[index][0])


def test_what_is_cached_is_not_decoded_again_and_changed_labels_change_nothing(
    store: ArtefactStore, images: tuple[LabelledImage, ...]
) -> None:
    open_tile_store(store, images[:2])
    for tile in images[0].tiles:
        tile.file.unlink()
    done: list[tuple[int, int]] = []
    open_tile_store(store, images, progress=lambda n, of: done.append((n, of)))
    assert done == [(0, 1), (1, 1)]
    assert len(files(store)) == 3


def test_changed_pixels_get_a_file_of_their_own(store: ArtefactStore, images: tuple[LabelledImage, ...]) -> None:
    open_tile_store(store, images)
    shutil.copy(images[1].tiles[0].file, images[0].tiles[0].file)
    changed = read_labelled_split(store, "uwf700", fold=0, split="train").images
    reader = open_tile_store(store, changed)
    np.testing.assert_array_equal(reader.read(changed[0], 0), TileFiles().read(images[1], 0))
    assert len(files(store)) == 4


BUILD = """
import sys, time
from pathlib import Path
from uveitis_assets.detection.data import tile_store
from uveitis_assets.detection.data.coco_reader import read_labelled_split
from uveitis_assets.imaging.png import encode_png
from uveitis_assets.storage.store import ArtefactStore; from uveitis_assets.storage.files import write_bytes
read_tiles, n_read = tile_store.read_labelled_tiles, 0

def slow(store, image):
    global n_read
    if n_read:
        print("made", flush=True)
        time.sleep(float(sys.argv[2]))
    n_read += 1
    return read_tiles(store, image)

tile_store.read_labelled_tiles = slow
store = ArtefactStore(Path(sys.argv[1]), Path(sys.argv[1]) / "raw")
print("ready", flush=True)
tile_store.open_tile_store(store, read_labelled_split(store, "uwf700", fold=0, split="train").images)
print("made" * bool(n_read), flush=True)
"""


def builder(store: ArtefactStore, pause_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(store.root), str(pause_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_build_goes_on_and_its_leftovers_go(store: ArtefactStore, images: tuple[LabelledImage, ...]) -> None:
    process = builder(store, patience(60))
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "made\n"]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    leftover = store.tile_cache_folder() / ".half.rgb.1-ab-cd.partial"
    leftover.write_bytes(b"half")
    torn = cached_file(store.tile_cache_folder(), images[2])
    torn.write_bytes(b"torn by a disk that ran full")
    done: list[tuple[int, int]] = []
    reader = open_tile_store(store, images, progress=lambda n, of: done.append((n, of)))
    assert done[0] == (0, 2)
    assert not leftover.exists()
    np.testing.assert_array_equal(reader.read(images[2], 3), TileFiles().read(images[2], 3))


def test_two_processes_do_not_decode_the_same_tiles_twice(
    store: ArtefactStore, images: tuple[LabelledImage, ...]
) -> None:
    outputs = [process.communicate(timeout=patience(60))[0] for process in [builder(store, 0.1), builder(store, 0.1)]]
    assert sum(output.count("made") for output in outputs) == len(images)


def test_files_unused_for_a_day_make_room_longest_unused_first(
    store: ArtefactStore, images: tuple[LabelledImage, ...]
) -> None:
    folder = store.tile_cache_folder()
    open_tile_store(store, images[:2])
    let_rest(store, images[:2])
    open_tile_store(store, images[2:], limit_bytes=2 * IMAGE_BYTES)
    assert files(store) == sorted(cached_file(folder, image) for image in images[1:])


def test_files_in_use_are_never_removed_and_the_error_names_what_helps(
    store: ArtefactStore, images: tuple[LabelledImage, ...]
) -> None:
    reader = open_tile_store(store, images[:2])
    let_rest(store, images[:2])
    reader.read(images[0], 1)
    with pytest.raises(TileStoreFullError, match="to add; raise the limit"):
        open_tile_store(store, images[1:], limit_bytes=2 * IMAGE_BYTES)
    assert len(files(store)) == 2
    open_tile_store(store, images[1:], limit_bytes=3 * IMAGE_BYTES)
    assert len(files(store)) == 3


def test_a_full_disk_is_reported_before_anything_is_decoded(
    store: ArtefactStore, images: tuple[LabelledImage, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage("/"))(10**9, 10**9 - 5000, 5000)
    monkeypatch.setattr(tile_store.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(TileStoreFullError, match=r"free for decoded tiles, found 0\.00 GB; free space"):
        open_tile_store(store, images)
    assert files(store) == []


def test_a_cache_removed_in_use_and_images_of_unknown_content_are_refused(
    store: ArtefactStore, images: tuple[LabelledImage, ...]
) -> None:
    reader = open_tile_store(store, images)
    shutil.rmtree(store.tile_cache_folder())
    with pytest.raises(FileNotFoundError, match="removed while it was in use"):
        reader.read(images[0], 0)
    with pytest.raises(ValueError, match="expected tiles_fingerprint, found none"):
        open_tile_store(store, [labelled_image("a", [[1]])])


def test_a_limit_of_nothing_decodes_the_image_files_and_leaves_no_cache(
    store: ArtefactStore, images: tuple[LabelledImage, ...]
) -> None:
    plain = tile_pixels(store, images, limit_gb=0)
    cached = tile_pixels(store, images, limit_gb=1)
    np.testing.assert_array_equal(plain.read(images[1], 2), cached.read(images[1], 2))
    shutil.rmtree(store.tile_cache_folder())
    assert plain.read(images[0], 0).any()
    tile_pixels(store, images, limit_gb=0)
    assert not store.tile_cache_folder().exists()
    with pytest.raises(TileStoreFullError, match=r"training\.tile_cache_gb"):
        tile_pixels(store, images, limit_gb=1e-6)
