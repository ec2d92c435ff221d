"""The lane's assets in one process: single keys, ranges, subsets, partial success, metadata and previews."""

import base64
import fcntl
import os
import re
from typing import Any

import dagster as dg
import pytest

from uveitis_assets.components.fundus import split_labels
from uveitis_assets.fundus import preprocess
from uveitis_assets.orchestration.workers import worker_count
from uveitis_assets_tests.components.running_platform import ALL_FOLD_SPLITS, Platform, artefacts

BATCH_ASSETS = ("manifest", "roi_masks", "normalized_crops", "tiles")
STAGE_NUMBERS = {
    "n_images",
    "n_done",
    "n_skipped",
    "n_repaired",
    "repaired",
    "n_quarantined",
    "quarantine_reasons",
    "quarantined",
    "duration_s",
    "worker_duration_s",
    "written_bytes",
}
OWN_NUMBERS = {
    "roi_masks": {
        "n_fallback",
        "fallback_methods",
        "roi_area_ratio_min",
        "roi_area_ratio_mean",
        "roi_border_touch_ratio_mean",
        "roi_border_touch_ratio_max",
        "preview",
    },
    "normalized_crops": {"n_channels_without_signal", "mean_r_mean", "mean_g_mean", "mean_b_mean", "preview"},
    "tiles": {"n_tiles", "reconstruction_abs_error_max", "reconstruction_abs_error_mean", "black_ratio_mean"},
}


def test_a_range_materializes_every_asset_of_every_key_and_all_folds_and_splits(finished_once: Platform) -> None:
    for asset in BATCH_ASSETS:
        assert finished_once.materialized(f"uwf700/{asset}") == {"b00001", "b00002", "b00003"}
        assert finished_once.materialized(f"fgadr/{asset}") == {"b00001"}
    every = {f"fold{fold}|{split}" for fold in range(5) for split in ("train", "val", "test")}
    assert finished_once.materialized("uwf700/coco_labels") == every
    assert finished_once.materialized("fgadr/coco_labels") == every


