"""Digest of a batch's ledger rows, by which results made from other rows are found to be stale.

Everything that a manifest row, a split or a label file is made from enters; sizes and times of files do not, because
they change without the content. The digest is keyed: readers of an artefact cannot confirm a guessed patient.
"""

from __future__ import annotations

import hashlib
import json

import polars as pl

_COLUMNS = (
    "image_id",
    "relative_path",
    "dataset",
    "patient",
    "eye",
    "label_format",
    "label_paths",
    "notes",
    "official_split",
    "content_hash",
    "width",
    "height",
    "quarantine_reason",
    "duplicate_of",
    "label_fingerprint",
    "split_dataset",
    "split_patient",
    "patient_official_split",
)


def registered_states(ledger: pl.DataFrame, key: bytes) -> dict[str, str]:
    """16 hex digits per batch that change when what is registered about its live images changes.

    Args:
        ledger: rows of the ledger, all of each batch.
        key: of the installation, at most 64 bytes.
    """
    batches = ledger["batch"].unique().sort().to_list()
    digests = {batch: hashlib.blake2b(digest_size=8, key=key) for batch in batches}
    # Only ledgers with samples of several files have the column, and only those samples' rows hold it.
    files = [column for column in ("files",) if column in ledger.columns]
    live = ledger.filter(pl.col("state") == "live").sort("batch", "image_id").select("batch", *_COLUMNS, *files)
    for batch, *row in live.iter_rows():
        if files and not row[-1]:
            row.pop()
        digests[batch].update(json.dumps(row).encode() + b"\n")
    return {batch: digest.hexdigest() for batch, digest in digests.items()}
