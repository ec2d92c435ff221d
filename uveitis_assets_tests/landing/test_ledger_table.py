"""A damaged ledger is named, with what to do, by everything that reads it; a lost one is not replaced."""

import io
import re
import shutil

import polars as pl
import pytest

from uveitis_assets.fundus.stale_preprocessing import stale_preprocessing
from uveitis_assets.landing.change_detection import landing_fingerprint
from uveitis_assets.landing.configuration import DatasetConfiguration, SplitConfiguration
from uveitis_assets.landing.ledger import read_ledger, registered_batches, registered_images
from uveitis_assets.landing.ledger_table import LedgerError, ledger_read_errors, scan_ledger
from uveitis_assets.landing.manifest import build_manifest_part, export_manifest
from uveitis_assets.landing.registration import register
from uveitis_assets.stages.batch_ownership import batch_ownership, ids_owned_by_other_batches
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.landing.landing_samples import jpeg, land

LANE = DatasetConfiguration(name="lane", layout="image_folder", folder="ds", batch_size=2)
READERS = {
    "register": lambda store: register(store, LANE),
    "all entries": lambda store: read_ledger(store, "lane"),
    "batches": lambda store: registered_batches(store, "lane"),
    "images": lambda store: registered_images(store, LANE, "b00001"),
    "landing sensor": lambda store: landing_fingerprint(store, LANE),
    "stale batches": lambda store: stale_preprocessing(store, "lane"),
    "ownership": lambda store: batch_ownership(store, "lane", "b00001"),
    "other batches": lambda store: ids_owned_by_other_batches(store, "lane", "b00001", ["lane::0"]),
    "manifest part": lambda store: build_manifest_part(store, LANE, SplitConfiguration(), "b00001"),
    "manifest": lambda store: export_manifest(store, LANE, SplitConfiguration(seed=3)),
}


def parquet_of(frame):
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def with_broken_pages(data):
    """Parquet whose footer is whole: it ends in the footer's length and a mark of four bytes each."""
    footer = 8 + int.from_bytes(data[-8:-4], "little")
    return data[:4] + b"\xff" * (len(data) - 4 - footer) + data[-footer:]


DAMAGES = {
    "garbage": lambda path: b"garbage",
    "empty": lambda path: b"",
    "cut off": lambda path: path.read_bytes()[: path.stat().st_size // 2],
    "data overwritten": lambda path: with_broken_pages(path.read_bytes()),
    "another table": lambda path: parquet_of(pl.DataFrame({"other": [1]})),
    "another type": lambda path: parquet_of(
        pl.read_parquet(path).with_columns(*[pl.lit(1).alias(name) for name in ("image_id", "batch")])
    ),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("finished")
    store = ArtefactStore(root=root, raw=root / "raw")
    for number in range(40):
        land(store, f"{number}.jpg", jpeg(number))
    register(store, LANE)
    build_manifest_part(store, LANE, SplitConfiguration(), "b00001")
    return store


@pytest.fixture
def registered(finished, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(finished.root, root)
    return ArtefactStore(root=root, raw=root / "raw")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_ledger_is_named_with_what_to_do_and_left_alone(registered, reader, damage):
    path = registered.ledger_file("lane")
    damaged = DAMAGES[damage](path)
    path.write_bytes(damaged)
    message = (
        rf"^{re.escape(str(path))}: expected the ledger of lane, found [^\n]+; restore the file from the backup of the "
        rf"folder {re.escape(str(path.parent))}: it cannot be made again$"
    )
    with pytest.raises(LedgerError, match=message):
        READERS[reader](registered)
    assert path.read_bytes() == damaged


def test_a_table_stays_what_it_was_when_images_are_registered(registered):
    path = registered.ledger_file("lane")
    table = scan_ledger(path)
    land(registered, "more.jpg", jpeg(99))
    register(registered, LANE)
    with ledger_read_errors(path):
        assert table.select(pl.len()).collect().item() == 40
    assert len(read_ledger(registered, "lane")) == 41


def test_a_lost_ledger_is_asked_for_where_a_manifest_was_made_from_it_and_begun_anew_where_that_is_gone(registered):
    path = registered.ledger_file("lane")
    kept = path.read_bytes()
    path.unlink()
    index = registered.root / "index" / "lane"
    message = (
        rf"^{re.escape(str(path))}: expected the ledger that the manifest of lane was made from, found none; restore "
        rf"it from the backup of the folder {re.escape(str(path.parent))}\..* delete {re.escape(str(index))} and "
    )
    with pytest.raises(LedgerError, match=message):
        register(registered, LANE)
    assert not path.exists()
    path.write_bytes(kept)
    assert register(registered, LANE).n_unchanged == 40
    path.unlink()
    shutil.rmtree(index)
    assert len(register(registered, LANE).new) == 40


def test_another_lane_s_manifest_does_not_ask_for_a_ledger_that_never_was(registered):
    other = LANE.model_copy(update={"name": "other"})
    assert len(register(registered, other).new) == 40
