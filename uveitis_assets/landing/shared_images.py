"""Finds images of equal content in two lanes of one split name that are in different splits.

Patients are assigned per dataset tag, so that two lanes over one folder, or over copies of the same files, assign them
independently: a detector trained on the one would be tested on the other's copies.
"""

from __future__ import annotations

import polars as pl

from uveitis_assets.landing.manifest_table import read_manifest
from uveitis_assets.storage.store import ArtefactStore

_EXAMPLES = 5


def images_in_two_splits(store: ArtefactStore, lane: str, split_name: str) -> list[str]:
    """Compare a lane's manifest with those of the other lanes of its split name, in every fold.

    Quarantined images do not count: they are in no splits file.

    Returns:
        One sentence per other lane that has some of the images in another split, with what to do.
    """
    others = [name for name in store.lanes_with_manifests() if name != lane]
    own = _splits_by_fold(store, lane, split_name)
    messages = []
    for other in others:
        both = own.join(_splits_by_fold(store, other, split_name), on=["content_hash", "fold"], suffix="_there")
        apart = both.filter(pl.col("split") != pl.col("split_there")).sort("image_id", "image_id_there", "fold")
        first = apart.unique(["image_id", "image_id_there"], keep="first", maintain_order=True)
        if first.is_empty():
            continue
        examples = [
            "{image_id} is {split} and {image_id_there} {split_there} in fold {fold}".format(**one)
            for one in first.head(_EXAMPLES).iter_rows(named=True)
        ]
        more = f" and {first.height - _EXAMPLES} more" if first.height > _EXAMPLES else ""
        messages.append(
            f"{first.height} images are in two of the splits {split_name}, their copies are in lane "
            f"{other}: {', '.join(examples)}{more}; keep them in one landing folder only, or give one of the lanes "
            "another `splits.name` and never train or evaluate on both"
        )
    return messages


def _splits_by_fold(store: ArtefactStore, lane: str, split_name: str) -> pl.DataFrame:
    """Usable images with their split per fold: image_id, content_hash, fold, split."""
    usable = read_manifest(store, lane).filter(
        pl.col("quarantine_reason").is_null() & (pl.col("split_name") == split_name)
    )
    folds = pl.int_ranges(pl.col("fold_splits").list.len())
    by_fold = usable.select("image_id", "content_hash", fold=folds, split="fold_splits")
    return by_fold.explode("fold", "split")
