"""COCO files: equal to an independent recomputation from raw labels, complete in their counts, and loadable."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pytest
import scipy.ndimage
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from uveitis_assets.labels import label_files
from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.labels.coco import build_coco_split
from uveitis_assets.labels.coco_summary import CocoSplitSummary, write_coco_summary
from uveitis_assets.labels.configuration import LabelConfiguration
from uveitis_assets.labels.dropped_folds import remove_dropped_folds
from uveitis_assets.storage.files import read_json
from uveitis_assets.storage.store import ArtefactStore, artefact_key
from uveitis_assets_tests.labels import independent
from uveitis_assets_tests.labels.lane import FakeLane, frames_of

OBB = LabelConfiguration(format="obb")
MASK = LabelConfiguration(format="mask")
SQUARE = "{} 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2\n"
FRAMES = frames_of((1000, 800), (50, 0, 950, 800))


def build(
    lane: FakeLane, labels: LabelConfiguration = OBB, manifest: pl.DataFrame | None = None, **options: Any
) -> CocoSplitSummary:
    options = {"fold": 0, "split": "train", **options}
    rows = lane.finish() if manifest is None else manifest
    return build_coco_split(lane.store, lane.name, lane.raw_folder, labels, load_class_map(), manifest=rows, **options)


def load(lane: FakeLane, *, tiles: bool, fold: int = 0, split: Any = "train") -> dict[str, Any]:
    return read_json(lane.store.coco_file(lane.name, split, fold, tiles=tiles))


def by_place(coco: dict[str, Any]) -> dict[tuple[str, str, int], dict[str, Any]]:
    """(image id, tile id, lesion id) -> annotation."""
    images = {image["id"]: image for image in coco["images"]}
    return {
        (images[a["image_id"]]["image_id"], images[a["image_id"]].get("tile_id", ""), a["lesion_id"]): a
        for a in coco["annotations"]
    }


def assert_same_box(annotation: dict[str, Any], box: np.ndarray) -> None:
    x, y, width, height = annotation["bbox"]
    np.testing.assert_allclose([x, y, x + width, y + height], box, rtol=0, atol=1e-7)
    area = (box[2] - box[0]) * (box[3] - box[1])
    if isinstance(annotation["segmentation"], dict):
        size = annotation["segmentation"]["size"]
        area = coco_masks.area(coco_masks.frPyObjects(annotation["segmentation"], *size))
    assert annotation["area"] == pytest.approx(area, abs=1e-6)


def projected(shapes: list[Any], crop: Any, meta: Any, frame: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    polygons = [independent.to_frame(polygon, crop, meta, frame) for _, polygon, _ in shapes]
    boxes = [independent.to_frame(box.reshape(2, 2), crop, meta, frame).ravel() for _, _, box in shapes]
    return polygons, boxes


def assert_equal_to_recomputation(
    lane: FakeLane,
    raw_shapes: dict[str, list[tuple[int, np.ndarray, np.ndarray]]],
    summary: CocoSplitSummary,
    limits: tuple[float, float] = (0.2, 0.2),
) -> None:
    """``raw_shapes``: image id -> (category, polygon in raw px, box in raw px) in label order."""
    in_global, in_tiles = by_place(load(lane, tiles=False)), by_place(load(lane, tiles=True))
    n_global, n_tiles, rules = 0, 0, Counter[str]()
    for image_id, shapes in raw_shapes.items():
        key = artefact_key(image_id)
        crop, meta = read_json(lane.store.crop_metadata(key)), read_json(lane.store.tiles_metadata(key))

        size = meta["global_size"]
        expected = independent.expected_in_image(*projected(shapes, crop, meta, "global"), size)
        for lesion, box in expected.items():
            annotation = in_global[image_id, "", lesion + 1]
            assert annotation["category_id"] == shapes[lesion][0]
            assert_same_box(annotation, box)
        n_global += len(expected)

        frame_size = crop["crop_size"] if meta["frame"] == "native" else size
        polygons, boxes = projected(shapes, crop, meta, meta["frame"])
        tiles = independent.expected_in_tiles(polygons, boxes, frame_size, meta["tiles"], *limits)
        for (tile_id, lesion), (box, rule) in tiles.items():
            annotation = in_tiles[image_id, tile_id, lesion + 1]
            assert annotation["category_id"] == shapes[lesion][0]
            assert_same_box(annotation, box)
            rules[rule] += 1
        n_tiles += len(tiles)
    assert n_global == len(in_global) == summary.n_annotations
    assert n_tiles == len(in_tiles) == summary.n_tile_annotations
    assert rules == Counter(ratio=summary.n_kept_by_ratio, cover=summary.n_kept_large, best=summary.n_kept_best_tile)


def assert_loads(lane: FakeLane, split: str = "train", fold: int = 0) -> None:
    for tiles in (False, True):
        path = lane.store.coco_file(lane.name, split, fold, tiles=tiles)
        coco = COCO(str(path))
        for annotation in list(coco.anns.values())[:40]:
            mask = coco.annToMask(annotation)
            image = coco.imgs[annotation["image_id"]]
            assert mask.shape == (image["height"], image["width"])


def real_lane(store: ArtefactStore, real_data: Path, frame: str) -> tuple[FakeLane, dict[str, Any]]:
    """The 98 published label files on images of various sizes and crops."""
    lane = FakeLane(store, "uwf700")
    shutil.copytree(real_data / "uwf700_labels", lane.raw_folder)
    shapes = {}
    for number, path in enumerate(sorted((real_data / "uwf700_labels").rglob("*.txt"))):
        width, height = 3900 - 17 * number, 3072 - 11 * number
        crop = (3 * number, 5 * number, width - 2 * number, height - number)
        name = path.relative_to(real_data / "uwf700_labels").as_posix()
        image_id = lane.add(path.stem, frames_of((width, height), crop, frame=frame), [name])
        table = np.loadtxt(path, ndmin=2)
        corners = table[:, 1:].reshape(-1, 4, 2) * (width, height)
        shapes[image_id] = [
            (int(row[0]), points, np.array([*points.min(axis=0), *points.max(axis=0)]))
            for row, points in zip(table, corners, strict=True)
        ]
    return lane, shapes


@pytest.mark.parametrize("frame", ["global", "native"])
def test_published_oriented_boxes_become_what_an_independent_recomputation_gives(
    store: ArtefactStore, real_data: Path, frame: str
) -> None:
    lane, shapes = real_lane(store, real_data, frame)
    summary = build(lane)
    assert_equal_to_recomputation(lane, shapes, summary)
    assert summary.n_images == summary.n_patients == 98
    assert summary.n_annotations + summary.n_outside_image == 745
    assert sum(summary.class_counts.values()) == summary.n_annotations
    assert_loads(lane)


def test_oriented_boxes_and_polygons_are_those_of_the_corners(store: ArtefactStore, real_data: Path) -> None:
    lane, shapes = real_lane(store, real_data, "global")
    build(lane)
    n_whole, n_cut = 0, 0
    for tiles in (False, True):
        coco = load(lane, tiles=tiles)
        images = {image["id"]: image for image in coco["images"]}
        for (image_id, tile_id, lesion_id), annotation in by_place(coco).items():
            key = artefact_key(image_id)
            crop, meta = read_json(store.crop_metadata(key)), read_json(store.tiles_metadata(key))
            corners = independent.to_frame(shapes[image_id][lesion_id - 1][1], crop, meta, "global")
            if tile_id:
                tile = next(tile for tile in meta["tiles"] if tile["tile_id"] == tile_id)
                corners = corners - (tile["x0"], tile["y0"])
            size = np.array([images[annotation["image_id"]]["width"], images[annotation["image_id"]]["height"]])
            if (corners >= 0).all() and (corners <= size).all():
                np.testing.assert_allclose(np.reshape(annotation["obb"], (4, 2)) * size, corners, rtol=0, atol=1e-6)
                n_whole += 1
            else:
                assert annotation["obb"] is None
                n_cut += 1
            area = sum(independent.area_of(np.reshape(ring, (-1, 2))) for ring in annotation["segmentation"])
            expected = independent.area_of(independent.clip_polygon(corners, (0, 0, *size.tolist())))
            assert area == pytest.approx(expected, abs=0.5, rel=1e-3)
    assert n_whole > 500
    assert n_cut > 100


@pytest.mark.parametrize("frame", ["global", "native"])
def test_lesions_larger_or_longer_than_tiles_follow_the_same_recomputation(store: ArtefactStore, frame: str) -> None:
    rng = np.random.default_rng(7)
    lane = FakeLane(store, "uwf700")
    shapes = {}
    for number in range(6):
        image = frames_of((2000, 1500), (100, 50, 1900, 1400), frame=frame, tile_size=160, stride=120)
        lines, entries = [], []
        for index in range(25):
            centre, half = rng.uniform(0.1, 0.9, 2), rng.uniform(0.002, 0.5, 2) ** 1.5
            angle = rng.uniform(0, np.pi)
            if index == 0:  # long, thin and level
                centre, half, angle = np.array([0.5, rng.uniform(0.1, 0.9)]), np.array([0.45, 0.004]), 0.0
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            points = centre + (np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half) @ turn.T
            points = np.round(points, 6)
            if points.min() < 0 or points.max() > 1:
                continue
            lines.append("4 " + " ".join(f"{value:.6f}" for value in points.ravel()))
            raw = points * (2000, 1500)
            entries.append((4, raw, np.array([*raw.min(axis=0), *raw.max(axis=0)])))
        path = lane.write_label(f"{number}.txt", "\n".join(lines))
        shapes[lane.add(str(number), image, [path])] = entries
    summary = build(lane)
    assert summary.n_kept_large > 0
    assert summary.n_kept_best_tile > 0
    assert_equal_to_recomputation(lane, shapes, summary)


def component_shapes(mask: np.ndarray, category_id: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Components of at least 12 px by scipy; the polygon is the box: outlines are tested with the mask reader."""
    labels, _ = scipy.ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labels.ravel())
    boxes = [
        (rows.start, columns.start, rows.stop, columns.stop)
        for number, (rows, columns) in enumerate(scipy.ndimage.find_objects(labels), start=1)
        if areas[number] >= 12
    ]
    return [
        (category_id, np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float), np.array([x0, y0, x1, y1], float))
        for y0, x0, y1, x1 in sorted(boxes, key=lambda box: box[:2])
    ]


