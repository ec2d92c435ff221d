"""Sensors and schedule, tick by tick: exactly the runs that what landed calls for."""

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import cv2
import dagster as dg
import numpy as np
import pytest

from uveitis_assets.components.fundus.automation import lane_sensors
from uveitis_assets.components.fundus.keys import LANE_TAG
from uveitis_assets.fundus import stale_preprocessing
from uveitis_assets.landing.configuration import AutomationConfiguration
from uveitis_assets.landing.ledger_table import LedgerError
from uveitis_assets.sample import write_many_small
from uveitis_assets_tests.components.running_platform import Platform, requested

LANE = ("manifest", "normalized_crops", "roi_masks", "tiles")


def settle(platform: Platform, cursor: str | None) -> dg.SensorResult:
    """Tick until the landing sensor has registered what it saw arrive."""
    for _ in range(2):
        result = platform.tick("uwf700_landing", cursor)
        assert isinstance(result, dg.SensorResult)
        cursor = result.cursor
    return result


@pytest.fixture
def at_rest(finished: Platform) -> tuple[Platform, str]:
    """A finished lane of three batches, and the cursor of a sensor that has seen it."""
    finished.register("uwf700")
    result = settle(finished, None)
    assert requested(result.run_requests) == []
    assert result.cursor is not None
    return finished, result.cursor


def uveitis(platform: Platform, name: str) -> Path:
    return platform.store.raw / "uwf-700" / "Images" / "Uveitis" / name


def test_a_folder_that_is_not_there_is_waited_for(platform: Platform) -> None:
    result = platform.tick("uwf700_landing")
    assert isinstance(result, dg.SkipReason)
    assert "uwf-700 is not there yet" in str(result.skip_message)


def test_a_folder_that_was_there_is_reported_as_gone(at_rest: tuple[Platform, str]) -> None:
    platform, cursor = at_rest
    (platform.store.raw / "uwf-700").rename(platform.store.raw / "elsewhere")
    result = platform.tick("uwf700_landing", cursor)
    assert isinstance(result, dg.SkipReason)
    assert "uwf-700 is gone; mount or restore it" in str(result.skip_message)


def test_files_that_are_arriving_are_waited_for_and_then_run_once(platform: Platform, sample: Path) -> None:
    names = [f"Images/Uveitis/Uveitis-00{number}.jpg" for number in (1, 2, 3)]
    platform.land(sample, names[:1])
    first = platform.tick("uwf700_landing")
    assert isinstance(first, dg.SensorResult)
    assert requested(first.run_requests) == []
    platform.land(sample, names[1:])
    second = platform.tick("uwf700_landing", first.cursor)
    assert isinstance(second, dg.SensorResult)
    assert requested(second.run_requests) == []
    assert "arriving" in str(second.skip_reason)
    assert not platform.store.ledger_file("uwf700").exists()
    third = platform.tick("uwf700_landing", second.cursor)
    assert isinstance(third, dg.SensorResult)
    assert requested(third.run_requests) == [("b00001", "b00001", LANE)]
    assert platform.instance.get_dynamic_partitions("uwf700_batches") == ["b00001"]
    queued = platform.queue("uwf700", third.run_requests)
    fourth = platform.tick("uwf700_landing", third.cursor)
    assert isinstance(fourth, dg.SensorResult)
    assert requested(fourth.run_requests) == []
    assert "runs of b00001 are in progress" in str(fourth.skip_reason)
    assert platform.run("uwf700").success
    platform.end(queued, dg.DagsterRunStatus.SUCCESS)
    fifth = platform.tick("uwf700_landing", fourth.cursor)
    assert isinstance(fifth, dg.SensorResult)
    assert requested(fifth.run_requests) == []
    assert "nothing new" in str(fifth.skip_reason)


def test_a_folder_that_never_rests_is_registered_all_the_same(platform: Platform, sample: Path) -> None:
    platform.land(sample, ["Images/Uveitis/Uveitis-001.jpg"])
    cursor = None
    ticks = 0
    requests: list[tuple[str, str, tuple[str, ...]]] = []
    while not requests:
        shutil.copy(uveitis(platform, "Uveitis-001.jpg"), uveitis(platform, f"restless-{ticks}.jpg"))
        result = platform.tick("uwf700_landing", cursor)
        assert isinstance(result, dg.SensorResult)
        cursor, requests, ticks = result.cursor, requested(result.run_requests), ticks + 1
        assert ticks < 30
    assert ticks > 5
    assert requests == [("b00001", "b00001", LANE)]


