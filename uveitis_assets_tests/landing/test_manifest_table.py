"""Parts of the manifest: damaged ones, those from before a column was added, and readers that wait for writers."""

import fcntl
import io
import re
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest

from uveitis_assets.landing.configuration import SplitConfiguration
from uveitis_assets.landing.manifest import build_manifest_part, export_manifest
from uveitis_assets.landing.manifest_table import read_manifest
from uveitis_assets.landing.splits_files import write_splits_files
from uveitis_assets_tests.landing.landing_samples import build, land, lane, rows
from uveitis_assets_tests.patience import patience


def test_parts_without_a_later_column_are_read_with_nulls(store):
    for number in range(2):
        land(store, f"{number}.jpg")
    build(store, lane(batch_size=1))
    first = store.manifest_part("lane", "b00001")
    pl.read_parquet(first).drop("label_hashes").write_parquet(first)
    assert [row["label_hashes"] for row in rows(store).values()] == [None, []]


DAMAGES = {
    "garbage": lambda data: b"garbage",
    "empty": lambda data: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "another table": lambda data: parquet_of(other=[1]),
}


def parquet_of(**columns):
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_replaced_by_its_own_batch_and_named_to_all_others(store, damage):
    for number in range(3):
        land(store, f"{number}.jpg")
    build(store, lane(batch_size=1))
    part = store.manifest_part("lane", "b00002")
    whole = part.read_bytes()
    part.write_bytes(DAMAGES[damage](whole))
    named = (
        rf"^{re.escape(str(part))}: expected the manifest rows of a batch, found .*; delete the file and materialize "
        r"lane/manifest\[b00002\] again$"
    )
    for use in (
        lambda: read_manifest(store, "lane"),
        lambda: export_manifest(store, lane(batch_size=1), SplitConfiguration()),
        lambda: write_splits_files(store, "stage0", 5),
        lambda: build_manifest_part(store, lane(batch_size=1), SplitConfiguration(seed=7), "b00003"),
    ):
        with pytest.raises(ValueError, match=named):
            use()
    build_manifest_part(store, lane(batch_size=1), SplitConfiguration(), "b00002")
    assert part.read_bytes() == whole
    assert len(read_manifest(store, "lane")) == 3


def test_a_damaged_last_part_is_replaced_too(store):
    for number in range(2):
        land(store, f"{number}.jpg")
    build(store, lane(batch_size=1))
    part = store.manifest_part("lane", "b00002")
    whole = part.read_bytes()
    part.write_bytes(b"garbage")
    build_manifest_part(store, lane(batch_size=1), SplitConfiguration(), "b00002")
    assert part.read_bytes() == whole


@pytest.fixture
def asked(monkeypatch):
    """Events that are set when any thread asks for the lock file of their name, just before it waits for it."""
    events = defaultdict(threading.Event)
    real = fcntl.flock

    def announcing(handle, operation):
        events[Path(handle.name).name].set()
        return real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", announcing)
    return events


@pytest.mark.parametrize("action", ["build", "export", "read"])
def test_building_exporting_and_reading_a_lane_take_turns(store, asked, action):
    land(store, "a.jpg")
    build(store, lane())
    actions = {
        "build": lambda: build_manifest_part(store, lane(), SplitConfiguration(), "b00001"),
        "export": lambda: export_manifest(store, lane(), SplitConfiguration()),
        "read": lambda: read_manifest(store, "lane"),
    }
    with ThreadPoolExecutor(1) as pool:
        with store.lock("lane.manifest"):
            asked.clear()
            waiting = pool.submit(actions[action])
            assert asked["lane.manifest.lock"].wait(patience(20))
            assert not waiting.done()
        waiting.result(timeout=patience(20))