FOLDERS = {"HardExudate_Masks": 15, "Hemohedge_Masks": 5, "Microaneurysms_Masks": 11, "SoftExudate_Masks": 15}


@pytest.mark.parametrize("frame", ["global", "native"])
def test_real_masks_become_what_an_independent_recomputation_gives(
    store: ArtefactStore, real_data: Path, frame: str
) -> None:
    folder = real_data / "idrid_fgadr_layout"
    lane = FakeLane(store, "fgadr")
    shapes = {}
    for stem in ("IDRiD_01", "IDRiD_14"):
        paths = [name for name in FOLDERS if (folder / name / f"{stem}.png").exists()]
        for name in paths:
            lane.write_label(f"{name}/{stem}.png", (folder / name / f"{stem}.png").read_bytes())
        image = frames_of((4288, 2848), (300, 10, 3800, 2840), frame=frame)
        image_id = lane.add(stem, image, [f"{name}/{stem}.png" for name in paths], label_format="mask")
        shapes[image_id] = [
            shape
            for name in sorted(paths)
            for shape in component_shapes(np.asarray(Image.open(folder / name / f"{stem}.png")), FOLDERS[name])
        ]
    summary = build(lane, MASK)
    in_global, in_tiles = load(lane, tiles=False), load(lane, tiles=True)
    assert {a["obb"] for a in in_global["annotations"] + in_tiles["annotations"]} == {None}
    assert_equal_to_recomputation(lane, shapes, summary)
    assert summary.missing_classes == ("vascularite", "ischemie_retine")
    assert_loads(lane)


