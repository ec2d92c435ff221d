"""Reads registered images back from manifests, for work that spans lanes: the reference colours."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import polars as pl

from uveitis_assets.landing.manifest_table import FILES_SCHEMA, MANIFEST_SCHEMA, read_manifest
from uveitis_assets.landing.samples import RegisteredImage
from uveitis_assets.storage.store import ArtefactStore


def manifest_images(store: ArtefactStore, lanes: Sequence[str], datasets: Collection[str]) -> list[RegisteredImage]:
    """Usable images of the given dataset tags over several lanes' manifests, sorted by image id.

    Images whose file names are hidden (``identify_by_content``) cannot be found this way and are left out.
    """
    frames = [read_manifest(store, lane) for lane in lanes]
    usable = (
        pl.concat([pl.DataFrame(schema=MANIFEST_SCHEMA | FILES_SCHEMA), *frames], how="diagonal")
        .filter(
            pl.col("quarantine_reason").is_null() & pl.col("dataset").is_in(list(datasets)) & (pl.col("filepath") != "")
        )
        .select("image_id", "dataset", "filepath", "content_hash", *FILES_SCHEMA)
        .sort("image_id")
    )
    return [
        RegisteredImage(
            image_id=image_id,
            dataset=dataset,
            path=store.root / filepath,
            content_hash=content_hash,
            files=tuple(store.root / file for file in files or ()),
            file_hashes=tuple(file_hashes or ()),
        )
        for image_id, dataset, filepath, content_hash, files, file_hashes in usable.iter_rows()
    ]
