"""Checks of COCO files and splits: plain functions that return what they found.

ERROR means that training on the file would be wrong, WARN that someone should look.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from uveitis_assets.landing.samples import SPLITS, Split
from uveitis_assets.messages import enumeration
from uveitis_assets.storage.files import read_json
from uveitis_assets.storage.store import ArtefactStore

Severity = Literal["ERROR", "WARN"]
EDGE_NOISE_PX = 1e-6
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found; the message counts the cases and names the first few."""

    severity: Severity
    message: str


def check_ids(coco: Mapping[str, Any]) -> list[Finding]:
    """Ids are unique, and annotations refer to images and categories that exist."""
    findings: list[Finding] = []
    for group in ("images", "annotations", "categories"):
        counts = Counter(entry["id"] for entry in coco[group])
        findings += _finding("ERROR", f"{group} with an id that is not unique", [i for i, n in counts.items() if n > 1])
    images = {image["id"] for image in coco["images"]}
    categories = {category["id"] for category in coco["categories"]}
    annotations = coco["annotations"]
    orphans = [entry["id"] for entry in annotations if entry["image_id"] not in images]
    unknown = [entry["id"] for entry in annotations if entry["category_id"] not in categories]
    findings += _finding("ERROR", "annotations of an image that is not listed", orphans)
    findings += _finding("ERROR", "annotations of a category that is not listed", unknown)
    return findings


