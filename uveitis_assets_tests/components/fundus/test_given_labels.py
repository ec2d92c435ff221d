"""Label files with known right answers, through the lanes: registered, materialized to COCO, and checked."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from uveitis_assets.labels.overlays import draw_labels
from uveitis_assets.storage.files import read_json
from uveitis_assets_tests.components.fundus.test_checks import findings
from uveitis_assets_tests.components.running_platform import Platform

SPLITS = ("train", "val", "test")
# Size in px of the five lesions in the clean mask, sorted.
CLEAN_SIZES = [(7, 7), (9, 9), (11, 11), (25, 25), (41, 41)]


def land(platform: Platform, cases: Path, names: Sequence[str]) -> None:
    for name in names:
        shutil.copytree(cases / name, platform.store.raw, dirs_exist_ok=True)


def finish(platform: Platform, lane: str) -> None:
    platform.register(lane)
    for result in (platform.run(lane), platform.run_labels(lane, "fold0|train", "fold0|test", overlays=True)):
        assert result.success


def annotations(platform: Platform, lane: str, stem: str) -> list[dict[str, Any]]:
    """Annotations of an image's global image, in whichever split it is."""
    found = []
    for split in SPLITS:
        coco = read_json(platform.store.coco_file(lane, split, 0, tiles=False))
        ids = {image["id"] for image in coco["images"] if image["image_id"] == f"{lane}::{stem}"}
        found += [entry for entry in coco["annotations"] if entry["image_id"] in ids]
    return found


def scale(platform: Platform, lane: str, stem: str) -> float:
    return float(read_json(platform.store.tiles_metadata(f"{lane}__{stem}"))["global_meta"]["scale"])


def raw_sizes(platform: Platform, lane: str, stem: str) -> list[tuple[int, int]]:
    factor = scale(platform, lane, stem)
    sizes = [np.divide(entry["bbox"][2:], factor) for entry in annotations(platform, lane, stem)]
    np.testing.assert_allclose(sizes, np.round(sizes), atol=1e-6)
    return sorted((round(width), round(height)) for width, height in sizes)


def all_findings(platform: Platform, lane: str) -> str:
    checks = platform.checks(f"{lane}/coco_labels", "label_sanity", "fold0|train", "fold0|test")
    assert all(check.metadata["n_errors"].value == 0 for check in checks.values())
    return "\n".join(findings(check) for check in checks.values())


@pytest.fixture
def masks(platform: Platform, cases: Path) -> Platform:
    land(platform, cases, ["mask_png_from_jpeg", "mask_interpolated", "mask_inverted", "mask_ring_hole"])
    finish(platform, "fgadr")
    return platform


def test_masks_with_noise_rims_holes_or_inverted_give_their_lesions_or_a_finding(masks: Platform) -> None:
    assert raw_sizes(masks, "fgadr", "png_from_jpeg") == CLEAN_SIZES
    assert raw_sizes(masks, "fgadr", "interpolated") == CLEAN_SIZES
    assert annotations(masks, "fgadr", "inverted") == []
    text = all_findings(masks, "fgadr")
    for name in ("png_from_jpeg", "interpolated"):
        assert f"HardExudate_Masks/{name}.png: " in text
    assert "40.4%" in text
    assert "31.1%" in text
    assert "HardExudate_Masks/inverted.png: found 100% of the retina marked, expected at most 50%" in text

    (ring,) = annotations(masks, "fgadr", "ring")
    factor = scale(masks, "fgadr", "ring")
    assert ring["area"] == pytest.approx(11_368 * factor**2, rel=0.01)
    split = next(
        name for name in SPLITS if "fgadr::ring" in masks.store.coco_file("fgadr", name, 0, tiles=False).read_text()
    )
    coco = COCO(str(masks.store.coco_file("fgadr", split, 0, tiles=False)))
    decoded = coco.annToMask(ring).astype(bool)
    assert coco_masks.area(coco.annToRLE(ring)) == ring["area"] == decoded.sum()
    landed = masks.store.raw / "fgadr" / "HardExudate_Masks" / "ring.png"
    np.testing.assert_array_equal(decoded, in_global(masks, "ring", np.asarray(Image.open(landed)) > 0))


def in_global(platform: Platform, stem: str, mask: np.ndarray) -> np.ndarray:
    """The mask at the pixel centres of the global image, by the formulas of the documentation."""
    meta = read_json(platform.store.tiles_metadata(f"fgadr__{stem}"))
    left, top, right, bottom = read_json(platform.store.crop_metadata(f"fgadr__{stem}"))["bbox_xyxy"]
    size, global_meta = meta["global_size"][0], meta["global_meta"]
    expected = np.zeros((size, size), bool)
    centres = (np.arange(size) + 0.5) / global_meta["scale"]
    columns = np.floor(centres - global_meta["pad_xy"][0]).astype(int) + left
    rows = np.floor(centres - global_meta["pad_xy"][1]).astype(int) + top
    in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    expected[np.ix_(in_rows, in_columns)] = mask[np.ix_(rows[in_rows], columns[in_columns])]
    return expected


def test_overlays_draw_the_border_of_a_hole(masks: Platform) -> None:
    (ring,) = annotations(masks, "fgadr", "ring")
    picture = np.zeros((1024, 1024, 3), np.uint8)
    draw_labels(picture, [ring], {})
    x, y, width, height = ring["bbox"]
    row = picture[round(y + height / 2)].any(axis=1)
    # Outer and inner border on both sides; box lines coincide with the outer ones.
    crossings = np.flatnonzero(np.diff(row.astype(int)) == 1)
    assert len(crossings) == 4
    assert not row[round(x + width / 2)]


def test_repeated_lines_slivers_and_foreign_rows_are_one_lesion_or_bad_labels(platform: Platform, cases: Path) -> None:
    land(platform, cases, ["obb_duplicate_line", "obb_foreign_rows"])
    uveitis = platform.store.raw / "uwf-700"
    shutil.copy(uveitis / "Images/Uveitis/dup_line.jpg", uveitis / "Images/Uveitis/sliver.jpg")
    with Image.open(uveitis / "Images/Uveitis/sliver.jpg") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(uveitis / "Images/Uveitis/sliver.jpg", quality=92)
    shutil.copy(cases / "obb_sliver.txt", uveitis / "Labels/Uveitis/sliver.txt")
    finish(platform, "uwf700")
    assert sorted(entry["category_id"] for entry in annotations(platform, "uwf700", "dup_line")) == [4, 5]
    text = all_findings(platform, "uwf700")
    assert "Labels/Uveitis/dup_line.txt: line 3 repeats line 1" in text
    assert "Labels/Uveitis/sliver.txt:3: found a box without area" in text
    for name, found in {
        "conf_col.txt:1": "found 10 values",
        "seg_polygon.txt:1": "found 11 values",
        "float_class.txt:1": "found class '4.0'",
        "px_units.txt:1": "found the coordinate 320",
        "comment_line.txt:1": "found 3 values",
        "five_col.txt:1": "found 5 values",
    }.items():
        assert f"Labels/Uveitis/{name}: {found}" in text
        assert annotations(platform, "uwf700", name.partition(".")[0]) == []
