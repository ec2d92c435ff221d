"""Which batches are stale: every change makes stale what it affects, and nothing else."""

import os
import time

import pytest

from uveitis_assets.fundus.configuration import STAGES
from uveitis_assets.fundus.stale_preprocessing import stale_preprocessing
from uveitis_assets.landing.configuration import DatasetConfiguration, SplitConfiguration
from uveitis_assets.landing.ledger import registered_batches
from uveitis_assets.landing.manifest import build_manifest_part
from uveitis_assets.landing.registration import register
from uveitis_assets.stages.index import read_stage_index
from uveitis_assets.stages.stale_batches import records_stamp
from uveitis_assets.stages.suspect_files import report_damage
from uveitis_assets_tests.fundus.preprocess_inputs import preprocess_registered
from uveitis_assets_tests.landing.landing_samples import jpeg, land

DATASET = DatasetConfiguration(name="lane", layout="uwf700", folder="ds", batch_size=2)


def materialize(store, batches=None, stages=STAGES):
    for batch in batches or registered_batches(store, "lane"):
        build_manifest_part(store, DATASET, SplitConfiguration(), batch)
        preprocess_registered(store, DATASET, batch, stages)


@pytest.fixture
def made(store):
    """Four labelled images in two batches, all of it materialized."""
    for number in range(4):
        land(store, f"Images/Uveitis/{number}.jpg", jpeg(number, size=(80, 60)))
        land(store, f"Labels/Uveitis/{number}.txt", b"1 0 0 1 0 1 1 0 1\n")
    register(store, DATASET)
    materialize(store)
    assert stale_preprocessing(store, "lane").batches == ()
    return store


def after_registration(store):
    register(store, DATASET)
    found = stale_preprocessing(store, "lane")
    assert found.states.keys() == set(found.batches)
    return found.manifest, found.preprocessing


def test_an_unregistered_lane_has_nothing_to_do(store):
    assert stale_preprocessing(store, "lane").batches == ()


def test_what_was_never_made_or_made_in_part_is_stale(store):
    land(store, "Images/Uveitis/1.jpg", jpeg(1, size=(80, 60)))
    assert after_registration(store) == (("b00001",), ("b00001",))
    materialize(store, stages=["roi_masks"])
    assert after_registration(store) == ((), ("b00001",))
    materialize(store)
    assert after_registration(store) == ((), ())


def test_touched_files_with_the_same_content_make_nothing_stale(made):
    image = made.raw / "ds" / "Images" / "Uveitis" / "1.jpg"
    os.utime(image, (time.time() - 5, time.time() - 5))
    assert after_registration(made) == ((), ())


@pytest.mark.parametrize(
    ("change", "manifest", "preprocessing"),
    [
        ("new", ("b00003",), ("b00003",)),
        ("gone", ("b00001",), ("b00001",)),
        ("changed", ("b00001", "b00003"), ("b00001", "b00003")),
        ("renamed", ("b00001",), ()),
        ("relabelled", ("b00001",), ()),
        ("label gone", ("b00001",), ()),
    ],
)
def test_each_change_makes_stale_what_it_affects(made, change, manifest, preprocessing):
    folder = made.raw / "ds"
    image, label = folder / "Images" / "Uveitis" / "1.jpg", folder / "Labels" / "Uveitis" / "1.txt"
    match change:
        case "new":
            land(made, "Images/Uveitis/new.jpg", jpeg(9, size=(80, 60)))
        case "gone":
            image.unlink()
        case "changed":
            land(made, "Images/Uveitis/1.jpg", jpeg(9, size=(80, 60)))
        case "renamed":
            image.rename(image.with_name("other.jpg"))
            label.rename(label.with_name("other.txt"))
        case "relabelled":
            label.write_bytes(b"2 0 0 1 0 1 1 0 1\n")
        case _:
            label.unlink()
    assert after_registration(made) == (manifest, preprocessing)
    assert after_registration(made) == (manifest, preprocessing), "a second registration forgets nothing"
    materialize(made, manifest)
    assert after_registration(made) == ((), ())