def check_boxes(coco: Mapping[str, Any]) -> list[Finding]:
    """Boxes are finite, have area in float32, lie inside their image, and ``area`` is right."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
    not_finite, empty, outside, area_differs = [], [], [], []
    for annotation in coco["annotations"]:
        x, y, width, height = annotation["bbox"]
        if not all(math.isfinite(value) for value in (x, y, width, height, annotation["area"])):
            not_finite.append(annotation["id"])
            continue
        if width <= 0 or height <= 0 or _is_empty_in_float32(x, y, width, height):
            empty.append(annotation["id"])
        image_width, image_height = sizes.get(annotation["image_id"], (math.inf, math.inf))
        right, bottom = image_width + EDGE_NOISE_PX, image_height + EDGE_NOISE_PX
        if x < -EDGE_NOISE_PX or y < -EDGE_NOISE_PX or x + width > right or y + height > bottom:
            outside.append(annotation["id"])
        segmentation = annotation["segmentation"]
        area = width * height if isinstance(segmentation, list) else sum(segmentation["counts"][1::2])
        if not math.isclose(annotation["area"], area, rel_tol=1e-6, abs_tol=1e-6):
            area_differs.append(annotation["id"])
    return [
        *_finding("ERROR", "annotations with a box that is not finite", not_finite),
        *_finding("ERROR", "annotations with a box without area", empty),
        *_finding("ERROR", "annotations with a box that leaves its image", outside),
        *_finding("ERROR", "annotations whose area is not that of their box or run lengths", area_differs),
    ]


def _is_empty_in_float32(x: float, y: float, width: float, height: float) -> bool:
    """Whether a detector, which computes in float32, would see a box without area."""
    lower, upper = np.array([x, y], np.float32), np.array([x + width, y + height], np.float32)
    return bool((upper <= lower).any())


def check_oriented_boxes(coco: Mapping[str, Any]) -> list[Finding]:
    """``obb`` is null or eight finite shares of the image."""
    wrong = [
        annotation["id"]
        for annotation in coco["annotations"]
        if annotation["obb"] is not None
        and not (len(annotation["obb"]) == 8 and all(0.0 <= value <= 1.0 for value in annotation["obb"]))
    ]
    return _finding("ERROR", "annotations with an obb other than eight numbers within 0..1", wrong)


def check_image_files(store: ArtefactStore, coco: Mapping[str, Any]) -> list[Finding]:
    """Every image that the COCO file names exists."""
    missing = [image["file_name"] for image in coco["images"] if not (store.root / image["file_name"]).is_file()]
    return _finding("ERROR", "image files that do not exist (made without them? see `persist`)", missing)


def check_classes_present(class_counts: Mapping[Split, Mapping[int, int]], names: Mapping[int, str]) -> list[Finding]:
    """Every category has annotations in every split: WARN, rare lesions may occur in few patients.

    Args:
        class_counts: per split, annotations per category id.
        names: the categories that labels of the lane can name.
    """
    found = {category_id for counts in class_counts.values() for category_id, n in counts.items() if n > 0}
    nowhere = [name for category_id, name in names.items() if category_id not in found]
    findings = _finding("WARN", "classes without any annotation in any split", nowhere, limit=len(names))
    for split, counts in class_counts.items():
        absent = [names[key] for key in sorted(found & set(names)) if counts.get(key, 0) == 0]
        findings += _finding("WARN", f"classes that other splits have are missing in {split}", absent, limit=len(names))
    return findings


def check_patients_disjoint(manifest: pl.DataFrame, fold: int) -> list[Finding]:
    """No patient of a dataset is in two splits of a fold; quarantined rows do not count."""
    rows = manifest.filter(pl.col("quarantine_reason").is_null()).select(
        "dataset", "patient_id", pl.col("fold_splits").list.get(fold, null_on_oob=True).alias("split")
    )
    unassigned = rows.filter(pl.col("split").is_null()).height
    splits = rows.drop_nulls("split").group_by("dataset", "patient_id").agg(pl.col("split").n_unique())
    shared = sorted(splits.filter(pl.col("split") > 1).select("dataset", "patient_id").iter_rows())
    findings = _finding("ERROR", f"patients in several splits of fold {fold}", [": ".join(row) for row in shared])
    if unassigned:
        findings.append(Finding("ERROR", f"{unassigned} images without a split in fold {fold}"))
    return findings


def check_images_disjoint(cocos: Mapping[Split, Mapping[str, Any]]) -> list[Finding]:
    """No source image is in the COCO files of two splits."""
    splits_of: dict[str, set[str]] = {}
    for split, coco in cocos.items():
        for image in coco["images"]:
            splits_of.setdefault(image["image_id"], set()).add(split)
    return _finding(
        "ERROR", "images in several splits", sorted(name for name, found in splits_of.items() if len(found) > 1)
    )


def check_coco(store: ArtefactStore, coco: Mapping[str, Any], *, images_written: bool = True) -> list[Finding]:
    """All checks of one file; ``images_written`` is false for a lane that does not persist its images."""
    return [
        *check_ids(coco),
        *check_boxes(coco),
        *check_oriented_boxes(coco),
        *(check_image_files(store, coco) if images_written else ()),
    ]


def check_split(
    store: ArtefactStore,
    lane: str,
    fold: int,
    split: Split,
    manifest: pl.DataFrame,
    *,
    persisted: Collection[str] = ("global", "tiles"),
    reachable: Mapping[int, str] | None = None,
) -> list[Finding]:
    """All checks of one split's COCO files, alone and beside the fold's other splits that are written.

    Args:
        store: where the COCO files lie.
        lane: the lane's name.
        fold: the fold's number.
        split: the split whose files are looked at.
        manifest: all rows of the lane.
        persisted: which images the lane writes.
        reachable: the categories that the lane's labels can name; None: all of the COCO file.

    Raises:
        FileNotFoundError: the split's files are not written yet.
    """
    findings = check_patients_disjoint(manifest, fold)
    for tiles in (False, True):
        path = store.coco_file(lane, split, fold, tiles=tiles)
        found = check_coco(store, read_json(path), images_written=("tiles" if tiles else "global") in persisted)
        findings += [Finding(one.severity, f"{store.name_of(path)}: {one.message}") for one in found]
    files = {name: store.coco_file(lane, name, fold, tiles=False) for name in SPLITS}
    cocos = {name: read_json(path) for name, path in files.items() if path.exists()}
    names = {category["id"]: category["name"] for category in cocos[split]["categories"]}
    counts = {name: Counter(entry["category_id"] for entry in coco["annotations"]) for name, coco in cocos.items()}
    return [
        *findings,
        *check_images_disjoint(cocos),
        *check_classes_present(counts, names if reachable is None else reachable),
    ]


def _finding(severity: Severity, what: str, cases: Sequence[object], *, limit: int = EXAMPLES) -> list[Finding]:
    if not cases:
        return []
    return [Finding(severity, f"{len(cases)} {what}: {enumeration(cases, limit)}")]
