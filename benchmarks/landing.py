"""Landing benchmark: the unchanged-folder look, registration and export over many small files.

Prints ratios measured in one run: the landing sensor's unchanged look (`landing_fingerprint`, `records_stamp`) over a
bare recursive ``os.scandir`` (names only), file opens per newly registered file, and the seconds of register (first,
unchanged), of all manifest parts, of the export, and of the comparison of all indexes with the ledger.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from uveitis_assets.fundus.configuration import STAGES
from uveitis_assets.fundus.stage_schemas import STAGE_SCHEMAS
from uveitis_assets.fundus.stale_preprocessing import stale_preprocessing
from uveitis_assets.landing.change_detection import landing_fingerprint
from uveitis_assets.landing.configuration import DatasetConfiguration, SplitConfiguration
from uveitis_assets.landing.ledger import registered_batches
from uveitis_assets.landing.manifest import build_manifest_part, export_manifest
from uveitis_assets.landing.registration import register
from uveitis_assets.landing.splits_files import write_splits_files
from uveitis_assets.sample import write_many_small
from uveitis_assets.stages.index import write_stage_index
from uveitis_assets.stages.stale_batches import records_stamp
from uveitis_assets.storage.store import ArtefactStore


def bare_walk(folder: str) -> int:
    """Count files by a recursive ``os.scandir`` that looks at names only."""
    n_files, pending = 0, [folder]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    n_files += 1
    return n_files


def write_indexes(store: ArtefactStore, lane: str, batches: list[str]) -> None:
    """Write the stage indexes of a lane that was preprocessed, without its artefacts."""
    columns = ["image_id", "content_hash", "quarantine_reason"]
    for batch in batches:
        part = pl.read_parquet(store.manifest_part(lane, batch), columns=columns)
        for stage in STAGES:
            write_stage_index(store.stage_index(lane, stage, batch), STAGE_SCHEMAS[stage], part.to_dicts())


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        store = ArtefactStore(root=Path(temporary), raw=Path(temporary) / "raw")
        folder = store.raw / "many"
        write_many_small(folder, arguments.files)
        dataset = DatasetConfiguration(name="many", layout="image_folder", folder="many")

        opens = 0
        real_open = os.open

        def counting_open(*args: object, **kwargs: object) -> int:
            nonlocal opens
            opens += str(args[0]).endswith(".jpg")
            return real_open(*args, **kwargs)  # type: ignore[arg-type]

        os.open = counting_open  # type: ignore[assignment]
        first = seconds(lambda: register(store, dataset))
        os.open = real_open
        unchanged = seconds(lambda: register(store, dataset))

        bare, look, records, ticks = [], [], [], []
        for tick in range(15):  # interleaved, so that both meet the same machine
            bare.append(seconds(lambda: bare_walk(str(folder))))
            look.append(seconds(lambda tick=tick: landing_fingerprint(store, dataset, tick)))
            records.append(seconds(lambda: records_stamp(store, "many", STAGES)))
            ticks.append(landing_fingerprint(store, dataset, tick))
        assert len(set(ticks)) == 1, "the fingerprint of an unchanged folder changed"

        batches = registered_batches(store, "many")
        parts = seconds(lambda: [build_manifest_part(store, dataset, SplitConfiguration(), key) for key in batches])
        export = seconds(lambda: export_manifest(store, dataset, SplitConfiguration()))
        splits = seconds(lambda: write_splits_files(store, "stage0", 5))
        write_indexes(store, "many", batches)
        compare = seconds(lambda: stale_preprocessing(store, "many"))
        assert stale_preprocessing(store, "many").batches == ()

    print(f"files                                {arguments.files}")
    print(f"bare scandir                         {1e3 * float(np.median(bare)):.1f} ms")
    print(f"landing_fingerprint                  {1e3 * float(np.median(look)):.1f} ms")
    print(f"records_stamp                        {1e3 * float(np.median(records)):.2f} ms")
    unchanged_look = float(np.median(look)) + float(np.median(records))
    print(f"both / bare scandir                  {unchanged_look / float(np.median(bare)):.2f} (limit 3)")
    print(f"register, all new                    {first:.1f} s")
    print(f"opens per new file                   {opens / arguments.files:.3f}")
    print(f"register, unchanged                  {unchanged:.1f} s")
    print(f"manifest parts ({len(batches)} batches)          {parts:.1f} s")
    print(f"manifest export                      {export:.1f} s")
    print(f"splits files                         {splits:.1f} s")
    print(f"all indexes compared with the ledger {compare:.1f} s")


if __name__ == "__main__":
    main()
