"""Pasted lesions: inside the retina, off other lesions, rare classes as often as common ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from uveitis_assets.detection.configuration import AugmentationConfiguration
from uveitis_assets.detection.data.copy_paste import LesionBank, paste_lesions
from uveitis_assets.detection.data.labelled_split import LabelledImage, LabelledTile
from uveitis_assets.detection.data.tile_dataset import TileDataset
from uveitis_assets.detection.inference.detections import GroundTruth
from uveitis_assets_tests.detection.data.test_tile_windows import Picture
from uveitis_assets_tests.detection.known_detectors import small_frames

GREY = 120


def truth_of(boxes: list[tuple[float, ...]], labels: list[int]) -> GroundTruth:
    n = len(boxes)
    return GroundTruth(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.full((n, 4, 2), np.nan, np.float32),
        np.ones(n, np.float32),
    )


@pytest.fixture
def source() -> tuple[LabelledImage, Picture]:
    """A grey retina with one bright lesion, and labels of a common and of a rare class on it."""
    frames = small_frames(frame="native", crop=(200, 200), global_size=200)
    whole = np.full((200, 200, 3), GREY, np.uint8)
    whole[90:100, 80:92] = 250
    tiles = tuple(LabelledTile(t.tile_id, Path("x"), t.width, t.height, truth_of([], [])) for t in frames.tiles)
    boxes = [(80.0, 90.0, 92.0, 100.0)] * 10
    image = LabelledImage("lane::a", "lane__a", "p", frames, truth_of(boxes, [1] * 9 + [2]), tiles)
    return image, Picture(whole, frames)


def half_retina() -> np.ndarray:
    pixels = np.full((64, 64, 3), GREY, np.uint8)
    pixels[:, 32:] = 0
    return pixels


def test_a_pasted_lesion_is_bright_where_its_label_says_and_nothing_else_changes(
    source: tuple[LabelledImage, Picture],
) -> None:
    image, reader = source
    before = half_retina()
    existing = truth_of([(2, 2, 10, 10)], [5])
    pasted = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        after, truth = paste_lesions(before, existing, LesionBank([image]), reader, scale=1.0, n_lesions=1, rng=rng)
        np.testing.assert_array_equal(before, half_retina())
        assert truth.labels[0] == 5
        if len(truth) == 1:
            np.testing.assert_array_equal(after, before)
            continue
        pasted += 1
        x0, y0, x1, y1 = truth.boxes[1].astype(int)
        assert (x1 - x0, y1 - y0) == (12, 10)
        assert x1 <= 32, "in the retina"
        assert (after[:, 32:] == 0).all()
        assert x0 >= 10 or y0 >= 10, "off the lesion that was there"
        centre = after[(y0 + y1) // 2, (x0 + x1) // 2]
        assert (centre == 250).all()
        changed = np.argwhere((after != before).any(axis=2))
        assert changed[:, 0].min() >= y0 - 4
        assert changed[:, 0].max() < y1 + 4
        assert changed[:, 1].min() >= x0 - 4
        assert changed[:, 1].max() < x1 + 4
    assert pasted >= 15


def test_a_lesion_takes_the_brightness_of_where_it_is_pasted(source: tuple[LabelledImage, Picture]) -> None:
    image, reader = source
    dark = np.full((64, 64, 3), 40, np.uint8)
    rng = np.random.default_rng(0)
    after, truth = paste_lesions(dark, truth_of([], []), LesionBank([image]), reader, scale=1.0, n_lesions=1, rng=rng)
    x0, y0, x1, y1 = truth.boxes[0].astype(int)
    assert (after[(y0 + y1) // 2, (x0 + x1) // 2] == 250 - GREY + 40).all()


def test_scale_is_that_of_the_tile(source: tuple[LabelledImage, Picture]) -> None:
    image, reader = source
    rng = np.random.default_rng(1)
    grey = np.full((64, 64, 3), GREY, np.uint8)
    _, truth = paste_lesions(grey, truth_of([], []), LesionBank([image]), reader, scale=0.5, n_lesions=1, rng=rng)
    np.testing.assert_allclose(truth.boxes[0, 2:] - truth.boxes[0, :2], [6, 5], atol=0.3)


def test_every_class_is_drawn_equally_often(source: tuple[LabelledImage, Picture]) -> None:
    image, _ = source
    bank, rng = LesionBank([image]), np.random.default_rng(0)
    counts = Counter(int(image.truth.labels[bank.draw(rng)[1]]) for _ in range(4000))
    assert counts[1] / 4000 == pytest.approx(0.5, abs=0.03)
    with pytest.raises(ValueError, match="copy_paste"):
        LesionBank([]).draw(rng)


def test_nothing_is_pasted_where_no_place_is_free(source: tuple[LabelledImage, Picture]) -> None:
    image, reader = source
    full = truth_of([(0, 0, 64, 64)], [1])
    grey = np.full((64, 64, 3), GREY, np.uint8)
    rng = np.random.default_rng(0)
    after, truth = paste_lesions(grey, full, LesionBank([image]), reader, scale=1.0, n_lesions=3, rng=rng)
    assert len(truth) == 1
    np.testing.assert_array_equal(after, grey)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_data_set_pastes_as_often_as_asked_but_never_into_the_global_tile(
    source: tuple[LabelledImage, Picture], share: float
) -> None:
    labelled, _ = source
    frames = labelled.frames.with_global_tile()
    tiles = tuple(LabelledTile(t.tile_id, Path("x"), t.width, t.height, truth_of([], [])) for t in frames.tiles)
    whole = np.full((200, 200, 3), GREY, np.uint8)
    whole[90:100, 80:92] = 250
    image = replace(labelled, frames=frames, tiles=tiles)
    augmentation = AugmentationConfiguration(copy_paste=share, horizontal_flip=0.0, vertical_flip=0.0)
    dataset = TileDataset([image], augmentation, 1, 64, Picture(whole, frames))
    found = [len(dataset[number][1]["labels"]) for number in range(len(dataset))]
    assert found[-1] == 0
    assert all((n > 0) == (share > 0) for n in found[:-1])