def test_new_files_run_their_new_batch_only(at_rest: tuple[Platform, str]) -> None:
    platform, cursor = at_rest
    image = uveitis(platform, "Uveitis-001.jpg")
    image.with_name("Uveitis-900.jpg").write_bytes(image.read_bytes() + b"\0")
    result = settle(platform, cursor)
    assert requested(result.run_requests) == [("b00004", "b00004", LANE)]
    platform.queue("uwf700", result.run_requests)
    assert requested(settle(platform, result.cursor).run_requests) == []


def test_a_changed_file_runs_its_new_batch_and_the_batch_it_left(at_rest: tuple[Platform, str]) -> None:
    platform, cursor = at_rest
    batches = batch_of(platform)
    image = uveitis(platform, "Uveitis-001.jpg")
    image.write_bytes(uveitis(platform, "Uveitis-002.jpg").read_bytes() + b"\0")
    old = batches["uwf700::Uveitis-001"]
    assert requested(settle(platform, cursor).run_requests) == [("b00004", "b00004", LANE), (old, old, LANE)]


@pytest.mark.parametrize("change", ["renamed", "relabelled", "label added", "label removed"])
def test_what_only_describes_an_image_runs_the_manifest_of_its_batch(
    at_rest: tuple[Platform, str], change: str
) -> None:
    platform, cursor = at_rest
    labels = platform.store.raw / "uwf-700" / "Labels" / "Uveitis"
    name = "Uveitis-003" if change == "label added" else "Uveitis-001"
    batch = batch_of(platform)[f"uwf700::{name}"]
    match change:
        case "renamed":
            uveitis(platform, f"{name}.jpg").rename(uveitis(platform, "Uveitis-800.jpg"))
            (labels / f"{name}.txt").rename(labels / "Uveitis-800.txt")
        case "relabelled" | "label added":
            (labels / f"{name}.txt").write_text("4 0.2 0.2 0.4 0.2 0.4 0.4 0.2 0.4\n")
        case _:
            (labels / f"{name}.txt").unlink()
    assert requested(settle(platform, cursor).run_requests) == [(batch, batch, ("manifest",))]


def test_a_vanished_file_and_its_return_run_the_lane_for_its_batch(at_rest: tuple[Platform, str]) -> None:
    platform, cursor = at_rest
    batch = batch_of(platform)["uwf700::Uveitis-001"]
    image = uveitis(platform, "Uveitis-001.jpg")
    content = image.read_bytes()
    image.unlink()
    gone = settle(platform, cursor)
    assert requested(gone.run_requests) == [(batch, batch, LANE)]
    assert platform.run("uwf700", batch).success
    assert platform.metadata("uwf700/tiles", batch)["n_images"] == 2
    image.write_bytes(content)
    back = settle(platform, gone.cursor)
    assert requested(back.run_requests) == [(batch, batch, LANE)]
    assert platform.run("uwf700", batch).success
    assert platform.metadata("uwf700/tiles", batch)["n_images"] == 3
    assert requested(settle(platform, back.cursor).run_requests) == []


# What is to be run stands in ledger and indexes, whatever noticed it ------------------------------------------------


def change(platform: Platform, how: str) -> tuple[str, str, tuple[str, ...]]:
    """Change an image of a finished batch in the landing folder; returns the run that it calls for."""
    batch = batch_of(platform)["uwf700::Uveitis-001"]
    labels = platform.store.raw / "uwf-700" / "Labels" / "Uveitis"
    image = uveitis(platform, "Uveitis-001.jpg")
    if how == "relabelled":
        (labels / "Uveitis-001.txt").write_text("4 0.2 0.2 0.4 0.2 0.4 0.4 0.2 0.4\n")
        return batch, batch, ("manifest",)
    if how == "renamed":
        image.rename(image.with_name("Uveitis-800.jpg"))
        (labels / "Uveitis-001.txt").rename(labels / "Uveitis-800.txt")
        return batch, batch, ("manifest",)
    if how == "gone":
        image.unlink()
        return batch, batch, LANE
    image.with_name("Uveitis-900.jpg").write_bytes(image.read_bytes() + b"\0")
    return "b00004", "b00004", LANE


