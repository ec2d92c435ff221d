"""Contact sheets and montages."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from uveitis_assets.fundus.configuration import STAGES, PreprocessConfiguration, RoiConfiguration
from uveitis_assets.fundus.contact_sheet import (
    normalization_contact_sheet,
    roi_contact_sheet,
    write_roi_montages,
)
from uveitis_assets.fundus.preprocess import preprocess_batch
from uveitis_assets.imaging.preview_jpeg import MAX_JPEG_BYTES
from uveitis_assets.landing.samples import RegisteredImage
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.fundus.preprocess_inputs import SMALL, fundus_picture, land, read_rgb, with_normalization


@pytest.fixture
def images(store: ArtefactStore) -> list[RegisteredImage]:
    """Nine usable images of different sizes, two datasets, and one that is quarantined."""
    generator = np.random.default_rng(0)
    landed = []
    for number in range(9):
        picture = fundus_picture(number, 300 + 90 * number, 260 + 60 * number)
        noise = generator.integers(-60, 60, picture.shape)
        picture = np.where(picture > 0, np.clip(picture + noise, 1, 255), 0).astype(np.uint8)
        landed.append(land(store, f"eye{number}.png", picture, "odd" if number % 2 else "even"))
    landed.append(land(store, "black.png", np.zeros((90, 90, 3), dtype=np.uint8)))
    return landed


def preprocess(store: ArtefactStore, images: list[RegisteredImage], configuration: PreprocessConfiguration) -> None:
    preprocess_batch(store, "lane", "b1", lambda: images, configuration, STAGES, workers=1, code_version="1")


def decoded(data: bytes | None) -> np.ndarray:
    assert data is not None
    assert len(data) <= MAX_JPEG_BYTES
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    return image


def n_outline_pixels(sheet: np.ndarray, hue: int) -> int:
    """Vivid pixels near a hue, 0..180; the pictures themselves are at 10 and paler."""
    hsv = cv2.cvtColor(sheet, cv2.COLOR_RGB2HSV).astype(int)
    return int(np.count_nonzero((abs(hsv[..., 0] - hue) <= 4) & (hsv[..., 1] > 130) & (hsv[..., 2] > 180)))


GREEN, ORANGE = 60, 18


def test_sheets_are_small_jpegs_with_outlines(store: ArtefactStore, images: list[RegisteredImage]) -> None:
    preprocess(store, images, SMALL)
    sheet = decoded(roi_contact_sheet(store, "lane", "b1", images))
    assert sheet.shape == (3 * 258, 4 * 240, 3)
    assert n_outline_pixels(sheet, GREEN) > 9 * 100
    pairs = decoded(normalization_contact_sheet(store, "lane", "b1", images))
    assert pairs.shape == (4 * 258, 2 * 480, 3)


def test_masks_of_fallback_methods_have_another_colour(store: ArtefactStore, images: list[RegisteredImage]) -> None:
    preprocess(store, images[:2], SMALL)
    first_choice = decoded(roi_contact_sheet(store, "lane", "b1", images[:2]))
    roi = RoiConfiguration.model_validate(
        {"method": "sam2_prompted", "fallback": ["threshold"], "sam2": {"checkpoint": "models/none.pt"}}
    )
    preprocess(store, images[:2], SMALL.model_copy(update={"roi": roi}))
    fallback = decoded(roi_contact_sheet(store, "lane", "b1", images[:2]))
    n_green = n_outline_pixels(first_choice, GREEN)
    assert n_green > 1000
    assert n_outline_pixels(fallback, GREEN) == 0
    assert n_outline_pixels(fallback, ORANGE) - n_outline_pixels(first_choice, ORANGE) > n_green / 2


def test_normalized_crops_are_shown_without_global_images_too(
    store: ArtefactStore, images: list[RegisteredImage]
) -> None:
    preprocess(store, images[:2], SMALL.model_copy(update={"persist": ("norm",)}))
    sheet = decoded(normalization_contact_sheet(store, "lane", "b1", images[:2]))
    assert sheet[:240, 240:480].mean() > 40


@pytest.mark.parametrize("lost_index", [False, True], ids=["index kept", "index lost"])
def test_the_sheet_shows_the_crops_of_now_also_where_only_the_crops_were_made_again(
    store: ArtefactStore, tmp_path: Path, lost_index: bool
) -> None:
    landed = [land(store, "eye.png", fundus_picture(3))]
    preprocess(store, landed, SMALL)
    if lost_index:
        store.stage_index("lane", "normalized_crops", "b1").unlink()
    other = with_normalization("grayworld")
    preprocess_batch(store, "lane", "b1", lambda: landed, other, ["normalized_crops"], workers=1, code_version="1")
    fresh = ArtefactStore(root=tmp_path / "fresh", raw=store.raw)
    preprocess_batch(fresh, "lane", "b1", lambda: landed, other, STAGES[:2], workers=1, code_version="1")
    shown = decoded(normalization_contact_sheet(store, "lane", "b1", landed))
    assert np.array_equal(shown, decoded(normalization_contact_sheet(fresh, "lane", "b1", landed)))
    preprocess(store, landed, other)
    assert store.tiles_metadata("lane__eye").exists()


def test_a_vanished_raw_image_leaves_a_blank_cell(store: ArtefactStore, images: list[RegisteredImage]) -> None:
    preprocess(store, images[:2], SMALL)
    images[0].path.unlink()
    images[1].path.write_bytes(b"something else")
    sheet = decoded(roi_contact_sheet(store, "lane", "b1", images[:2]))
    assert sheet[:236].max() < 40


def test_a_batch_without_usable_images_has_no_sheet(store: ArtefactStore, images: list[RegisteredImage]) -> None:
    preprocess(store, images[-1:], SMALL)
    assert roi_contact_sheet(store, "lane", "b1", images[-1:]) is None
    assert normalization_contact_sheet(store, "lane", "b1", images[-1:]) is None


def test_each_dataset_gets_its_montage(store: ArtefactStore, images: list[RegisteredImage]) -> None:
    preprocess(store, images, SMALL)
    assert write_roi_montages(store, "lane", {"b1": images}) == ["even", "odd"]
    montage = read_rgb(store.verify_folder() / "even_roi_overlay_montage.png")
    assert montage.shape == (258, 5 * 240, 3)