def test_lesions_with_holes_of_real_masks_are_their_very_pixels_in_native_tiles(
    store: ArtefactStore, real_data: Path
) -> None:
    folder, stem = real_data / "idrid_fgadr_layout", "IDRiD_14"
    lane = FakeLane(store, "fgadr")
    labels = [f"HardExudate_Masks/{stem}.png", f"Hemohedge_Masks/{stem}.png"]
    for name in labels:
        lane.write_label(name, (folder / name).read_bytes())
    frames = frames_of((4288, 2848), (300, 10, 3800, 2840), frame="native")
    lane.add(stem, frames, labels, label_format="mask")
    build(lane, MASK)
    lesions = []
    for name in labels:
        components, _ = scipy.ndimage.label(np.asarray(Image.open(folder / name)) > 0, np.ones((3, 3)))
        lesions.append((components, scipy.ndimage.find_objects(components)))
    coco = COCO(str(lane.store.coco_file("fgadr", "train", 0, tiles=True)))
    tiles = {tile.tile_id: tile for tile in frames.tiles}
    n_checked = 0
    for annotation in coco.anns.values():
        if not isinstance(annotation["segmentation"], dict):
            continue
        tile = tiles[coco.imgs[annotation["image_id"]]["tile_id"]]
        left, top = tile.x0 + 300, tile.y0 + 10
        decoded = coco.annToMask(annotation).astype(bool)
        components, _ = lesions[0 if annotation["category_id"] == 15 else 1]
        window = components[top : top + tile.height, left : left + tile.width]
        (number,) = set(window[decoded].tolist())
        np.testing.assert_array_equal(decoded, window == number)
        assert annotation["area"] == decoded.sum()
        n_checked += 1
    assert n_checked >= 3


