"""Masks of an import equal those of pycocotools and shapely, class by class, and do not fill the memory."""

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco_masks

from uveitis_assets.labels.masks.mask_files import parse_mask
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.labels.importing.lanes import HEIGHT, ORIGINALS, WIDTH, land, refusals, run

CLASSES = {"exudate": "HardExudate_Masks", "vessel": "vascularite"}
FOLDERS = {"exudate": "HardExudate_Masks", "vessel": "Neovascularization_Masks"}
TRIANGLE = [(100.25, 100.25), (220.75, 101.25), (100.25, 180.75)]
STAR = [(400.3, 80.1), (460.7, 250.2), (310.4, 140.6), (490.8, 140.6), (340.1, 250.2), (372.3, 160.4)]


def written(store: ArtefactStore, folder: str, stem: str) -> NDArray[np.bool_]:
    data = (store.raw / "fgadr" / folder / f"{stem}.png").read_bytes()
    return parse_mask(data, stem, (WIDTH, HEIGHT)).marked


def inside(*polygons: list[tuple[float, float]]) -> NDArray[np.bool_]:
    """Pixels whose centre lies in one of the polygons, one pixel after the other by shapely."""
    shapes = shapely.union_all([shapely.make_valid(shapely.Polygon(polygon)) for polygon in polygons])
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return np.asarray(shapely.contains(shapes, shapely.points(x, y)))


def coco(annotations: list[dict[str, Any]], images: tuple[str, ...] = ("a.jpg", "b.jpg")) -> str:
    entries = [
        {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT} for number, name in enumerate(images, 1)
    ]
    rows = [{"id": number, "iscrowd": 0, **row} for number, row in enumerate(annotations, 1)]
    categories = [{"id": 1, "name": "exudate"}, {"id": 2, "name": "vessel"}]
    return json.dumps({"images": entries, "annotations": rows, "categories": categories})


def flat(polygon: list[tuple[float, float]]) -> list[float]:
    return [value for point in polygon for value in point]


def test_two_classes_and_an_image_without_lesions_give_two_masks_for_every_image(store: ArtefactStore) -> None:
    land(store, "a.jpg", "b.jpg", "c.jpg", folder=ORIGINALS)
    rows = [
        {"image_id": 1, "category_id": 1, "segmentation": [flat(TRIANGLE)]},
        {"image_id": 1, "category_id": 2, "segmentation": [flat(STAR), [600.2, 400.2, 640.2, 400.2, 640.2, 430.2]]},
        {"image_id": 1, "category_id": 1, "segmentation": [flat([(x + 50, y + 40) for x, y in TRIANGLE])]},
    ]
    report = run(store, {"all.json": coco(rows)}, masks=True, format="coco", classes=CLASSES)
    assert (report.n_images, report.n_lesions, report.refusals) == (2, 3, [])
    assert sorted(report.written) == sorted(f"{folder}/{stem}.png" for folder in FOLDERS.values() for stem in "ab")
    shifted = [(x + 50, y + 40) for x, y in TRIANGLE]
    np.testing.assert_array_equal(written(store, FOLDERS["exudate"], "a"), inside(TRIANGLE, shifted))
    small = [(600.2, 400.2), (640.2, 400.2), (640.2, 430.2)]
    np.testing.assert_array_equal(written(store, FOLDERS["vessel"], "a"), inside(STAR, small))
    for folder in FOLDERS.values():
        assert not written(store, folder, "b").any()
        assert not (store.raw / "fgadr" / folder / "c.png").exists()


