"""The lanes on real photographs: ultra-widefield with hand-drawn outlines and real box files, regular with masks."""

import json
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
import scipy.ndimage
from pycocotools.coco import COCO

from uveitis_assets.components.fundus.lanes import load_lanes
from uveitis_assets.definitions import defs
from uveitis_assets.storage.files import read_json
from uveitis_assets.storage.store import ArtefactStore, artefact_key
from uveitis_assets_tests.components.running_platform import Platform, read_coco, use

SPLITS = ("train", "val", "test")
FGADR_CATEGORIES = {"HardExudate": 15, "SoftExudate": 15, "Hemohedge": 5, "Microaneurysms": 11}


def new_platform(root: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    store = ArtefactStore(root=root / "data", raw=root / "raw")
    use(store, monkeypatch)
    monkeypatch.setenv("UVEITIS_WORKERS", "2")
    return Platform(defs(), load_lanes(), store)


def run_lane(platform: Platform, lane: str) -> None:
    platform.register(lane)
    assert platform.run(lane).success
    assert platform.run_labels(lane).success


def annotations(store: ArtefactStore, lane: str, tiles: bool = False) -> list[tuple[str, dict]]:
    """Every annotation of fold 0 with its image id."""
    found = []
    for split in SPLITS:
        coco = read_coco(store, lane, split, tiles=tiles)
        names = {image["id"]: image["image_id"] for image in coco["images"]}
        found += [(names[annotation["image_id"]], annotation) for annotation in coco["annotations"]]
    return found


@pytest.fixture(scope="module")
def widefield(real_data: Path, tmp_path_factory: pytest.TempPathFactory):
    """The eight real photographs, with the first eight real label files laid over them."""
    with pytest.MonkeyPatch.context() as patch:
        platform = new_platform(tmp_path_factory.mktemp("widefield"), patch)
        images = sorted((real_data / "uwf" / "images").glob("*.jpg"))
        labels = sorted((real_data / "uwf700_labels" / "Labels" / "Uveitis").glob("*.txt"))
        folder = platform.store.raw / "uwf-700"
        (folder / "Images" / "Uveitis").mkdir(parents=True)
        (folder / "Labels" / "Uveitis").mkdir(parents=True)
        truths = {}
        for image, label in zip(images, labels, strict=False):
            shutil.copy(image, folder / "Images" / "Uveitis" / f"{label.stem}.jpg")
            shutil.copy(label, folder / "Labels" / "Uveitis" / label.name)
            truths[label.stem] = json.loads((real_data / "uwf" / "roi_truth" / f"{image.stem}.json").read_text())
        run_lane(platform, "uwf700")
        yield platform, truths


@pytest.fixture(scope="module")
def regular(real_data: Path, tmp_path_factory: pytest.TempPathFactory):
    """Every eighth photograph with lesion masks in FGADR's layout."""
    with pytest.MonkeyPatch.context() as patch:
        platform = new_platform(tmp_path_factory.mktemp("regular"), patch)
        source = real_data / "idrid_fgadr_layout"
        chosen = {path.stem for path in sorted((source / "Original_Images").iterdir())[::8]}
        for path in source.glob("*_*/*"):
            if path.stem in chosen:
                target = platform.store.raw / "fgadr" / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        run_lane(platform, "fgadr")
        yield platform, platform.store.raw / "fgadr"


def test_masks_of_real_widefield_photographs_match_the_outlines(widefield):
    platform, truths = widefield
    scores = {}
    for stem, truth in truths.items():
        mask = cv2.imread(str(platform.store.roi_mask(f"uwf700__{stem}")), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (truth["height"], truth["width"])
        outline, ignored = np.zeros(mask.shape, np.uint8), np.zeros(mask.shape, np.uint8)
        cv2.fillPoly(outline, [np.array(truth["polygon"], np.int32)], 1)
        for polygon in truth["ignore"]:
            cv2.fillPoly(ignored, [np.array(polygon, np.int32)], 1)
        kept = ignored == 0
        found, wanted = (mask > 0)[kept], (outline > 0)[kept]
        scores[truth["image"]] = (found & wanted).sum() / (found | wanted).sum()
    assert np.mean(list(scores.values())) >= 0.96, scores
    assert min(scores.values()) >= 0.90, scores


def test_every_real_box_arrives_in_the_coco_files_at_its_place(widefield):
    platform, truths = widefield
    expected = {}
    for stem in truths:
        text = (platform.store.raw / "uwf-700" / "Labels" / "Uveitis" / f"{stem}.txt").read_text()
        crop = read_json(platform.store.crop_metadata(f"uwf700__{stem}"))
        scale_meta = read_json(platform.store.tiles_metadata(f"uwf700__{stem}"))["global_meta"]
        rows = []
        for line in text.splitlines():
            values = [float(value) for value in line.split()]
            points = np.array(values[1:]).reshape(4, 2) * crop["orig_size"]
            points = (points - crop["bbox_xyxy"][:2] + scale_meta["pad_xy"]) * scale_meta["scale"]
            x0, y0 = np.clip(points.min(axis=0), 0, 1024)
            x1, y1 = np.clip(points.max(axis=0), 0, 1024)
            if x1 > x0 and y1 > y0:
                rows.append((int(values[0]), x0, y0, x1 - x0, y1 - y0))
        expected[f"uwf700::{stem}"] = sorted(rows)
    found = {name: [] for name in expected}
    for name, annotation in annotations(platform.store, "uwf700"):
        found[name].append((annotation["category_id"], *annotation["bbox"]))
    assert sum(map(len, found.values())) == sum(map(len, expected.values())) > 40
    for name, rows in expected.items():
        np.testing.assert_allclose(np.array(sorted(found[name])), np.array(rows), atol=1e-2)


def test_every_real_lesion_component_becomes_one_box(regular):
    platform, source = regular
    expected: Counter = Counter()
    for folder, category in FGADR_CATEGORIES.items():
        for path in sorted((source / f"{folder}_Masks").glob("*.png")):
            mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0
            labelled, _ = scipy.ndimage.label(mask, structure=np.ones((3, 3)))
            areas = np.bincount(labelled.ravel())[1:]
            expected[f"fgadr::{path.stem}", category] += int((areas >= 12).sum())
    found = Counter((name, annotation["category_id"]) for name, annotation in annotations(platform.store, "fgadr"))
    assert found == {key: count for key, count in expected.items() if count}


def test_every_lesion_of_the_global_images_is_in_a_tile(regular, widefield):
    for platform, lane in ((regular[0], "fgadr"), (widefield[0], "uwf700")):
        whole = {(name, annotation["lesion_id"]) for name, annotation in annotations(platform.store, lane)}
        tiled = {(name, annotation["lesion_id"]) for name, annotation in annotations(platform.store, lane, tiles=True)}
        assert whole == tiled


def test_pycocotools_loads_every_file_and_every_image_is_there(regular, widefield, capsys):
    for platform in (regular[0], widefield[0]):
        files = sorted((platform.store.root / "labels_coco").rglob("*_*.json"))
        assert len(files) == 30
        for path in files:
            coco = COCO(str(path))
            for image in coco.loadImgs(coco.getImgIds()):
                assert (platform.store.root / image["file_name"]).is_file()
    capsys.readouterr()


def test_no_real_image_is_quarantined_and_the_checks_pass(regular, widefield, monkeypatch):
    for platform, lane in ((regular[0], "fgadr"), (widefield[0], "uwf700")):
        use(platform.store, monkeypatch)
        assert platform.metadata(f"{lane}/tiles", "b00001")["n_quarantined"] == 0
        for asset, name in (
            ("manifest", "manifest_integrity"),
            ("roi_masks", "roi_plausibility"),
            ("tiles", "tile_reconstruction"),
        ):
            evaluation = platform.check(f"{lane}/{asset}", name, "b00001")
            assert evaluation.passed, evaluation.metadata["findings"].value
        sanity = platform.checks(f"{lane}/coco_labels", "label_sanity", "fold0|train", "fold4|test")
        assert len(sanity) == 15
        for evaluation in sanity.values():
            assert evaluation.metadata["n_errors"].value == 0, evaluation.metadata["findings"].value


def test_blue_of_two_laser_photographs_is_recorded_as_without_signal_and_no_channel_of_others(regular, widefield):
    for platform, lane, expected in ((regular[0], "fgadr", []), (widefield[0], "uwf700", ["blue"])):
        index = pl.read_parquet(platform.store.stage_index(lane, "normalized_crops", "b00001"))
        found = index["channels_without_signal"].to_list()
        assert found == [expected] * index.height
        assert platform.metadata(f"{lane}/normalized_crops", "b00001")["n_channels_without_signal"] == sum(
            map(len, found)
        )


def test_the_crop_is_the_raw_image_at_its_place(widefield):
    platform, truths = widefield
    for stem in sorted(truths)[:3]:
        key = artefact_key(f"uwf700::{stem}")
        raw = cv2.imread(str(platform.store.raw / "uwf-700" / "Images" / "Uveitis" / f"{stem}.jpg"))
        x0, y0, x1, y1 = read_json(platform.store.crop_metadata(key))["bbox_xyxy"]
        assert np.array_equal(cv2.imread(str(platform.store.crop(key))), raw[y0:y1, x0:x1])