def test_images_and_annotations_have_the_published_keys(store: ArtefactStore) -> None:
    lane = FakeLane(store, "uwf700")
    lane.add("b", FRAMES, [lane.write_label("b.txt", SQUARE.format(4))])
    lane.add("a", FRAMES, [lane.write_label("a.txt", SQUARE.format(1) + SQUARE.format(2))])
    build(lane)
    coco, tiles = load(lane, tiles=False), load(lane, tiles=True)
    assert [(image["id"], image["image_id"]) for image in coco["images"]] == [(1, "uwf700::a"), (2, "uwf700::b")]
    assert coco["images"][0] == {
        "id": 1, "file_name": "preproc/global_1024/uwf700__a.png", "width": 1024, "height": 1024,
        "image_id": "uwf700::a",
    }  # fmt: skip
    assert tiles["images"][4] == {
        "id": 5, "file_name": "preproc/tiles/uwf700__b/tile_000.png", "width": 768, "height": 768,
        "image_id": "uwf700::b", "tile_id": "tile_000",
    }  # fmt: skip
    assert [image["id"] for image in tiles["images"]] == list(range(1, 9))
    for content in (coco, tiles):
        assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
        assert {tuple(a) for a in content["annotations"]} == {
            ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "obb", "segmentation", "lesion_id")
        }
        assert [category["id"] for category in content["categories"]] == list(range(1, 21))
        assert all(a["iscrowd"] == 0 for a in content["annotations"])


def test_tiles_without_lesions_are_listed(store: ArtefactStore) -> None:
    lane = FakeLane(store, "uwf700")
    image = frames_of((1000, 1000), frame="native", tile_size=250, stride=250)
    lane.add("a", image, [lane.write_label("a.txt", SQUARE.format(4))])
    summary = build(lane)
    assert len(load(lane, tiles=True)["images"]) == summary.n_tiles == 16
    assert summary.n_empty_tiles == 15


def test_only_labelled_images_enter_and_an_empty_label_is_a_negative(store: ArtefactStore) -> None:
    lane = FakeLane(store, "uwf700")
    lane.add("empty", FRAMES, [lane.write_label("empty.txt", "\n")])
    lane.add("labelled", FRAMES, [lane.write_label("labelled.txt", SQUARE.format(4))])
    lane.add("unlabelled", FRAMES, [], label_format="none")
    lane.add("graded", FRAMES, [], label_format="grade")
    lane.add("lost", FRAMES, ["lost.txt"])
    lane.add("broken", FRAMES, [lane.write_label("broken.txt", SQUARE.format(4) + "4 nan")])
    (store.root / "elsewhere.txt").write_text(SQUARE.format(4))
    lane.add("outside", FRAMES, ["../../elsewhere.txt"])
    lane.add("quarantined", FRAMES, [lane.write_label("q.txt", SQUARE.format(4))], quarantine_reason="truncated")
    lane.add("validation", FRAMES, [lane.write_label("v.txt", SQUARE.format(4))], split="val")
    summary = build(lane)
    assert [image["image_id"] for image in load(lane, tiles=False)["images"]] == ["uwf700::empty", "uwf700::labelled"]
    assert (summary.n_images, summary.n_negatives, summary.n_unlabelled, summary.n_quarantined_images) == (2, 1, 2, 1)
    assert [(bad.image_id, bad.reason) for bad in summary.bad_labels] == [
        ("uwf700::broken", "bad_label"),
        ("uwf700::lost", "missing"),
        ("uwf700::outside", "escapes_root"),
    ]
    details = [bad.detail for bad in summary.bad_labels]
    assert details[0].startswith("broken.txt:2: found 2 values, expected 9: class x1 y1 x2 y2 x3 y3 x4 y4;")
    assert "lost.txt" in details[1]
    assert details[2].startswith("../../elsewhere.txt: leads out of the raw folder")
    assert summary.n_annotations == 1


