import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from uveitis_assets.detection.configuration import InferenceConfiguration
from uveitis_assets.detection.inference.predict_images import predict_images
from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets.imaging.png import encode_png
from uveitis_assets.imaging.tiling import cut_tile
from uveitis_assets_tests.detection.known_detectors import PaintedBoxDetector, painted, small_frames

CONFIGURATION = InferenceConfiguration(batch_size=4)


@dataclass(frozen=True)
class FileOfTile:
    file: Path


@dataclass(frozen=True)
class PaintedImage:
    image_id: str
    frames: ImageFrames
    tiles: tuple[FileOfTile, ...]


def painted_image(folder: Path, name: str, boxes: dict[int, tuple[int, int, int, int]]) -> PaintedImage:
    """Four tiles of 64 px on an image of 100 px."""
    frames = small_frames(crop=(100, 100), global_size=100, tile_size=64)
    pixels = painted(100, 100, boxes)
    files = []
    for tile in frames.tiles:
        path = folder / f"{name}_{tile.tile_id}.png"
        path.write_bytes(encode_png(cut_tile(pixels, tile)))
        files.append(FileOfTile(path))
    return PaintedImage(f"lane::{name}", frames, tuple(files))


@pytest.fixture
def images(tmp_path: Path) -> list[PaintedImage]:
    return [painted_image(tmp_path, f"{n:02d}", {1: (n, 5, n + 10, 20), 3: (70, 70, 90, 80 + n)}) for n in range(12)]


def test_every_image_comes_back_in_its_order_with_what_was_painted(images: list[PaintedImage]) -> None:
    results = list(predict_images([PaintedBoxDetector()], images, CONFIGURATION, device="cpu"))
    assert [image.image_id for image, _ in results] == [image.image_id for image in images]
    for n, (_, found) in enumerate(results):
        assert sorted(zip(found.labels.tolist(), found.boxes.tolist(), strict=True)) == [
            (1, [n, 5, n + 10, 20]),
            (3, [70, 70, 90, 80 + n]),
        ]


def test_the_batch_size_and_the_number_of_readers_change_nothing(images: list[PaintedImage]) -> None:
    def boxes(batch_size: int, readers: int) -> list[list[list[float]]]:
        configuration = InferenceConfiguration(batch_size=batch_size)
        predicted = predict_images([PaintedBoxDetector()], images, configuration, device="cpu", readers=readers)
        return [found.boxes.tolist() for _, found in predicted]

    assert boxes(1, 1) == boxes(8, 2) == boxes(64, 5)


def test_images_are_read_only_a_bounded_way_ahead(images: list[PaintedImage]) -> None:
    started = []
    lock = threading.Lock()

    def read(image: PaintedImage) -> Sequence[NDArray[np.uint8]]:
        with lock:
            started.append(image.image_id)
        return [np.zeros((64, 64, 3), np.uint8)] * 4

    many = images * 20
    configuration = InferenceConfiguration(batch_size=1)
    predicted = predict_images([PaintedBoxDetector()], iter(many), configuration, device="cpu", read_tiles=read)
    next(predicted)
    # A window is 4 tiles, one image; one more window is read ahead.
    assert len(started) <= 3
    predicted.close()
    assert len(started) <= 3


def test_pixels_may_come_from_a_store_of_tiles(images: list[PaintedImage]) -> None:
    def read(image: PaintedImage) -> list[NDArray[np.uint8]]:
        whole = painted(100, 100, {2: (0, 0, 30, 30)})
        return [cut_tile(whole, tile) for tile in image.frames.tiles]

    predicted = predict_images([PaintedBoxDetector()], images[:1], CONFIGURATION, device="cpu", read_tiles=read)
    assert [found.boxes.tolist() for _, found in predicted] == [[[0, 0, 30, 30]]]


def test_a_missing_tile_is_named(images: list[PaintedImage]) -> None:
    gone = images[1].tiles[2].file
    gone.unlink()
    with pytest.raises(ValueError, match=f"lane::01: .*{gone.name}: expected a tile as PNG, found it missing"):
        list(predict_images([PaintedBoxDetector()], images, CONFIGURATION, device="cpu"))


def test_a_damaged_tile_is_named(images: list[PaintedImage]) -> None:
    images[1].tiles[2].file.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"lane::01: .*found it damaged"):
        list(predict_images([PaintedBoxDetector()], images, CONFIGURATION, device="cpu"))


def test_a_tile_with_a_changed_byte_or_a_cut_end_is_named_although_it_could_be_decoded(
    images: list[PaintedImage],
) -> None:
    path = images[1].tiles[2].file
    sound = path.read_bytes()
    for data in (sound[:-1], sound[: len(sound) // 2], sound[:60] + bytes([sound[60] ^ 4]) + sound[61:]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"lane::01: .*{path.name}: .*found it damaged \({len(data)} bytes"):
            list(predict_images([PaintedBoxDetector()], images, CONFIGURATION, device="cpu"))


def test_tiles_of_a_former_grid_are_refused(images: list[PaintedImage]) -> None:
    images[0].tiles[0].file.write_bytes(encode_png(painted(32, 64, {})))
    with pytest.raises(ValueError, match=r"lane::00: expected tiles of .*\(64, 64\).*found \[\(32, 64\)"):
        list(predict_images([PaintedBoxDetector()], images, CONFIGURATION, device="cpu"))


def test_no_images_and_no_models(images: list[PaintedImage]) -> None:
    def nothing() -> Iterator[PaintedImage]:
        yield from ()

    assert list(predict_images([PaintedBoxDetector()], nothing(), CONFIGURATION, device="cpu")) == []
    with pytest.raises(ValueError, match="at least one model"):
        list(predict_images([], images, CONFIGURATION, device="cpu"))


def test_an_ensemble_answers_once_per_lesion(images: list[PaintedImage]) -> None:
    models = [PaintedBoxDetector(0.8), PaintedBoxDetector(0.6)]
    results = list(predict_images(models, images, CONFIGURATION, device="cpu"))
    assert [len(found) for _, found in results] == [2] * 12
    assert np.allclose(results[0][1].scores, 0.8)


def test_a_full_tile_is_counted_once_whatever_the_number_of_detectors_and_flips(images: list[PaintedImage]) -> None:
    def full_tiles(n_models: int, flips: Sequence[str]) -> list[tuple[str, int]]:
        models = [PaintedBoxDetector() for _ in range(n_models)]
        for model in models:
            model.roi_heads = SimpleNamespace(detections_per_img=1)  # type: ignore[assignment]
        counted: list[tuple[str, int]] = []
        configuration = InferenceConfiguration.model_validate({"batch_size": 4, "flips": flips})
        for _ in predict_images(
            models, images, configuration, device="cpu", on_full=lambda image, n: counted.append((image.image_id, n))
        ):
            pass
        return counted

    once = full_tiles(1, ["none"])
    assert [image_id for image_id, _ in once] == [image.image_id for image in images]
    assert all(1 <= n <= 4 for _, n in once)
    assert full_tiles(2, ["none", "horizontal", "vertical"]) == once
