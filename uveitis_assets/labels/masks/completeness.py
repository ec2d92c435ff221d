"""Which images lack the mask file of some lesion folder of their lane.

Whether a missing mask means "no such lesion" or "nobody looked" is in no file: it is counted, and the
configuration decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from uveitis_assets.labels.class_map import LabelSpace
from uveitis_assets.labels.masks.lesion_masks import mask_folder


def missing_masks(
    manifest: pl.DataFrame, label_space: LabelSpace, rows: Iterable[Mapping[str, Any]]
) -> dict[str, list[str]]:
    """Lesion folders of the lane without a mask of an image, sorted, per image that lacks any.

    A folder belongs to the lane when it holds a mask of any of its images, and counts when its lesions are kept.

    Args:
        manifest: all rows of the lane, with ``label_format`` and ``label_paths``.
        label_space: meaning of the folders and what is kept.
        rows: the images asked about.
    """

    def folders_of(paths: Iterable[str]) -> set[str]:
        folders = {mask_folder(path, label_space) for path in paths}
        return {folder for folder in folders if label_space.category_ids.get(folder) in label_space.kept}

    paths = manifest.filter(pl.col("label_format") == "mask")["label_paths"].explode().drop_nulls()
    # One path per folder is enough.
    of_lane = folders_of(paths.str.replace(r"[^/]*$", "mask").unique())
    missing = {row["image_id"]: sorted(of_lane - folders_of(row["label_paths"] or ())) for row in rows}
    return {image_id: folders for image_id, folders in missing.items() if folders}