@pytest.mark.parametrize("change", ["emptied", "replaced by a link"])
def test_a_label_changed_after_registration_leaves_its_image_out_instead_of_making_it_a_negative(
    store: ArtefactStore, change: str
) -> None:
    lane = FakeLane(store, "uwf700")
    name = lane.write_label("a.txt", SQUARE.format(4))
    lane.add("a", FRAMES, [name])
    manifest = lane.finish()
    label = lane.raw_folder / name
    if change == "emptied":
        label.write_text("")
    else:
        label.unlink()
        label.symlink_to(lane.raw_folder / lane.write_label("other.txt", SQUARE.format(15)))
    summary = build(lane, manifest=manifest)
    assert (summary.n_images, summary.n_negatives) == (0, 0)
    (bad,) = summary.bad_labels
    assert (bad.image_id, bad.reason) == ("uwf700::a", "changed_since_registration")
    assert bad.detail == (
        "a.txt: found other content than was registered; run `uveitis-assets register uwf700`, then materialize "
        "uwf700/manifest[b00001] and uwf700/coco_labels"
    )


def test_the_bytes_that_are_parsed_are_those_whose_hash_was_compared(
    store: ArtefactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = FakeLane(store, "fgadr")
    stream = io.BytesIO()
    marked = np.zeros((800, 1000), np.uint8)
    marked[100:110, 200:220] = 1
    Image.fromarray(marked).save(stream, "PNG")
    name = lane.write_label("Hemohedge_Masks/a.png", stream.getvalue())
    lane.add("a", FRAMES, [name], label_format="mask")
    manifest = lane.finish()
    original = label_files.content_hash

    def hash_then_swap(data: bytes) -> str:
        (lane.raw_folder / name).write_bytes(b"swapped between comparison and parsing")
        return original(data)

    monkeypatch.setattr(label_files, "content_hash", hash_then_swap)
    summary = build(lane, MASK, manifest)
    assert (summary.n_annotations, summary.bad_labels) == (1, ())


def test_a_manifest_made_before_labels_were_hashed_has_to_be_made_again(store: ArtefactStore) -> None:
    lane = FakeLane(store, "uwf700")
    lane.add("a", FRAMES, [lane.write_label("a.txt", SQUARE.format(4))], label_hashes=None)
    (bad,) = build(lane).bad_labels
    assert "found 0; materialize uwf700/manifest[b00001] again" in bad.detail


def test_images_whose_preprocessing_is_of_other_bytes_or_missing_are_counted(store: ArtefactStore) -> None:
    lane = FakeLane(store, "uwf700")
    label = lane.write_label("x.txt", SQUARE.format(4))
    lane.add("ready", FRAMES, [label])
    lane.add("changed", FRAMES, [label], indexed_hash="hash-of-other-bytes")
    lane.add("not indexed", FRAMES, [label], preprocessed=False)
    lane.add("no batch", FRAMES, [label], preprocessed=False, batch="b00002")
    lane.add("lost metadata", FRAMES, [label])
    store.tiles_metadata("uwf700__lost metadata").unlink()
    manifest = lane.finish()
    lane.index["b00001"].append({**lane.index["b00001"][0], "image_id": "uwf700::bad", "quarantine_reason": "bad"})
    summary = build(lane, manifest=manifest)
    assert summary.n_images == 1
    assert summary.not_preprocessed == tuple(
        f"uwf700::{name}" for name in ("changed", "lost metadata", "no batch", "not indexed")
    )
    assert summary.counts()["n_not_preprocessed"] == 4


def test_a_damaged_index_of_tiles_is_named_with_what_to_do(store: ArtefactStore) -> None:
    lane = FakeLane(store, "uwf700")
    lane.add("a", FRAMES, [lane.write_label("x.txt", SQUARE.format(4))])
    manifest = lane.finish()
    index = store.stage_index("uwf700", "tiles", "b00001")
    for damaged in (b"garbage", b""):
        index.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"tiles/b00001\.parquet: expected a stage index.* uwf700/tiles\[b00001\]"):
            build(lane, manifest=manifest)
    assert not store.coco_file("uwf700", "train", 0, tiles=False).exists()


def test_an_image_that_the_index_quarantines_is_not_preprocessed(store: ArtefactStore) -> None:
    lane = FakeLane(store, "uwf700")
    lane.add("a", FRAMES, [lane.write_label("x.txt", SQUARE.format(4))])
    lane.index["b00001"][0]["quarantine_reason"] = "roi_not_found"
    assert build(lane).not_preprocessed == ("uwf700::a",)