def test_a_file_that_was_missing_while_its_batch_ran_makes_the_batch_stale(made):
    land(made, "Images/Uveitis/new.jpg", jpeg(9, size=(80, 60)))
    register(made, DATASET)
    image = made.raw / "ds" / "Images" / "Uveitis" / "new.jpg"
    away = image.rename(made.root / "away.jpg")
    materialize(made, ["b00003"])
    found = stale_preprocessing(made, "lane")
    assert (found.manifest, found.preprocessing) == (("b00003",), ("b00003",))
    away.rename(image)
    materialize(made, ["b00003"])
    assert stale_preprocessing(made, "lane").batches == ()


def test_a_broken_image_is_quarantined_once_and_leaves_nothing_stale(made):
    land(made, "Images/Uveitis/broken.jpg", jpeg(9, size=(80, 60))[:-300])
    register(made, DATASET)
    materialize(made, ["b00003"])
    assert stale_preprocessing(made, "lane").batches == ()


def test_a_damaged_record_is_stale(made):
    made.stage_index("lane", "tiles", "b00002").write_bytes(b"PAR1")
    made.manifest_part("lane", "b00001").write_bytes(b"PAR1")
    found = stale_preprocessing(made, "lane")
    assert (found.manifest, found.preprocessing) == (("b00001",), ("b00002",))


def test_a_batch_with_a_file_that_a_reader_found_damaged_is_stale_until_its_next_run(made):
    path = next(path for path in sorted((made.root / "preproc" / "roi_masks").glob("*.png")))
    rows = read_stage_index(made.stage_index("lane", "roi_masks", "b00001"))
    assert path.stem in {row["key"] for row in rows.values()}
    assert report_damage(made, path)
    assert stale_preprocessing(made, "lane").preprocessing == ("b00001",)
    materialize(made, ["b00001"])
    assert stale_preprocessing(made, "lane").batches == ()


def test_the_state_of_a_batch_is_another_one_after_each_change(made):
    image = made.raw / "ds" / "Images" / "Uveitis" / "1.jpg"
    content = image.read_bytes()
    image.unlink()
    register(made, DATASET)
    gone = stale_preprocessing(made, "lane").states
    made.stage_index("lane", "tiles", "b00002").unlink()
    assert stale_preprocessing(made, "lane").states["b00001"] == gone["b00001"]
    (made.raw / "ds" / "Labels" / "Uveitis" / "0.txt").write_bytes(b"")
    register(made, DATASET)
    relabelled = stale_preprocessing(made, "lane").states
    assert relabelled["b00001"] != gone["b00001"]
    image.write_bytes(content)
    register(made, DATASET)
    assert stale_preprocessing(made, "lane").states["b00001"] not in (gone["b00001"], relabelled["b00001"])


def test_there_is_no_stamp_while_records_are_written_and_it_changes_with_every_record(made):
    assert records_stamp(made, "lane", STAGES) is None
    settle(made, 100)
    before = records_stamp(made, "lane", STAGES)
    assert before is not None
    assert records_stamp(made, "lane", STAGES) == before
    records = (
        made.ledger_file("lane"),
        made.manifest_part("lane", "b00001"),
        *(made.stage_index("lane", stage, "b00002") for stage in STAGES),
    )
    for age_s, record in enumerate(records, start=200):
        data = record.read_bytes()
        record.unlink()
        record.write_bytes(data)
        assert records_stamp(made, "lane", STAGES) != before, record
        settle(made, age_s)
        before = records_stamp(made, "lane", STAGES)
        assert before is not None


def settle(store, age_s):
    """Let all records look as if they had been written a while ago."""
    then = time.time() - age_s
    for top in ("ledger", "index"):
        for path in [store.root / top, *(store.root / top).rglob("*")]:
            os.utime(path, (then, then))