def test_run_lengths_of_any_pixels_are_those_of_pycocotools(store: ArtefactStore) -> None:
    names = tuple(f"{number}.jpg" for number in range(4))
    land(store, *names, folder=ORIGINALS)
    generator = np.random.default_rng(5)
    noise = generator.random((HEIGHT, WIDTH)) < 0.3
    block = np.zeros((HEIGHT, WIDTH), bool)
    block[0:7, 0:9] = block[-5:, -3:] = True  # begins with lesion, ends with lesion
    single = np.zeros((HEIGHT, WIDTH), bool)
    single[311, 77] = True
    truths = [noise, ~noise, block, single]
    rows = []
    for number, truth in enumerate(truths, 1):
        code = coco_masks.encode(np.asfortranarray(truth.astype(np.uint8)))
        segmentation = {"size": code["size"], "counts": code["counts"].decode()}
        rows.append({"image_id": number, "category_id": 1, "segmentation": segmentation})
    report = run(store, {"all.json": coco(rows, names)}, masks=True, format="coco", classes=CLASSES)
    assert report.refusals == []
    for number, truth in enumerate(truths):
        np.testing.assert_array_equal(written(store, FOLDERS["exudate"], str(number)), truth)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a crowd": ({"segmentation": [flat(TRIANGLE)], "iscrowd": 1}, "found a crowd"),
    "another size": (
        {"segmentation": {"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}},
        "found a mask of the size",
    ),
    "too few": ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [5, 3]}}, "add up to 800x600 px"),
    "negative": ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [-5, WIDTH * HEIGHT + 5]}}, "add up to"),
    "broken numbers": (
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [0.5, WIDTH * HEIGHT - 0.5]}},
        "whole numbers",
    ),
    "cut": ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "o"}}, "end within a number"),
    "no pixel": ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [WIDTH * HEIGHT]}}, "a mask without any pixel"),
    "all pixels": ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, WIDTH * HEIGHT]}}, "every pixel marked"),
    "odd numbers": ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "expected points of two numbers each"),
    "two points": ({"segmentation": [[1, 2, 3, 4]]}, "found 2 points, expected at least 3"),
    "words": ({"segmentation": [["a", "b"]]}, "expected numbers"),
    "no list": ({"segmentation": "none"}, "found segmentation 'none', expected a list"),
    "a polygon between centres": ({"segmentation": [[9.6, 9.6, 9.9, 9.6, 9.9, 9.9]]}, "an outline that holds no pixel"),
    "nothing": ({}, "found no 'bbox'"),
    "a box": ({"bbox": [1, 2, 30, 40]}, "found a box, expected an outline"),
    "another category": ({"segmentation": [flat(TRIANGLE)], "category_id": 9}, "category_id 9, which categories"),
    "no category": ({"segmentation": [flat(TRIANGLE)], "category_id": [1]}, "found a value of another kind"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_outline_is_refused_and_its_image_left_out(store: ArtefactStore, name: str) -> None:
    land(store, "a.jpg", "b.jpg", folder=ORIGINALS)
    row, reason = REFUSED[name]
    good = {"category_id": 1, "segmentation": [flat(TRIANGLE)]}
    rows = [{"image_id": 1, **good}, {"image_id": 1, "category_id": 1, **row}, {"image_id": 2, **good}]
    report = run(store, {"all.json": coco(rows)}, masks=True, format="coco", classes=CLASSES)
    (refusal,) = refusals(report)
    assert refusal.startswith("all.json: annotation 2: ")
    assert reason in refusal
    assert report.images_left_out == ["Original_Images/a.jpg"]
    assert sorted(report.written) == sorted(f"{folder}/b.png" for folder in FOLDERS.values())


def peak_of_import(store: ArtefactStore, n_images: int) -> int:
    names = tuple(f"{number}.jpg" for number in range(n_images))
    land(store, *names, folder=ORIGINALS)
    # Two runs in each of many columns: the mask takes far more memory than its code.
    truth = np.zeros((HEIGHT, WIDTH), bool)
    truth[50:90, 50:90] = True
    code = coco_masks.encode(np.asfortranarray(truth.astype(np.uint8)))
    segmentation = {"size": code["size"], "counts": code["counts"].decode()}
    rows = [{"image_id": number, "category_id": 1, "segmentation": segmentation} for number in range(1, n_images + 1)]
    content = coco(rows, names)
    tracemalloc.start()
    try:
        report = run(store, {"all.json": content}, masks=True, format="coco", classes=CLASSES, replace=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (report.n_images, report.refusals) == (n_images, [])
    return peak


def test_memory_does_not_grow_with_the_images(store: ArtefactStore) -> None:
    peak_of_import(store, 2)
    growth = peak_of_import(store, 22) - peak_of_import(store, 2)
    assert growth < 2 * WIDTH * HEIGHT