def test_a_policy_keeps_ids_drops_lesions_and_turns_images_into_negatives(store: ArtefactStore) -> None:
    lane = FakeLane(store, "uwf700")
    lane.add("a", FRAMES, [lane.write_label("a.txt", SQUARE.format(4) + SQUARE.format(15))])
    lane.add("b", FRAMES, [lane.write_label("b.txt", SQUARE.format(4))])
    summary = build(lane, LabelConfiguration(format="obb", classes=("main9",)))
    coco = load(lane, tiles=False)
    assert [(a["category_id"], a["lesion_id"]) for a in coco["annotations"]] == [(15, 2)]
    assert [category["id"] for category in coco["categories"]] == [1, 2, 5, 7, 9, 11, 15, 16, 17]
    assert (summary.n_images, summary.n_negatives, summary.n_other_classes) == (2, 1, 2)
    assert summary.n_negative_by_policy == summary.counts()["n_negative_by_policy"] == 1
    assert summary.class_counts == {1: 0, 2: 0, 5: 0, 7: 0, 9: 0, 11: 0, 15: 1, 16: 0, 17: 0}
    assert "exudats" not in summary.missing_classes
    assert len(summary.missing_classes) == 8


def test_only_images_whose_lesions_all_go_are_negatives_by_policy(store: ArtefactStore) -> None:
    lane = FakeLane(store, "uwf700")
    lane.add("empty", FRAMES, [lane.write_label("empty.txt", "")])
    for number in range(3):
        lane.add(f"dropped {number}", FRAMES, [lane.write_label(f"{number}.txt", SQUARE.format(4) * (number + 1))])
    lane.add("mixed", FRAMES, [lane.write_label("mixed.txt", SQUARE.format(4) + SQUARE.format(5))])
    only_bleeding = build(lane, LabelConfiguration(format="obb", classes=("hemorragie",)))
    assert (only_bleeding.n_images, only_bleeding.n_negatives, only_bleeding.n_negative_by_policy) == (5, 4, 3)
    everything = build(lane)
    assert (everything.n_negatives, everything.n_negative_by_policy) == (1, 0)


def partly_masked_lane(store: ArtefactStore) -> FakeLane:
    """Image a has masks of bleeding and both exudates, b lacks soft exudates, c both exudates, d is unlabelled."""
    lane = FakeLane(store, "fgadr")
    stream = io.BytesIO()
    mask = np.zeros((800, 1000), np.uint8)
    mask[100:110, 200:220] = 1
    Image.fromarray(mask).save(stream, "PNG")
    masks = {"a": ("Hemohedge", "HardExudate", "SoftExudate"), "b": ("Hemohedge", "HardExudate"), "c": ("Hemohedge",)}
    for stem, lesions in masks.items():
        paths = [lane.write_label(f"{lesion}_Masks/{stem}.png", stream.getvalue()) for lesion in lesions]
        lane.add(stem, FRAMES, paths, label_format="mask")
    lane.add("d", FRAMES, [], label_format="none")
    return lane


@pytest.mark.parametrize("missing_masks", ["warn", "no_lesion"])
def test_images_without_some_mask_files_are_counted_per_folder(store: ArtefactStore, missing_masks: Any) -> None:
    summary = build(partly_masked_lane(store), LabelConfiguration(format="mask", missing_masks=missing_masks))
    assert (summary.n_images, summary.n_annotations, summary.n_bad_labels) == (3, 6, 0)
    assert summary.counts()["n_partial_labels"] == 2
    assert summary.missing_masks == {"HardExudate_Masks": 1, "SoftExudate_Masks": 2}


def test_images_without_some_mask_files_can_be_left_out(store: ArtefactStore) -> None:
    lane = partly_masked_lane(store)
    summary = build(lane, LabelConfiguration(format="mask", missing_masks="leave_out"))
    assert [image["image_id"] for image in load(lane, tiles=False)["images"]] == ["fgadr::a"]
    assert summary.missing_masks == {"HardExudate_Masks": 1, "SoftExudate_Masks": 2}
    assert [(bad.image_id, bad.reason) for bad in summary.bad_labels] == [
        ("fgadr::b", "missing_masks"),
        ("fgadr::c", "missing_masks"),
    ]
    assert "found none in HardExudate_Masks, SoftExudate_Masks; add it" in summary.bad_labels[1].detail
    assert not any(bad.image_id in bad.detail for bad in summary.bad_labels), "who lists them writes the id before it"