@pytest.mark.parametrize("how", ["new", "gone", "relabelled", "renamed"])
def test_what_the_command_line_registered_beside_the_sensor_is_run_by_it(
    at_rest: tuple[Platform, str], how: str
) -> None:
    platform, cursor = at_rest
    run = change(platform, how)
    platform.register("uwf700")
    result = settle(platform, cursor)
    assert requested(result.run_requests) == [run]
    platform.queue("uwf700", result.run_requests)
    assert requested(settle(platform, result.cursor).run_requests) == []


@pytest.mark.parametrize("how", ["new", "gone", "relabelled"])
def test_the_schedule_runs_what_was_registered_while_the_sensor_was_stopped(
    at_rest: tuple[Platform, str], how: str
) -> None:
    platform, _ = at_rest
    for batch in ("b00001", "b00002", "b00003"):
        platform.report("uwf700", batch, LANE)
    assert "up to date" in skipped(platform.tick_schedule("uwf700_fill_missing"))
    run = change(platform, how)
    platform.register("uwf700")
    requests = platform.tick_schedule("uwf700_fill_missing")
    assert not isinstance(requests, dg.SkipReason)
    assert requested(requests) == [run]
    queued = platform.queue("uwf700", requests)
    assert "are in progress" in skipped(platform.tick_schedule("uwf700_fill_missing"))
    only = run[2] if run[2] == ("manifest",) else ()
    assert platform.run("uwf700", run[0], only=only).success
    platform.end(queued, dg.DagsterRunStatus.SUCCESS)
    assert "up to date" in skipped(platform.tick_schedule("uwf700_fill_missing"))


def test_a_batch_whose_run_fails_is_requested_three_times_and_again_when_it_changes(
    at_rest: tuple[Platform, str],
) -> None:
    platform, cursor = at_rest
    batch, _, _ = change(platform, "gone")
    for _ in range(3):
        result = settle(platform, cursor)
        assert requested(result.run_requests) == [(batch, batch, LANE)]
        platform.end(platform.queue("uwf700", result.run_requests), dg.DagsterRunStatus.FAILURE)
        cursor = str(result.cursor)
    result = settle(platform, cursor)
    assert requested(result.run_requests) == []
    assert f"runs of {batch} were cancelled or did not help" in str(result.skip_reason)
    uveitis(platform, "Uveitis-002.jpg").unlink()
    again = settle(platform, result.cursor)
    assert batch in {first for first, _, _ in requested(again.run_requests)}


def test_a_cancelled_run_is_not_started_again_before_the_night(at_rest: tuple[Platform, str]) -> None:
    platform, cursor = at_rest
    change(platform, "gone")
    result = settle(platform, cursor)
    platform.end(platform.queue("uwf700", result.run_requests), dg.DagsterRunStatus.CANCELED)
    assert requested(settle(platform, result.cursor).run_requests) == []


