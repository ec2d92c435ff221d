"""Labelled splits: what the COCO files say, joined with the right frames, patients and pixels; refusals that help."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pycocotools.coco import COCO

from uveitis_assets.detection.data.coco_reader import read_labelled_split
from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.storage.files import PathEscapesRootError, read_json, write_json
from uveitis_assets.storage.store import ArtefactStore, artefact_key
from uveitis_assets_tests.detection.tiled_lane import obb_line, small_frames, write_lane, write_tiles
from uveitis_assets_tests.labels.lane import FakeLane
from uveitis_assets_tests.patience import patience

TWO = obb_line(4, (0.3, 0.4), (0.1, 0.15)) + obb_line(15, (0.7, 0.6), (0.2, 0.1))


def read(store: ArtefactStore, lane: str = "uwf700", fold: int = 0, split: str = "train") -> LabelledSplit:
    return read_labelled_split(store, lane, fold=fold, split=split)


def edit(store: ArtefactStore, change: Callable[[dict[str, Any]], object], *, tiles: bool = True) -> None:
    path = store.coco_file("uwf700", "train", 0, tiles=tiles)
    content = read_json(path)
    change(content)
    write_json(path, content)


@pytest.mark.parametrize("frame", ["global", "native"])
def test_boxes_labels_and_corners_are_those_that_pycocotools_reads(store: ArtefactStore, frame: str) -> None:
    write_lane(store, [TWO, "", obb_line(1, (0.5, 0.5), (0.6, 0.7))], frames=small_frames(frame=frame))
    split = read(store, fold=1)
    assert (split.lane, split.fold, split.split) == ("uwf700", 1, "train")
    assert [image.image_id for image in split.images] == [f"uwf700::eye{n:03d}" for n in range(3)]
    assert [image.patient for image in split.images] == [f"patient-eye{n:03d}" for n in range(3)]
    assert split.categories[4] == "vascularite"

    for tiles in (False, True):
        coco = COCO(str(store.coco_file("uwf700", "train", 1, tiles=tiles)))
        truths = [image.truth for image in split.images]
        if tiles:
            truths = [tile.truth for image in split.images for tile in image.tiles]
        assert len(truths) == len(coco.imgs)
        for truth, image in zip(truths, coco.imgs.values(), strict=True):
            annotations = coco.imgToAnns[image["id"]]
            assert truth.labels.tolist() == [a["category_id"] for a in annotations]
            assert truth.scores.tolist() == [1.0] * len(annotations)
            for row, annotation in enumerate(annotations):
                x, y, width, height = annotation["bbox"]
                np.testing.assert_allclose(truth.boxes[row], [x, y, x + width, y + height], rtol=1e-6)
                if annotation["obb"] is None:
                    assert np.isnan(truth.corners[row]).all()
                else:
                    expected = np.reshape(annotation["obb"], (4, 2)) * (image["width"], image["height"])
                    np.testing.assert_allclose(truth.corners[row], expected, rtol=1e-5)
    assert sum(len(tile.truth) for image in split.images for tile in image.tiles) > 3


def test_tiles_without_lesions_are_there_with_their_files(store: ArtefactStore) -> None:
    write_lane(store, [TWO, ""])
    negative = read(store).images[1]
    assert [tile.tile_id for tile in negative.tiles] == [tile.tile_id for tile in negative.frames.tiles]
    assert len(negative.tiles) == 4
    assert all(tile.file.is_file() and len(tile.truth) == 0 for tile in negative.tiles)
    assert negative.truth.corners.shape == (0, 4, 2)


def test_unlabelled_images_never_enter(store: ArtefactStore) -> None:
    write_lane(store, [TWO, None, None])
    assert [image.image_id for image in read(store).images] == ["uwf700::eye000"]


def test_files_of_the_earlier_scripts_are_read_and_raw_patient_ids_become_pseudonyms(store: ArtefactStore) -> None:
    image_id, frames = "uwf700::Uveitis-001", small_frames()
    key = artefact_key(image_id)
    write_tiles(store, image_id, frames)
    write_json(store.crop_metadata(key), frames.crop_metadata())
    metadata = {name: value for name, value in frames.tiles_metadata(image_id).items() if name != "frame"}
    write_json(store.tiles_metadata(key), metadata)
    store.manifest_export("uwf700", "jsonl").parent.mkdir()
    row = {"image_id": image_id, "dataset": "uwf700", "patient_id": "Uveitis-001", "labels_path": None}
    store.manifest_export("uwf700", "jsonl").write_text(json.dumps(row) + "\n")
    categories = [{"id": 1, "name": "foyer_choroidien"}, {"id": 2, "name": "hyalite"}]
    annotation = {"id": 1, "image_id": 1, "category_id": 2, "bbox": [10, 20, 30, 5], "area": 150, "iscrowd": 0}
    entry = {"id": 1, "file_name": f"preproc/global_128/{key}.png", "width": 128, "height": 128, "image_id": image_id}
    content = {"images": [entry], "annotations": [{**annotation, "obb": None}], "categories": categories}
    write_json(store.coco_file("uwf700", "val", 0, tiles=False), content)
    tiles = [
        {
            "id": number + 1,
            "file_name": f"preproc/tiles/{key}/{tile.tile_id}.png",
            "width": 96,
            "height": 96,
            "image_id": image_id,
            "tile_id": tile.tile_id,
        }
        for number, tile in enumerate(frames.tiles)
    ]
    on_tile = {**annotation, "image_id": 3, "obb": [0, 0, 0.5, 0, 0.5, 0.25, 0, 0.25]}
    write_json(
        store.coco_file("uwf700", "val", 0, tiles=True),
        {"images": tiles, "annotations": [on_tile], "categories": categories},
    )
    (image,) = read(store, split="val").images
    assert image.truth.boxes.tolist() == [[10, 20, 40, 25]]
    assert [len(tile.truth) for tile in image.tiles] == [0, 0, 1, 0]
    assert image.tiles[2].truth.corners.tolist() == [[[0, 0], [48, 0], [48, 24], [0, 24]]]
    assert "Uveitis" not in image.patient


def test_pseudo_labels_keep_their_score(store: ArtefactStore) -> None:
    write_lane(store, [TWO])
    edit(store, lambda coco: coco["annotations"][1].update(pseudo=True, score=0.93), tiles=False)
    np.testing.assert_allclose(read(store).images[0].truth.scores, [1.0, 0.93], rtol=1e-6)


@pytest.mark.parametrize("width", [0.0, 1e-7, 1e-4])
def test_boxes_without_area_are_left_out_counted_and_named(
    store: ArtefactStore, caplog: pytest.LogCaptureFixture, width: float
) -> None:
    write_lane(store, [TWO])
    edit(store, lambda coco: coco["annotations"][0].update(bbox=[80.0, 5.0, width, 9.0]), tiles=False)
    with caplog.at_level(logging.WARNING):
        assert len(read(store).images[0].truth) == 1
    assert "left out 1 annotations whose box is without area; first: annotation 1 of image uwf700::" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][1].update(bbox=[90, 90, 20, 1]), r"annotation 2 .*box outside its image"),
        (lambda c: c["annotations"][1].update(bbox=[9, 9, -2, 1]), r"annotation 2 .*negative size"),
        (lambda c: c["annotations"][1].update(bbox=[9, 9, 2]), "expected x, y, width and height"),
        (lambda c: c["annotations"][0].update(category_id=77), r"expected a category of the file \(1 foyer_choroidien"),
        (lambda c: c["annotations"][0].update(image_id=999), "names an image that the file does not list"),
        (lambda c: c["annotations"][0].update(obb=[0.1] * 7), "expected 8 numbers or null"),
        (lambda c: c["annotations"][0].update(pseudo=True, score=3), "expected a score from 0 to 1"),
        (lambda c: c["annotations"][0].pop("bbox"), "an entry has no 'bbox'"),
        (lambda c: c["categories"].pop(), "expected the categories of uwf700_train.json"),
        (lambda c: c.pop("annotations"), "found no annotations"),
        (
            lambda c: c.update(images=c["images"][:3], annotations=[]),
            r"expected the 4 tiles .* found 3 .*materialize partition `fold0\|train`",
        ),
        (lambda c: c["images"][0].update(width=97), "tile_000 97x96"),
        (lambda c: c["images"][0].update(image_id="uwf700::other"), "the image is not in uwf700_train.json"),
        (lambda c: c["images"][1].update(id=1), "1 repeated"),
    ],
)
def test_contradictions_are_refused_with_file_entry_and_remedy(
    store: ArtefactStore, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    write_lane(store, [TWO])
    edit(store, change)
    with pytest.raises(ValueError, match=message) as caught:
        read(store)
    assert "uwf700_train" in str(caught.value)


def test_a_missing_file_names_the_asset_that_makes_it(store: ArtefactStore) -> None:
    with pytest.raises(FileNotFoundError, match=r"materialize partition `fold0\|val` of fgadr/coco_labels"):
        read(store, "fgadr", split="val")
    lane = write_lane(store, [TWO])
    key = artefact_key(lane.rows[0]["image_id"])
    moved = store.tiles_metadata(key).rename(store.root / "elsewhere")
    with pytest.raises(FileNotFoundError, match="materialize uwf700/tiles"):
        read(store)
    moved.rename(store.tiles_metadata(key))
    store.tile(key, "tile_002").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"tile_002\.png: expected a tile, found none; materialize uwf700/tiles"
    ):
        read(store)
    store.manifest_export("uwf700", "parquet").unlink()
    with pytest.raises(FileNotFoundError, match="materialize uwf700/manifest"):
        read(store)


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/passwd", "preproc/../../x.png", "preproc/link/x.png", ".."])
def test_file_names_cannot_leave_the_store(store: ArtefactStore, tmp_path: Path, name: str) -> None:
    write_lane(store, [TWO])
    (store.root / "preproc" / "link").symlink_to(tmp_path)
    edit(store, lambda coco: coco["images"][1].update(file_name=name))
    with pytest.raises(PathEscapesRootError, match=r"uwf700_train_tiles\.json"):
        read(store)


def test_a_tile_that_is_a_link_out_of_the_store_is_refused(store: ArtefactStore, tmp_path: Path) -> None:
    write_lane(store, [TWO])
    tile = store.tile("uwf700__eye000", "tile_001")
    tile.rename(tmp_path / "outside.png")
    tile.symlink_to(tmp_path / "outside.png")
    with pytest.raises(PathEscapesRootError, match="tile_001"):
        read(store)


def with_index(lane: FakeLane, stem: str, **columns: str) -> None:
    """Give one image's row of the tiles' index other values."""
    path = lane.store.stage_index(lane.name, "tiles", "b00001")
    index = pl.read_parquet(path)
    for name, value in columns.items():
        old = pl.col(name) if name in index.columns else pl.lit("f0")
        index = index.with_columns(
            pl.when(pl.col("image_id") == f"{lane.name}::{stem}").then(pl.lit(value)).otherwise(old).alias(name)
        )
    index.write_parquet(path)


def test_the_fingerprint_follows_labels_and_pixels_and_nothing_else(store: ArtefactStore) -> None:
    lane = write_lane(store, [TWO, ""])
    seen = [read(store)]

    tile = store.tile("uwf700__eye001", "tile_000")
    other = store.tile("uwf700__eye001", "tile_001").read_bytes()
    before = tile.read_bytes()
    tile.write_bytes(other)
    seen.append(read(store))
    assert seen[1].images[0].tiles_fingerprint == seen[0].images[0].tiles_fingerprint
    assert seen[1].images[1].tiles_fingerprint != seen[0].images[1].tiles_fingerprint
    tile.write_bytes(before)
    assert read(store).fingerprint == seen[0].fingerprint

    with_index(lane, "eye001", fingerprint="f1")
    seen.append(read(store))
    with_index(lane, "eye001", content_hash="other")
    seen.append(read(store))
    edit(store, lambda coco: coco["annotations"][0].update(category_id=6), tiles=False)
    seen.append(read(store))
    assert [i.tiles_fingerprint for i in seen[3].images] == [i.tiles_fingerprint for i in seen[4].images]
    assert len({split.fingerprint for split in seen}) == len(seen)
    assert all(len(split.fingerprint) == 16 for split in seen)


def test_many_annotations_of_one_image_are_read_in_seconds(store: ArtefactStore) -> None:
    write_lane(store, [TWO])
    square = {"bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0, "category_id": 4, "obb": [0.1] * 8, "segmentation": []}

    def fill(coco: dict[str, Any]) -> None:
        ids = [image["id"] for image in coco["images"]]
        coco["annotations"] = [{**square, "id": n, "image_id": ids[n % len(ids)]} for n in range(30_000)]

    edit(store, fill)
    started = time.process_time()
    split = read(store)
    assert time.process_time() - started < patience(2)
    assert sum(len(tile.truth) for tile in split.images[0].tiles) == 30_000


def test_the_published_labels_give_the_counts_of_their_coco_files(store: ArtefactStore, real_data: Path) -> None:
    texts = [path.read_text() for path in sorted((real_data / "uwf700_labels").rglob("*.txt"))[:20]]
    write_lane(store, texts)
    split = read(store)
    n_lines = sum(len([line for line in text.splitlines() if line.strip()]) for text in texts)
    assert len(split.images) == 20
    assert 0 < sum(len(image.truth) for image in split.images) <= n_lines
    for image in split.images:
        size = image.frames.global_size
        assert (image.truth.boxes >= 0).all()
        assert (image.truth.boxes <= size).all()