def test_masks_of_classes_that_are_not_kept_may_be_missing(store: ArtefactStore) -> None:
    lane = partly_masked_lane(store)
    labels = LabelConfiguration(format="mask", classes=("hemorragie",), missing_masks="leave_out")
    summary = build(lane, labels)
    assert (summary.n_images, summary.n_partial_labels, summary.missing_masks) == (3, 0, {})


def test_another_split_s_masks_say_which_folders_the_lane_has(store: ArtefactStore) -> None:
    lane = partly_masked_lane(store)
    lane.rows[0]["fold_splits"] = ["test", "test"]
    assert build(lane, MASK).missing_masks == {"HardExudate_Masks": 1, "SoftExudate_Masks": 2}


def test_lesions_outside_the_crop_are_counted(store: ArtefactStore) -> None:
    lane = FakeLane(store, "uwf700")
    image = frames_of((1000, 800), (300, 200, 900, 700))
    lane.add("a", image, [lane.write_label("a.txt", SQUARE.format(4) + "4 0.5 0.5 0.6 0.5 0.6 0.6 0.5 0.6")])
    summary = build(lane)
    assert (summary.n_out_of_roi, summary.n_outside_image, summary.n_annotations) == (1, 1, 1)


def test_masks_of_another_size_leave_their_image_out(store: ArtefactStore) -> None:
    lane = FakeLane(store, "fgadr")
    for stem, size in (("good", (1000, 800)), ("bad", (500, 400))):
        mask = np.zeros(size[::-1], np.uint8)
        mask[100:110, 200:220] = 1
        stream = io.BytesIO()
        Image.fromarray(mask).save(stream, "PNG")
        path = lane.write_label(f"Hemohedge_Masks/{stem}.png", stream.getvalue())
        lane.add(stem, FRAMES, [path], label_format="mask")
    summary = build(lane, MASK)
    assert summary.n_images == 1
    assert summary.bad_labels[0].detail == (
        "Hemohedge_Masks/bad.png: found 500x400 pixels, expected its image's 1000x800"
    )


def test_a_split_without_images_is_a_valid_file(store: ArtefactStore) -> None:
    lane = FakeLane(store, "uwf700")
    lane.add("a", FRAMES, [lane.write_label("a.txt", SQUARE.format(4))])
    summary = build(lane, split="test")
    assert (summary.n_images, summary.n_annotations, summary.avg_box_area) == (0, 0, 0.0)
    assert len(summary.missing_classes) == 20
    assert_loads(lane, "test")
    assert load(lane, tiles=True, split="test")["images"] == []


def test_bytes_do_not_depend_on_row_order_or_workers(store: ArtefactStore) -> None:
    lane = FakeLane(store, "uwf700")
    for number in range(12):
        label = lane.write_label(f"{number}.txt", SQUARE.format(number + 1) * (number % 3))
        lane.add(str(number), FRAMES, [label], batch=f"b0000{number % 3}")
    manifest = lane.finish()
    files = [store.coco_file("uwf700", "train", 0, tiles=tiles) for tiles in (False, True)]
    build(lane, manifest=manifest)
    before = [path.read_bytes() for path in files]
    build(lane, manifest=manifest.reverse(), workers=4)
    assert [path.read_bytes() for path in files] == before
    assert not list(files[0].parent.glob(".*"))


def test_folds_have_their_own_files_and_sides(store: ArtefactStore) -> None:
    lane = FakeLane(store, "uwf700")
    lane.add("a", FRAMES, [lane.write_label("a.txt", SQUARE.format(4))], fold_splits=["train", "val"])
    lane.add("b", FRAMES, [lane.write_label("b.txt", SQUARE.format(4))], fold_splits=["train", "train"])
    assert build(lane, fold=0).n_images == 2
    assert build(lane, fold=1).n_images == 1
    assert (store.root / "labels_coco" / "fold1" / "uwf700_train_tiles.json").exists()
    assert load(lane, tiles=False, fold=1)["images"][0]["image_id"] == "uwf700::b"
    with pytest.raises(ValueError, match=r"uwf700::a: expected a split for fold 2, found 2 folds"):
        build(lane, fold=2)


def test_a_lane_without_lesion_labels_is_refused(store: ArtefactStore) -> None:
    with pytest.raises(ValueError, match=r"eyepacs: expected `labels\.format: obb` or `mask`"):
        build(FakeLane(store, "eyepacs"), LabelConfiguration())