def test_a_run_by_hand_is_waited_for_and_one_that_was_killed_yesterday_is_not(
    at_rest: tuple[Platform, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    platform, cursor = at_rest
    batch, _, _ = change(platform, "gone")
    by_hand = dg.RunRequest(asset_selection=[dg.AssetKey(["uwf700", "tiles"])], tags={"dagster/partition": batch})
    platform.queue("uwf700", [by_hand])
    waiting = settle(platform, cursor)
    assert requested(waiting.run_requests) == []
    assert f"runs of {batch} are in progress" in str(waiting.skip_reason)
    tomorrow = time.time() + 86400 + 60
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    assert requested(settle(platform, waiting.cursor).run_requests) == [(batch, batch, LANE)]


def test_an_image_set_aside_for_what_it_is_calls_for_no_further_run(at_rest: tuple[Platform, str]) -> None:
    platform, cursor = at_rest
    image = uveitis(platform, "Uveitis-900.jpg")
    black = np.zeros((300, 300, 3), dtype=np.uint8)
    assert cv2.imwrite(str(image), black)
    result = settle(platform, cursor)
    assert requested(result.run_requests) == [("b00004", "b00004", LANE)]
    assert platform.run("uwf700", "b00004").success
    assert platform.metadata("uwf700/roi_masks", "b00004")["quarantine_reasons"] == {"roi_not_found": 1}
    assert requested(settle(platform, result.cursor).run_requests) == []


def test_an_unchanged_lane_is_looked_up_in_the_cursor(
    at_rest: tuple[Platform, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    platform, cursor = at_rest
    for path in (platform.store.root / "ledger", *(platform.store.root / "index").rglob("*")):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    for path in (platform.store.root / "ledger").iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))
    looked = platform.tick("uwf700_landing", cursor)
    assert isinstance(looked, dg.SensorResult)
    monkeypatch.setattr(stale_preprocessing, "stale_preprocessing", None)
    for _ in range(2):
        looked = platform.tick("uwf700_landing", looked.cursor)
        assert isinstance(looked, dg.SensorResult)
        assert requested(looked.run_requests) == []


def test_sensor_and_schedule_report_a_lost_ledger_although_the_folder_is_unchanged(
    at_rest: tuple[Platform, str],
) -> None:
    platform, cursor = at_rest
    ledger = platform.store.ledger_file("uwf700")
    kept = ledger.read_bytes()
    ledger.unlink()
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"uwf700\.parquet: expected the ledger .* restore it from the backup"):
            platform.tick("uwf700_landing", cursor)
    with pytest.raises(LedgerError, match="restore it from the backup"):
        platform.tick_schedule("uwf700_fill_missing")
    ledger.write_bytes(kept)
    result = platform.tick("uwf700_landing", cursor)
    assert isinstance(result, dg.SensorResult)
    assert result.run_requests == []


def test_many_keys_are_added_five_hundred_a_tick_in_ranges_of_limited_length(platform: Platform) -> None:
    write_many_small(platform.store.raw / "many", 510, workers=1)
    lane = platform.lanes["uwf700"].model_copy(
        update={
            "name": "many",
            "layout": "image_folder",
            "folder": "many",
            "batch_size": 1,
            "automation": AutomationConfiguration(max_batches_per_run=200),
        }
    )
    platform.lanes["many"] = lane
    platform.definitions = dg.Definitions(sensors=lane_sensors(lane)[:1])
    cursor = None
    found = []
    for _ in range(4):
        context = dg.build_sensor_context(instance=platform.instance, cursor=cursor)
        (sensor,) = lane_sensors(lane)[:1]
        result = sensor(context)
        assert isinstance(result, dg.SensorResult)
        for request in result.dynamic_partitions_requests or []:
            platform.instance.add_dynamic_partitions("many_batches", list(request.partition_keys))
        found.append(requested(result.run_requests))
        platform.queue("many", result.run_requests)
        cursor = result.cursor
    assert found == [
        [],
        [("b00001", "b00200", LANE), ("b00201", "b00400", LANE), ("b00401", "b00500", LANE)],
        [("b00501", "b00510", LANE)],
        [],
    ]


# Labels -------------------------------------------------------------------------------------------------------


def test_labels_wait_for_tiles_are_made_once_and_again_when_tiles_or_manifest_are_newer(
    finished: Platform,
) -> None:
    assert "has no tiles yet" in skipped(finished.tick("fgadr_labels_refresh"))
    assert finished.run("fgadr").success
    run_keys = []
    for newer in ("tiles", "manifest", None):
        request = finished.tick("fgadr_labels_refresh")
        assert isinstance(request, dg.RunRequest)
        keys = finished.keys("fgadr").fold_splits.get_partition_keys()
        assert requested([request])[0][:2] == (keys[0], keys[-1])
        run_keys.append(request.run_key)
        assert finished.run_labels("fgadr", keys[0], keys[-1]).success
        assert "as new as the tiles" in skipped(finished.tick("fgadr_labels_refresh"))
        if newer is not None:
            assert finished.run("fgadr", only=[newer]).success
    assert len(set(run_keys)) == 3


def test_one_missing_label_partition_is_enough_to_refresh(finished: Platform) -> None:
    assert finished.run("fgadr").success
    assert finished.run_labels("fgadr", "fold0|train", "fold4|val").success
    assert finished.run_labels("fgadr", "fold0|test", "fold3|test").success
    assert isinstance(finished.tick("fgadr_labels_refresh"), dg.RunRequest)
    assert finished.run_labels("fgadr", "fold4|test", None).success
    assert isinstance(finished.tick("fgadr_labels_refresh"), dg.SkipReason)


@pytest.mark.parametrize("started_by", ["the lane's job", "hand"])
def test_labels_wait_for_runs_in_progress(finished: Platform, started_by: str) -> None:
    assert finished.run("fgadr").success
    job = finished.definitions.resolve_job_def("fgadr_lane")
    run = finished.instance.create_run_for_job(
        job,
        status=dg.DagsterRunStatus.STARTED,
        tags={LANE_TAG: "fgadr"} if started_by == "the lane's job" else {},
        asset_selection=frozenset({dg.AssetKey(["fgadr", "tiles"])}),
    )
    assert "1 runs of fgadr are in progress" in skipped(finished.tick("fgadr_labels_refresh"))
    finished.instance.report_run_failed(run)
    assert isinstance(finished.tick("fgadr_labels_refresh"), dg.RunRequest)


def test_failed_labels_are_tried_again_a_few_times_and_at_once_when_tiles_are_newer(finished: Platform) -> None:
    assert finished.run("fgadr").success
    job = finished.definitions.resolve_job_def("fgadr_labels")
    run_keys = set()
    while isinstance(request := finished.tick("fgadr_labels_refresh"), dg.RunRequest):
        run_keys.add(request.run_key)
        finished.instance.create_run_for_job(job, status=dg.DagsterRunStatus.FAILURE, tags=request.tags)
        assert len(run_keys) < 10
    assert len(run_keys) == 3
    assert "3 runs failed on the same tiles" in skipped(request)
    assert finished.run("fgadr", only=["tiles"]).success
    assert isinstance(finished.tick("fgadr_labels_refresh"), dg.RunRequest)


# Schedule -----------------------------------------------------------------------------------------------------


def test_the_schedule_asks_for_what_misses_any_asset_and_registers_keys_that_the_instance_lost(
    finished: Platform,
) -> None:
    platform = dataclasses.replace(finished, instance=dg.DagsterInstance.ephemeral())
    everything = platform.tick_schedule("uwf700_fill_missing")
    assert not isinstance(everything, dg.SkipReason)
    assert requested(everything) == [("b00001", "b00003", LANE)]
    assert platform.instance.get_dynamic_partitions("uwf700_batches") == ["b00001", "b00002", "b00003"]
    platform.report("uwf700", "b00002", LANE)
    platform.report("uwf700", "b00001", LANE[:3])
    gaps = platform.tick_schedule("uwf700_fill_missing")
    assert not isinstance(gaps, dg.SkipReason)
    assert requested(gaps) == [("b00001", "b00001", LANE), ("b00003", "b00003", LANE)]
    platform.report("uwf700", "b00001", LANE[3:])
    platform.report("uwf700", "b00003", LANE)
    nothing = platform.tick_schedule("uwf700_fill_missing")
    assert "all 3 batches of uwf700 are materialized" in skipped(nothing)


def test_the_schedule_of_a_lane_without_images_has_nothing_to_do(platform: Platform) -> None:
    assert "all 0 batches" in skipped(platform.tick_schedule("eyepacs_fill_missing"))


def skipped(result: object) -> str:
    assert isinstance(result, dg.SkipReason)
    return str(result.skip_message)


def batch_of(platform: Platform) -> dict[str, str]:
    lines = platform.store.manifest_export("uwf700", "jsonl").read_text().splitlines()
    names = {json.loads(line)["image_id"] for line in lines}
    import polars as pl

    ledger = pl.read_parquet(platform.store.ledger_file("uwf700"), columns=["image_id", "batch"])
    return {name: batch for name, batch in ledger.iter_rows() if name in names}
