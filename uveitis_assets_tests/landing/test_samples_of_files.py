"""Samples of several files: folders of five slices that land, lose, change and gain files, and move."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pytest
from blake3 import blake3

from uveitis_assets.landing.change_detection import landing_fingerprint
from uveitis_assets.landing.configuration import SplitConfiguration
from uveitis_assets.landing.content_hash import sample_content_hash
from uveitis_assets.landing.layouts import Layout, register_layout, unregister_layout
from uveitis_assets.landing.ledger import read_ledger, registered_images
from uveitis_assets.landing.manifest import build_manifest_part, export_manifest
from uveitis_assets.landing.manifest_images import manifest_images
from uveitis_assets.landing.manifest_table import read_manifest
from uveitis_assets.landing.registration import register
from uveitis_assets.landing.samples import LandedSample, LandingScan
from uveitis_assets.stages.stale_batches import stale_batches
from uveitis_assets_tests.landing.landing_samples import build, jpeg, land, lane, later, live
from uveitis_assets_tests.landing.series_layout import SERIES


@pytest.fixture
def series():
    register_layout(SERIES)
    yield lane("series", batch_size=2)
    unregister_layout(SERIES.name)


def slices(store, folder, seed=0):
    """Five files of a folder; their content follows the seed."""
    return [land(store, f"{folder}/{number}.slice", f"slice {number} of {seed}".encode()) for number in range(5)]


@pytest.fixture
def landed(store, series):
    """Three registered series and their manifest."""
    for seed, folder in enumerate(("one", "two", "deep/no.3")):
        slices(store, folder, seed)
    build(store, series)
    return store


def hashes_of(files):
    return [blake3(file.read_bytes()).hexdigest() for file in files]


def detail_of(store, image_id):
    (entry,) = (entry for entry in live(store).values() if entry.image_id == image_id)
    return entry.quarantine_detail


def manifest_rows(store):
    return {row["image_id"]: row for row in read_manifest(store, "lane").iter_rows(named=True)}


def test_series_land_in_batches_with_all_their_files_in_order(landed, series):
    first = registered_images(landed, series, "b00001")
    assert [image.image_id for image in first] == ["lane::no.3", "lane::one"]
    one = first[1]
    files = [landed.raw / "ds" / "one" / f"{number}.slice" for number in range(5)]
    assert (one.path, one.files) == (landed.raw / "ds" / "one", tuple(files))
    assert one.file_hashes == tuple(hashes_of(files))
    assert one.content_hash == blake3("\n".join(sorted(hashes_of(files))).encode()).hexdigest()
    assert (live(landed)["one"].width, live(landed)["one"].height) == (None, None)
    assert live(landed)["one"].size == sum(file.stat().st_size for file in files)
    assert register(landed, series).n_unchanged == 3


def test_every_file_is_read_once_and_not_again_when_nothing_changes(store, series, opened):
    for seed in range(4):
        slices(store, f"s{seed}", seed)
    register(store, series)
    read = [path for path in opened if path.endswith(".slice")]
    assert len(read) == len(set(read)) == 20
    opened.clear()
    later(store.raw / "ds" / "s0" / "0.slice")
    assert register(store, series).n_unchanged == 4
    assert {path.rpartition("/")[0] for path in opened if path.endswith(".slice")} == {str(store.raw / "ds" / "s0")}


def test_a_series_that_lost_a_file_is_set_aside_by_its_name_and_comes_back_with_it(landed, series):
    batch = live(landed)["one"].batch
    kept = live(landed)["one"].content_hash
    lost = landed.raw / "ds" / "one" / "3.slice"
    content = lost.read_bytes()
    lost.unlink()
    report = register(landed, series)
    assert (report.quarantined, report.touched_batches) == ({"lane::one": "missing"}, (batch,))
    assert (report.changed, report.new_batches, report.gone) == ((), (), ())
    detail = detail_of(landed, "lane::one")
    assert detail.startswith("one/3.slice: registered as one of 5 files of one, not there now; restore it")
    assert live(landed)["one"].content_hash == kept
    assert register(landed, series).touched_batches == ()
    build_manifest_part(landed, series, SplitConfiguration(), batch)
    assert manifest_rows(landed)["lane::one"]["quarantine_reason"] == "missing"
    lost.write_bytes(content)
    report = register(landed, series)
    assert (report.quarantined, report.touched_batches, report.new_batches) == ({}, (batch,), ())
    assert (live(landed)["one"].batch, live(landed)["one"].content_hash) == (batch, kept)


def test_a_series_without_one_of_its_files_lands_as_another_sample_under_another_name(landed, series):
    (landed.raw / "ds" / "one" / "3.slice").unlink()
    register(landed, series)
    (landed.raw / "ds" / "one").rename(landed.raw / "ds" / "one without 3")
    report = register(landed, series)
    assert (report.gone, report.new) == (("lane::one",), ("lane::one without 3",))
    assert report.quarantined == {}
    assert len(live(landed)["one without 3"].files) == 4


@pytest.mark.parametrize("change", ["one file has other content", "one file more", "one file replaced by another name"])
def test_a_changed_series_keeps_its_id_in_a_new_batch(landed, series, change):
    folder = landed.raw / "ds" / "one"
    if change == "one file has other content":
        (folder / "2.slice").write_bytes(b"slice of another kind")
    else:
        (folder / "9.slice").write_bytes(b"slice that came later")
    if change == "one file replaced by another name":
        (folder / "2.slice").unlink()
    before = live(landed)["one"]
    report = register(landed, series)
    assert (report.changed, report.new_batches) == (("lane::one",), ("b00003",))
    assert report.touched_batches == (before.batch,)
    assert [entry.state for entry in read_ledger(landed, "lane") if entry.image_id == "lane::one"] == [
        "superseded",
        "live",
    ]
    (image,) = registered_images(landed, series, "b00003")
    assert image.file_hashes == tuple(hashes_of(sorted(folder.iterdir())))
    assert image.content_hash != before.content_hash


def test_a_renamed_folder_is_the_same_sample(landed, series):
    before = live(landed)["one"]
    (landed.raw / "ds" / "one").rename(landed.raw / "ds" / "moved")
    report = register(landed, series)
    assert (report.renamed, report.new, report.gone, report.new_batches) == (("lane::one",), (), (), ())
    after = live(landed)["moved"]
    assert (after.image_id, after.batch, after.content_hash) == (before.image_id, before.batch, before.content_hash)
    assert (after.files[0], after.patient) == ("moved/0.slice", "one")


def test_renamed_files_of_a_series_are_the_same_sample_and_its_manifest_names_them(landed, series):
    (landed.raw / "ds" / "one" / "4.slice").rename(landed.raw / "ds" / "one" / "a.slice")
    before = live(landed)["one"]
    report = register(landed, series)
    assert (report.n_unchanged, report.touched_batches) == (3, (before.batch,))
    assert live(landed)["one"].content_hash == before.content_hash
    assert stale_batches(landed, "lane", ()).manifest == (before.batch,)
    build_manifest_part(landed, series, SplitConfiguration(), before.batch)
    assert manifest_rows(landed)["lane::one"]["files"][-1] == "raw/ds/one/a.slice"
    assert stale_batches(landed, "lane", ()).manifest == ()


def test_a_removed_folder_is_gone_and_returns_into_its_batch(landed, series):
    batch = live(landed)["one"].batch
    shutil.move(landed.raw / "ds" / "one", landed.root / "elsewhere")
    assert register(landed, series).gone == ("lane::one",)
    shutil.move(landed.root / "elsewhere", landed.raw / "ds" / "one")
    report = register(landed, series)
    assert (report.returned, report.new) == (("lane::one",), ())
    assert live(landed)["one"].batch == batch


def test_a_folder_that_cannot_be_listed_is_not_gone(landed, series, monkeypatch):
    before = live(landed)
    real = os.scandir

    def refuse(path):
        if str(path).endswith("/two"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report = register(landed, series)
    assert report.gone == ()
    assert [(problem.path, problem.reason) for problem in report.problems] == [("two/", "unreadable")]
    assert live(landed).keys() == before.keys()


def test_a_copied_folder_is_a_duplicate_in_the_splits_of_the_first(landed, series):
    shutil.copytree(landed.raw / "ds" / "one", landed.raw / "ds" / "z copy")
    report = register(landed, series)
    assert report.duplicates == ("lane::z copy",)
    assert live(landed)["z copy"].duplicate_of == "lane::one"
    assert live(landed)["z copy"].split_patient == "one"


@pytest.mark.parametrize("obstacle", ["broken link", "link out of the folder", "pipe"])
def test_a_file_that_cannot_be_opened_sets_its_series_aside_and_is_named(landed, series, obstacle):
    files = slices(landed, "four", 4)
    files[2].unlink()
    if obstacle == "pipe":
        os.mkfifo(files[2])
    else:
        files[2].symlink_to("nowhere" if obstacle == "broken link" else "/etc/hostname")
    report = register(landed, series)
    reasons = {"broken link": "broken_symlink", "link out of the folder": "escapes_root", "pipe": "unreadable"}
    assert report.quarantined == {"lane::four": reasons[obstacle]}
    assert detail_of(landed, "lane::four").startswith("four/2.slice: ")
    assert [image.file_hashes for image in registered_images(landed, series, report.new_batches[0])] == [()]
    assert build_manifest_part(landed, series, SplitConfiguration(), report.new_batches[0]).n_usable == 0
    files[2].unlink()
    files[2].write_bytes(b"slice at last")
    report = register(landed, series)
    assert (report.changed, report.quarantined) == (("lane::four",), {})
    assert live(landed)["four"].content_hash == sample_content_hash(hashes_of(files))


def test_a_file_that_the_probe_refuses_sets_its_series_aside_and_is_named(landed, series):
    slices(landed, "four", 4)[1].write_bytes(b"no slice")
    assert register(landed, series).quarantined == {"lane::four": "not_an_image"}
    assert detail_of(landed, "lane::four").startswith("four/1.slice: expected a slice")
    assert register(landed, series).touched_batches == ()


def test_a_changed_label_of_a_series_relabels_it(landed, series):
    land(landed, "one.label", b"1")
    assert register(landed, series).relabelled == ("lane::one",)
    before = live(landed)["one"]
    land(landed, "one.label", b"other")
    assert register(landed, series).relabelled == ("lane::one",)
    assert live(landed)["one"].label_fingerprint != before.label_fingerprint
    assert live(landed)["one"].content_hash == before.content_hash


def test_the_sensor_s_look_notices_a_file_of_a_series_rewritten_in_place(landed, series):
    quiet = {landing_fingerprint(landed, series, tick) for tick in range(3)}
    assert len(quiet) == 1
    land(landed, "two/4.slice", b"slice rewritten")
    assert landing_fingerprint(landed, series) not in quiet
    register(landed, series)
    assert len({landing_fingerprint(landed, series, tick) for tick in range(3)}) == 1


def test_a_round_of_looks_counts_the_files_of_all_series(landed, series):
    quiet = landing_fingerprint(landed, series, 0, fewest_files_per_tick=5)
    land(landed, "two/4.slice", b"slice rewritten")
    # Three series of five files: three looks of one series each, sorted as registered (deep/no.3, one, two).
    looks = [landing_fingerprint(landed, series, tick, fewest_files_per_tick=5) != quiet for tick in range(3)]
    assert looks == [False, False, True]


def test_the_manifest_names_all_files_and_reports_those_gone_or_changed_since(landed, series):
    row = manifest_rows(landed)["lane::one"]
    files = [landed.raw / "ds" / "one" / f"{number}.slice" for number in range(5)]
    assert row["files"] == [landed.name_of(file) for file in files]
    assert row["file_hashes"] == hashes_of(files)
    assert (row["filepath"], row["width"], row["quarantine_reason"]) == ("raw/ds/one", None, None)
    files[1].write_bytes(b"slice of other size than before")
    (landed.raw / "ds" / "two" / "0.slice").unlink()
    for batch in ("b00001", "b00002"):
        build_manifest_part(landed, series, SplitConfiguration(), batch)
    found = manifest_rows(landed)
    assert found["lane::one"]["quarantine_reason"] == "changed_since_registration"
    assert found["lane::one"]["quarantine_detail"].startswith("one/1.slice: expected ")
    assert found["lane::two"]["quarantine_reason"] == "missing"
    assert found["lane::two"]["quarantine_detail"].startswith("two/0.slice: ")
    export_manifest(landed, series, SplitConfiguration())
    assert "files" not in pl.read_parquet_schema(landed.manifest_export("lane", "parquet"))


def test_series_are_read_back_from_the_manifest_with_their_files(landed, series):
    (three,) = (image for image in registered_images(landed, series, "b00001") if image.image_id == "lane::no.3")
    found = {image.image_id: image for image in manifest_images(landed, ["lane"], ["lane"])}
    assert (found["lane::no.3"].files, found["lane::no.3"].file_hashes) == (three.files, three.file_hashes)


def figures(dataset, tree):
    """Figures, each with its mask where there is one."""
    return LandingScan(
        tuple(
            LandedSample(
                relative_path=file,
                dataset=dataset.name,
                patient=file,
                files=(file, f"masks/{file}") if f"masks/{file}" in tree.files else (),
                roles=("image", "mask") if f"masks/{file}" in tree.files else (),
            )
            for file in tree.files
            if "/" not in file
        )
    )


@pytest.mark.parametrize("figure", ["unchanged", "changed"])
def test_a_figure_that_lost_its_mask_is_set_aside_and_one_that_changed_too_is_another(store, series, figure):
    register_layout(Layout("figures", figures, SERIES.probe))
    try:
        dataset = lane("figures")
        land(store, "a.slice", b"slice: a figure")
        mask = land(store, "masks/a.slice", b"slice: its mask")
        register(store, dataset)
        mask.unlink()
        if figure == "changed":
            land(store, "a.slice", b"slice: another figure")
        report = register(store, dataset)
        if figure == "unchanged":
            assert report.quarantined == {"lane::a": "missing"}
            assert detail_of(store, "lane::a").startswith("masks/a.slice: registered as one of 2 files of a.slice")
            land(store, "masks/a.slice", b"slice: its mask")
            assert register(store, dataset).quarantined == {}
        else:
            assert (report.changed, report.quarantined) == (("lane::a",), {})
            (image,) = registered_images(store, dataset, "b00002")
            assert (image.files, image.content_hash) == ((image.path,), blake3(b"slice: another figure").hexdigest())
    finally:
        unregister_layout("figures")


def test_two_registrations_at_once_agree(store, series):
    for seed in range(12):
        slices(store, f"s{seed:02d}", seed)
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda _: register(store, series), range(2)))
    assert sorted(len(report.new) for report in reports) == [0, 12]
    assert len(read_ledger(store, "lane")) == 12


def test_a_time_budget_counts_files(store, series):
    for seed in range(3):
        slices(store, f"s{seed}", seed)
    reports = [register(store, series, time_budget_s=0.0, files_per_time_check=6) for _ in range(2)]
    assert [report.n_deferred for report in reports] == [1, 0]


def test_ledger_and_manifest_of_single_files_have_no_columns_of_several(store):
    land(store, "a.jpg", jpeg(1))
    build(store, lane())
    assert not {"files", "file_stamps", "file_hashes"}.intersection(
        pl.read_parquet_schema(store.ledger_file("lane")), pl.read_parquet_schema(store.manifest_part("lane", "b00001"))
    )
    (image,) = registered_images(store, lane(), "b00001")
    assert (image.files, image.file_hashes) == ((image.path,), (image.content_hash,))


def test_content_that_changes_its_role_makes_another_sample():
    hashes = [blake3(name).hexdigest() for name in (b"figure", b"mask")]
    assert sample_content_hash(hashes) == sample_content_hash(hashes[::-1])
    assert sample_content_hash(hashes, ("image", "mask")) == sample_content_hash(hashes[::-1], ("mask", "image"))
    assert sample_content_hash(hashes, ("image", "mask")) != sample_content_hash(hashes[::-1], ("image", "mask"))
    with pytest.raises(ValueError, match="expected one role per file, found 1 roles of 2 files"):
        LandedSample("a", "lane", "p", files=("a/1", "a/2"), roles=("image",))