def test_summary_json_merges_lanes_and_splits_and_keeps_folds_apart(store: ArtefactStore) -> None:
    lane = FakeLane(store, "uwf700")
    lane.add("a", FRAMES, [lane.write_label("a.txt", SQUARE.format(4))])
    other = FakeLane(store, "a_lane")
    other.add("z", FRAMES, [other.write_label("z.txt", "")])
    path = write_coco_summary(store, build(lane))
    assert path == store.coco_summary_file()
    write_coco_summary(store, build(other))
    write_coco_summary(store, build(lane, split="val"))
    fold1 = write_coco_summary(store, build(lane, fold=1))
    assert fold1 == store.root / "labels_coco" / "fold1" / "summary.json"
    content = json.loads(path.read_bytes())
    assert list(content) == ["a_lane_train", "uwf700_train", "uwf700_val"]
    scale = 1024 / 900
    assert content["uwf700_train"]["global"] == {
        "num_images": 1,
        "num_annotations": 1,
        "class_counts": {"4": 1},
        "avg_box_area": pytest.approx(100 * 80 * scale**2),
    }
    assert content["uwf700_train"]["tiles"]["num_images"] == 4
    assert content["a_lane_train"]["global"]["class_counts"] == {}
    assert list(json.loads(fold1.read_bytes())) == ["uwf700_train"]


def test_files_of_folds_that_do_not_exist_any_more_go_and_those_of_other_lanes_stay(store: ArtefactStore) -> None:
    lanes = [FakeLane(store, "uwf700"), FakeLane(store, "uwf700_train")]
    for lane in lanes:
        lane.add("a", FRAMES, [lane.write_label("a.txt", SQUARE.format(4))], fold_splits=["train"] * 4)
        for fold in range(4):
            write_coco_summary(store, build(lane, fold=fold))
            overlay = store.label_overlay_folder(lane.name, "train", fold) / "a_overlay.png"
            overlay.parent.mkdir(parents=True)
            overlay.write_bytes(b"")
    kept_note = store.label_overlay_folder("uwf700", "train", 3) / "note.txt"
    kept_note.write_text("mine")
    before = {path: path.read_bytes() for path in store.root.glob("labels_*/**/*") if path.is_file()}
    assert remove_dropped_folds(store, "uwf700", 2) == [2, 3]
    for fold in (2, 3):
        assert list(read_json(store.coco_summary_file(fold))) == ["uwf700_train_train"]
        before.pop(store.coco_summary_file(fold))
        for tiles in (False, True):
            before.pop(store.coco_file("uwf700", "train", fold, tiles=tiles))
        before.pop(store.label_overlay_folder("uwf700", "train", fold) / "a_overlay.png")
    assert before == {
        path: path.read_bytes()
        for path in store.root.glob("labels_*/**/*")
        if path.is_file() and path not in map(store.coco_summary_file, (2, 3))
    }
    assert not store.label_overlay_folder("uwf700", "train", 2).exists()
    assert remove_dropped_folds(store, "uwf700", 2) == []
    assert remove_dropped_folds(store, "uwf700_train", 3) == [3]
    assert not store.coco_summary_file(3).exists()


def test_boxes_fall_on_the_lesion_s_pixels_in_the_images(store: ArtefactStore) -> None:
    """End to end through pixels: a bright square in a raw image, preprocessed by OpenCV, found again by its box."""
    raw = np.zeros((800, 1000), np.uint8)
    raw[300:340, 400:480] = 255
    frames = frames_of((1000, 800), (50, 100, 950, 760))
    lane = FakeLane(store, "uwf700")
    text = "4 " + " ".join(f"{x / 1000:.6f} {y / 800:.6f}" for x, y in [(400, 300), (480, 300), (480, 340), (400, 340)])
    lane.add("a", frames, [lane.write_label("a.txt", text)])
    build(lane)
    canvas = np.zeros((900, 900), np.uint8)
    canvas[120 : 120 + 660] = raw[100:760, 50:950]
    scaled = cv2.resize(canvas, (1024, 1024), interpolation=cv2.INTER_AREA)
    ys, xs = np.nonzero(scaled > 127)
    (annotation,) = load(lane, tiles=False)["annotations"]
    x, y, width, height = annotation["bbox"]
    np.testing.assert_allclose(
        [x, y, x + width, y + height], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=0.6
    )
