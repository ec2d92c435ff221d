"""Overlays and the contact sheet, looked at by pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from uveitis_assets.imaging.drawing import name_rectangle
from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.labels.coco import build_coco_split
from uveitis_assets.labels.configuration import LabelConfiguration
from uveitis_assets.labels.overlays import draw_labels, label_contact_sheet, write_label_overlays
from uveitis_assets.labels.palette import PALETTE, category_color
from uveitis_assets.storage.store import ArtefactStore, artefact_key
from uveitis_assets_tests.labels.lane import FakeLane, frames_of

FRAMES = frames_of((1000, 1000))
BOX = "{} 0.4 0.4 0.6 0.4 0.6 0.6 0.4 0.6\n"


def made_lane(store: ArtefactStore, n_images: int, *, noise: bool = False) -> FakeLane:
    """Images with 0, 1, 2, ... lesions; grey (or noisy) global images and tiles are on disk."""
    lane = FakeLane(store, "uwf700")
    rng = np.random.default_rng(0)
    for number in range(n_images):
        text = "".join(BOX.format(1 + k) for k in range(number))
        image_id = lane.add(f"{number:02d}", FRAMES, [lane.write_label(f"{number}.txt", text)])
        key = artefact_key(image_id)
        sizes = {store.global_image(key, 1024): 1024}
        sizes |= {store.tile(key, tile.tile_id): 768 for tile in FRAMES.tiles}
        for path, size in sizes.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            grey = np.full((size, size, 3), 60, np.uint8)
            cv2.imwrite(str(path), rng.integers(0, 256, grey.shape, np.uint8) if noise else grey)
    build(lane)
    return lane


def build(lane: FakeLane) -> None:
    labels = LabelConfiguration(format="obb")
    build_coco_split(
        lane.store, lane.name, lane.raw_folder, labels, load_class_map(), fold=0, split="train", manifest=lane.finish()
    )


def test_overlays_show_the_box_in_its_category_s_colour_and_images_with_lesions_come_first(
    store: ArtefactStore,
) -> None:
    made_lane(store, 3)
    summary = write_label_overlays(store, "uwf700", 0, "train", max_images=2)
    folder = store.label_overlay_folder("uwf700", "train", 0)
    assert [path.name for path in sorted(folder.iterdir())] == [
        "uwf700__01_overlay.png",
        "uwf700__02_overlay.png",
    ]
    assert (summary.n_overlays, summary.n_images_missing, summary.n_removed) == (2, 0, 0)
    picture = cv2.imread(str(folder / "uwf700__01_overlay.png"))[..., ::-1]
    colored = (picture == category_color(1)).all(axis=2)
    # Box 0.4..0.6 of 1024 px: 409.6 .. 614.4; its name stands above it.
    assert colored[500, 410]
    assert colored[500, 613]
    assert not colored[500, 420:605].any()
    assert not colored[640:].any()
    assert colored[390:409, 412:440].mean() > 0.5


def test_overlays_that_are_no_longer_due_are_removed_and_other_files_stay(store: ArtefactStore) -> None:
    made_lane(store, 4)
    write_label_overlays(store, "uwf700", 0, "train", max_images=80)
    folder = store.label_overlay_folder("uwf700", "train", 0)
    (folder / "notes.txt").write_text("mine")
    assert write_label_overlays(store, "uwf700", 0, "train", max_images=1).n_removed == 3
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "uwf700__01_overlay.png"]
    assert write_label_overlays(store, "uwf700", 0, "train", max_images=0).n_removed == 1


def test_missing_images_are_counted_not_drawn(store: ArtefactStore) -> None:
    made_lane(store, 2)
    store.global_image("uwf700__01", 1024).unlink()
    summary = write_label_overlays(store, "uwf700", 0, "train", max_images=80)
    assert (summary.n_overlays, summary.n_images_missing) == (1, 1)


def test_the_contact_sheet_is_a_jpeg_within_its_limit_even_of_noise(store: ArtefactStore) -> None:
    made_lane(store, 4, noise=True)
    for limit in (150_000, 20_000):
        data = label_contact_sheet(store, "uwf700", 0, "train", max_bytes=limit)
        assert data[:3] == b"\xff\xd8\xff"
        assert len(data) <= limit


def test_the_contact_sheet_shows_the_images_with_most_lesions_before_second_tiles(store: ArtefactStore) -> None:
    made_lane(store, 4)
    data = label_contact_sheet(store, "uwf700", 0, "train", n_tiles=3, max_bytes=500_000)
    sheet = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert sheet.shape == (300, 908, 3)
    # Three cells of three source images: 3, 2 and 1 categories, hence ever fewer drawn colours.
    for cell, categories in zip((0, 304, 608), (3, 2, 1), strict=True):
        pixels = sheet[:, cell : cell + 300, ::-1].reshape(-1, 3).astype(int)
        shown = [(np.abs(pixels - category_color(k)).max(axis=1) < 24).sum() > 30 for k in (1, 2, 3)]
        assert shown[categories - 1]
        assert sum(shown) <= categories


def test_a_contact_sheet_without_tiles_shows_a_text(store: ArtefactStore) -> None:
    lane = made_lane(store, 0)
    data = label_contact_sheet(store, lane.name, 0, "train")
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).max() > 100


def test_every_category_has_its_own_colour() -> None:
    assert len({category_color(k) for k in range(1, 21)}) == 20 == len(PALETTE)
    assert category_color(21) == category_color(1)


@pytest.mark.parametrize("box", [(0, 0, 5, 5), (495, 2, 500, 4), (250, 490, 260, 500), (-20, -20, 4, 4)])
def test_names_stay_inside_the_picture(box: tuple[int, int, int, int]) -> None:
    x0, y0, x1, y1 = name_rectangle(np.zeros((500, 500, 3), np.uint8), "macroanevrisme_arteriel", box)
    assert 0 <= x0 < x1 <= 500
    assert 0 <= y0 < y1 <= 500


def test_a_crowd_of_lesions_keeps_most_of_the_picture_free_of_names() -> None:
    picture = np.zeros((600, 600, 3), np.uint8)
    annotations = [
        {"id": k, "category_id": 5, "bbox": [20 * (k % 28), 20 * (k // 28), 6, 6], "area": 36, "segmentation": []}
        for k in range(500)
    ]
    draw_labels(picture, annotations, {5: "hemorragie"})
    assert (picture > 0).any(axis=2).mean() < 0.15
