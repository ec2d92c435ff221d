"""The same photograph in two lanes that share a splits file: found by content, reported where its sides differ.

Patients are dealt per dataset tag, so that two lanes over one folder, or over copies of the same files, deal them
independently: a detector trained on the one would be tested on the other's copies. It mends nothing.
"""

from __future__ import annotations

import polars as pl

from uveitis_assets.landing.manifest_table import read_manifest
from uveitis_assets.storage.store import ArtefactStore

_EXAMPLES = 5


def photographs_on_two_sides(store: ArtefactStore, lane: str, split_name: str) -> list[str]:
    """Compare a lane's manifest with those of the other lanes of its split name, in every fold.

    Quarantined images do not count: they stand in no splits file.

    Returns:
        One sentence per other lane that holds some of the photographs on another side, with what to do.
    """
    others = [name for name in store.lanes_with_manifests() if name != lane]
    own = _sides(store, lane, split_name)
    messages = []
    for other in others:
        both = own.join(_sides(store, other, split_name), on=["content_hash", "fold"], suffix="_there")
        apart = both.filter(pl.col("side") != pl.col("side_there")).sort("image_id", "image_id_there", "fold")
        first = apart.unique(["image_id", "image_id_there"], keep="first", maintain_order=True)
        if first.is_empty():
            continue
        examples = [
            f"{row['image_id']} is {row['side']} and {row['image_id_there']} {row['side_there']} in fold {row['fold']}"
            for row in first.head(_EXAMPLES).iter_rows(named=True)
        ]
        more = f" and {first.height - _EXAMPLES} more" if first.height > _EXAMPLES else ""
        messages.append(
            f"{first.height} photographs stand on two sides of the splits {split_name}, their copies are in lane "
            f"{other}: {', '.join(examples)}{more}; keep them in one landing folder only, or give one of the lanes "
            "another `splits.name` and never train or evaluate on both"
        )
    return messages


def _sides(store: ArtefactStore, lane: str, split_name: str) -> pl.DataFrame:
    """Usable images with their side per fold: image_id, content_hash, fold, side."""
    usable = read_manifest(store, lane).filter(
        pl.col("quarantine_reason").is_null() & (pl.col("split_name") == split_name)
    )
    folds = pl.int_ranges(pl.col("fold_splits").list.len())
    sides = usable.select("image_id", "content_hash", fold=folds, side="fold_splits")
    return sides.explode("fold", "side")
