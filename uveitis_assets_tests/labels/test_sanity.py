"""Each check finds what it is for and is silent on good files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.labels.coco import build_coco_split
from uveitis_assets.labels.configuration import LabelConfiguration
from uveitis_assets.labels.sanity import (
    Finding,
    check_classes_present,
    check_coco,
    check_images_disjoint,
    check_patients_disjoint,
    check_split,
)
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.labels.lane import FakeLane, frames_of

Coco = dict[str, Any]


def good_coco(store: ArtefactStore) -> Coco:
    for name in ("a.png", "b.png"):
        (store.root / name).write_bytes(b"x")
    box = {"bbox": [0, 0, 10, 20], "area": 200, "iscrowd": 0, "obb": [0, 0, 1, 0, 1, 1, 0, 1.0], "segmentation": []}
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 10, "height": 20, "image_id": "x::a"},
            {"id": 2, "file_name": "b.png", "width": 10, "height": 20, "image_id": "x::b"},
        ],
        "annotations": [{"id": number, "image_id": 1, "category_id": 4, **box} for number in (1, 2)],
        "categories": [{"id": 4, "name": "vascularite"}],
    }


def test_a_good_file_has_no_findings(store: ArtefactStore) -> None:
    assert check_coco(store, good_coco(store)) == []


def change(group: str, **values: Any) -> Callable[[Coco], None]:
    return lambda coco: coco[group][1 if len(coco[group]) > 1 else 0].update(values)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("annotations", id=1), "1 annotations with an id that is not unique: 1"),
        (change("images", id=1), "1 images with an id that is not unique: 1"),
        (change("annotations", image_id=7), "1 annotations of an image that is not listed: 2"),
        (change("annotations", category_id=5), "1 annotations of a category that is not listed: 2"),
        (change("annotations", bbox=[0, 0, 10.001, 20], area=200.02), "a box that leaves its image: 2"),
        (change("annotations", bbox=[-0.001, 0, 1, 1], area=1), "a box that leaves its image: 2"),
        (change("annotations", bbox=[0, 0, 0, 20], area=0), "a box without area: 2"),
        (change("annotations", bbox=[0, 0, -1, 20], area=-20), "a box without area: 2"),
        (change("annotations", bbox=[0, 0, float("nan"), 20]), "a box that is not finite: 2"),
        (change("annotations", area=199), "area is not that of their box or run lengths: 2"),
        (change("annotations", obb=[0, 0, 1, 0, 1, 1.01, 0, 1]), "an obb other than eight numbers within 0..1: 2"),
        (change("annotations", obb=[0, 0, 1, 0]), "an obb other than eight numbers"),
        (change("annotations", obb=[float("nan")] * 8), "an obb other than eight numbers"),
        (change("images", file_name="c.png"), "1 image files that do not exist (made without them? see `persist`): c"),
    ],
)
def test_each_damage_is_one_error(store: ArtefactStore, damage: Callable[[Coco], None], message: str) -> None:
    coco = copy.deepcopy(good_coco(store))
    damage(coco)
    findings = check_coco(store, coco)
    matching = [finding for finding in findings if message in finding.message]
    assert [finding.severity for finding in matching] == ["ERROR"]
    assert len(findings) == 1


def test_many_cases_are_counted_and_a_few_named(store: ArtefactStore) -> None:
    coco = good_coco(store)
    coco["annotations"] = [{**coco["annotations"][0], "id": k, "obb": [2.0] * 8} for k in range(1, 13)]
    (finding,) = check_coco(store, coco)
    assert finding.message.startswith("12 annotations")
    assert finding.message.endswith(": 1, 2, 3, 4, 5 and 7 more")


def manifest(rows: list[tuple[str, str, list[str], str | None]]) -> pl.DataFrame:
    schema = {"dataset": pl.String, "patient_id": pl.String, "fold_splits": pl.List(pl.String)}
    return pl.DataFrame(rows, schema={**schema, "quarantine_reason": pl.String}, orient="row")


def test_patients_in_two_splits_are_an_error_within_their_dataset_only() -> None:
    rows = [
        ("d", "p1", ["train", "train"], None),
        ("d", "p1", ["train", "val"], None),
        ("e", "p1", ["test", "test"], None),
        ("d", "p2", ["test", "test"], None),
        ("d", "p2", ["val", "val"], "truncated"),
    ]
    assert check_patients_disjoint(manifest(rows), 0) == []
    assert check_patients_disjoint(manifest(rows), 1) == [
        Finding("ERROR", "1 patients in several splits of fold 1: d: p1")
    ]
    assert "4 images without a split in fold 2" in check_patients_disjoint(manifest(rows), 2)[0].message


def test_images_in_two_splits_are_an_error() -> None:
    images = {"train": {"images": [{"image_id": "a"}, {"image_id": "a"}]}, "val": {"images": [{"image_id": "b"}]}}
    assert check_images_disjoint(images) == []
    images["val"]["images"].append({"image_id": "a"})
    assert check_images_disjoint(images) == [Finding("ERROR", "1 images in several splits: a")]


def test_classes_missing_in_a_split_are_warnings() -> None:
    counts = {"train": {1: 5, 2: 1}, "val": {1: 1, 2: 0}, "test": {}}
    findings = check_classes_present(counts, {1: "one", 2: "two", 3: "three"})
    assert findings == [
        Finding("WARN", "1 classes without any annotation in any split: three"),
        Finding("WARN", "1 classes that other splits have are missing in val: two"),
        Finding("WARN", "2 classes that other splits have are missing in test: one, two"),
    ]


def test_a_built_fold_passes_but_for_missing_images_and_classes(store: ArtefactStore) -> None:
    lane = FakeLane(store, "uwf700")
    image = frames_of((100, 100))
    for split in ("train", "val", "test"):
        label = lane.write_label(f"{split}.txt", "4 0 0 1 0 1 1 0 1")
        lane.add(split, image, [label], split=split)
    rows = lane.finish()
    labels = LabelConfiguration(format="obb", classes=("vascularite",))
    with pytest.raises(FileNotFoundError):
        check_split(store, "uwf700", 0, "train", rows)
    for split in ("train", "val", "test"):
        build_coco_split(store, "uwf700", lane.raw_folder, labels, load_class_map(), fold=0, split=split, manifest=rows)
    for split in ("train", "val", "test"):
        findings = check_split(store, "uwf700", 0, split, rows)
        assert len(findings) == 2
        assert all("image files that do not exist" in finding.message for finding in findings)
        assert findings[0].message.startswith(f"labels_coco/uwf700_{split}.json: 1 image files")
        assert check_split(store, "uwf700", 0, split, rows, persisted=()) == []