def test_key_by_key_and_asset_by_asset_give_the_bytes_of_one_range_run(
    finished_once: Platform, finished: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = finished.store
    expected = artefacts(store.root)
    for name in expected:
        (store.root / name).unlink()
    assert artefacts(store.root) == {}
    monkeypatch.setenv("UVEITIS_WORKERS", "2")
    for key in ("b00003", "b00001", "b00002"):
        for asset in BATCH_ASSETS:
            assert finished.run("uwf700", key, only=[asset]).success
    assert finished.run("fgadr", "b00001").success
    assert finished.run_labels("uwf700", "fold2|val", None).success
    assert finished.materialized("uwf700/coco_labels") == {"fold2|val"}
    assert finished.run_labels("uwf700").success
    assert finished.run_labels("fgadr").success
    assert artefacts(store.root) == expected


def test_masks_alone_then_tiles_alone_make_just_what_was_asked_for(finished: Platform, platform: Platform) -> None:
    platform.land(finished.store.raw, [path_below(path, finished) for path in sorted(images(finished))[:3]])
    platform.register("uwf700")
    preproc = platform.store.root / "preproc"
    assert platform.run("uwf700", only=["manifest", "roi_masks"]).success
    assert {path.name for path in preproc.iterdir()} == {"roi_masks", "verify"}
    assert platform.materialized("uwf700/normalized_crops") == set()
    result = platform.run("uwf700", only=["tiles"])
    assert not result.success, "tiles need crops"
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "materialize normalized_crops" in str(failure.event_specific_data)
    assert platform.run("uwf700", only=["normalized_crops", "tiles"]).success
    assert platform.metadata("uwf700/roi_masks", "b00001")["n_done"] == 3
    assert platform.metadata("uwf700/tiles", "b00001")["n_done"] == 3
    assert platform.n_materializations("uwf700/roi_masks") == {"b00001": 1}


def test_running_again_skips_every_finished_image(finished: Platform) -> None:
    before = artefacts(finished.store.root)
    assert finished.run("uwf700", "b00001", "b00003").success
    for asset in BATCH_ASSETS[1:]:
        for key in ("b00001", "b00002", "b00003"):
            metadata = finished.metadata(f"uwf700/{asset}", key)
            assert (metadata["n_done"], metadata["n_skipped"]) == (0, 3)
    assert artefacts(finished.store.root) == before


@pytest.mark.parametrize("value", ["abc", "0", "-1", "1.5"])
def test_a_number_of_workers_that_cannot_be_is_named_with_its_variable(
    finished: Platform, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("UVEITIS_WORKERS", value)
    for result in (finished.run("fgadr"), finished.run_labels("fgadr")):
        assert not result.success
        (failure,) = [event for event in result.all_events if event.is_step_failure]
        message = str(failure.event_specific_data)
        assert f"UVEITIS_WORKERS={value}: expected a whole number of threads, at least 1" in message
    assert finished.materialized("fgadr/roi_masks") == set()


def test_an_empty_number_of_workers_means_all_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVEITIS_WORKERS", " ")
    assert worker_count(0) == len(os.sched_getaffinity(0))
    monkeypatch.setenv("UVEITIS_WORKERS", "3")
    assert (worker_count(0), worker_count(7)) == (3, 7)


@pytest.mark.parametrize("asset", BATCH_ASSETS[1:])
def test_stage_metadata_is_there_under_one_spelling(finished_once: Platform, asset: str) -> None:
    metadata = finished_once.metadata(f"uwf700/{asset}", "b00002")
    assert metadata.keys() - {"dagster/code_version"} == STAGE_NUMBERS | OWN_NUMBERS[asset]
    assert metadata["n_images"] == metadata["n_done"] == 3
    assert metadata["quarantined"] == metadata["repaired"] == "none"
    assert metadata["n_repaired"] == 0
    assert all(type(value) is int for name, value in metadata.items() if name.startswith("n_"))


def test_manifest_metadata_counts_images_patients_splits_labels_and_eyes(finished_once: Platform) -> None:
    metadata = finished_once.metadata("fgadr/manifest", "b00001")
    assert (metadata["n_images"], metadata["n_usable"], metadata["n_quarantined"]) == (5, 5, 0)
    assert sum(metadata["splits_fold0"].values()) == 5
    assert metadata["label_formats"] == {"mask": 5}
    assert sum(metadata["eyes"].values()) == 5
    assert metadata["duration_s"] >= 0
    assert metadata["path"].endswith("index/fgadr/manifest/b00001.parquet")


def test_label_metadata_counts_boxes_and_negatives(finished_once: Platform) -> None:
    metadata = [finished_once.metadata("uwf700/coco_labels", f"fold0|{split}") for split in ("train", "val", "test")]
    # Of nine sample images six are uveitis, one of those has an empty label file and one none.
    assert sum(one["n_images"] for one in metadata) == 5
    assert sum(one["n_negatives"] for one in metadata) == 1
    assert sum(one["n_annotations"] for one in metadata) == sum(sum(one["class_counts"].values()) for one in metadata)
    assert all(one["bad_labels"] == {} for one in metadata)


def test_previews_are_small_jpegs_in_markdown(finished_once: Platform) -> None:
    seen = 0
    for lane, asset, keys in (
        ("uwf700", "roi_masks", ("b00001", "b00003")),
        ("fgadr", "normalized_crops", ("b00001",)),
        ("uwf700", "coco_labels", ("fold0|train", "fold0|val", "fold0|test")),
    ):
        for key in keys:
            metadata: dict[str, Any] = finished_once.metadata(f"{lane}/{asset}", key)
            if asset == "coco_labels" and not metadata["n_tiles"]:
                assert "preview" not in metadata
                continue
            text = metadata["preview"]
            assert len(text.encode()) <= 200_000
            match = re.fullmatch(r"!\[([^]]+)\]\(data:image/jpeg;base64,([A-Za-z0-9+/=]+)\)", text)
            assert match is not None
            assert key in match[1]
            jpeg = base64.b64decode(match[2])
            assert jpeg.startswith(b"\xff\xd8")
            assert jpeg.endswith(b"\xff\xd9")
            seen += 1
    assert seen >= 4


def test_previews_can_be_left_out(finished: Platform) -> None:
    configuration = {"ops": {"fgadr_preprocessing": {"config": {"previews": False, "workers": 2}}}}
    assert finished.run("fgadr", configuration=configuration).success
    assert "preview" not in finished.metadata("fgadr/roi_masks", "b00001")


def test_one_failing_key_leaves_the_others_materialized(finished: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    original = preprocess.preprocess_batch

    def fail_second(*arguments: Any, **options: Any) -> Any:
        if arguments[2] == "b00002":
            raise OSError(28, "No space left on device")
        return original(*arguments, **options)

    monkeypatch.setattr(preprocess, "preprocess_batch", fail_second)
    result = finished.run("uwf700", "b00001", "b00003")
    assert not result.success
    assert finished.materialized("uwf700/manifest") == {"b00001", "b00002", "b00003"}
    for asset in BATCH_ASSETS[1:]:
        assert finished.materialized(f"uwf700/{asset}") == {"b00001", "b00003"}
        assert finished.n_materializations(f"uwf700/{asset}") == {"b00001": 1, "b00003": 1}
        assert finished.metadata(f"uwf700/{asset}", "b00003")["n_images"] == 3
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data is not None
    assert "1 of 3 partitions failed" in str(failure.user_failure_data.description)
    assert "[b00002] OSError: [Errno 28] No space left on device" in str(failure.user_failure_data.description)


def test_two_runs_of_one_label_partition_take_turns_and_those_of_others_do_not(
    finished: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    def others_wait(partition: str) -> bool:
        with (finished.store.root / "locks" / f"uwf700.labels.{partition}.lock").open("ab") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    seen: list[tuple[bool, bool]] = []

    make = split_labels.make_split_labels

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.append((others_wait("fold2.val"), others_wait("fold2.test")))
        return make(*arguments, **options)

    monkeypatch.setattr(split_labels, "make_split_labels", watched)
    with finished.store.lock("uwf700.labels.fold2.val"), finished.store.lock("uwf700.labels.fold2.test"):
        assert others_wait("fold2.val"), "the lock's file is where the test looks"
    assert finished.run_labels("uwf700", "fold2|val", None, overlays=True).success
    assert seen == [(True, False)]


def failure_text(result: dg.ExecuteInProcessResult) -> str:
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.error is not None
    return failure.error.to_string()


@pytest.mark.parametrize("lost", [("b00001", "b00002", "b00003"), ("b00002",)])
def test_labels_of_a_lane_that_lost_its_manifest_are_refused_and_those_that_are_there_stay(
    finished: Platform, lost: tuple[str, ...]
) -> None:
    for batch in lost:
        finished.store.manifest_part("uwf700", batch).unlink()
    before = artefacts(finished.store.root, ["labels_coco"])
    result = finished.run_labels("uwf700")
    assert not result.success
    text = failure_text(result)
    assert f"uwf700: found no manifest of {', '.join(lost)} in {finished.store.root}/index/uwf700/manifest" in text
    assert "materialize uwf700/manifest first" in text
    assert artefacts(finished.store.root, ["labels_coco"]) == before
    assert finished.run("uwf700", "b00001", "b00003", only=["manifest"]).success
    assert finished.run_labels("uwf700").success
    assert artefacts(finished.store.root, ["labels_coco"]) == before


def test_a_lost_part_is_missed_on_another_instance_too_and_a_batch_that_was_never_run_is_not(
    finished: Platform,
) -> None:
    store = finished.store
    before = artefacts(store.root, ["labels_coco"])
    fresh = dg.DagsterInstance.ephemeral()
    finished.instance = fresh
    finished.add_batches("uwf700")
    store.manifest_part("uwf700", "b00003").unlink()
    assert "found no manifest of b00003" in failure_text(finished.run_labels("uwf700"))
    for stage in BATCH_ASSETS[1:]:
        store.stage_index("uwf700", stage, "b00003").unlink()
    assert artefacts(store.root, ["labels_coco"]) == before
    assert finished.run_labels("uwf700").success, "as when it had only landed"


def test_labels_of_a_lane_that_lost_its_tiles_are_refused_and_those_that_are_there_stay(finished: Platform) -> None:
    for batch in ("b00001", "b00002", "b00003"):
        finished.store.stage_index("uwf700", "tiles", batch).unlink()
    before = artefacts(finished.store.root, ["labels_coco"])
    result = finished.run_labels("uwf700", "fold0|train", None)
    assert not result.success
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data is not None
    assert "found no batch's; materialize uwf700/tiles first" in str(failure.user_failure_data.description)
    assert artefacts(finished.store.root, ["labels_coco"]) == before


def test_labels_of_folds_that_the_lane_does_not_have_any_more_go_with_the_next_labels(finished: Platform) -> None:
    store = finished.store
    stale = [store.coco_file(lane, "val", 5, tiles=False) for lane in ("uwf700", "fgadr")]
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    assert finished.run_labels("uwf700", "fold2|val", None).success
    assert [path.exists() for path in stale] == [False, True]


def test_a_key_that_is_not_registered_is_refused(finished: Platform) -> None:
    with pytest.raises(dg.DagsterUnknownPartitionError, match="b00009"):
        finished.run("fgadr", "b00009")


def test_the_images_of_another_lane_stay_in_the_splits_files(finished: Platform) -> None:
    splits = finished.store.splits_file("stage0", 3).read_text()
    assert finished.run("fgadr", only=["manifest"]).success
    assert finished.store.splits_file("stage0", 3).read_text() == splits
    assert "uwf700::" in splits
    assert "fgadr::" in splits
    assert ALL_FOLD_SPLITS[1] in finished.keys("fgadr").fold_splits.get_partition_keys()


def images(platform: Platform) -> list[Any]:
    return list((platform.store.raw / "uwf-700" / "Images").glob("*/*.jpg"))


def path_below(path: Any, platform: Platform) -> str:
    return str(path.relative_to(platform.store.raw / "uwf-700").as_posix())
