"""Asset checks: they pass on what the lane made and fail on real defects."""

import json
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from uveitis_assets.stages.index import index_copy
from uveitis_assets.storage.files import write_bytes
from uveitis_assets_tests.components.running_platform import ALL_FOLD_SPLITS, Platform, read_coco

ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN


def findings(evaluation: dg.AssetCheckEvaluation) -> str:
    return str(evaluation.metadata["findings"].value)


def rewrite(path: Path, change: pl.Expr) -> None:
    pl.read_parquet(path).with_columns(change).write_parquet(path)


@pytest.mark.parametrize(
    ("asset", "check", "numbers"),
    [
        ("uwf700/manifest", "manifest_integrity", {"n_images": 3, "n_quarantined": 0}),
        ("uwf700/roi_masks", "roi_plausibility", {"n_images": 3, "n_fallback": 0}),
        ("uwf700/tiles", "tile_reconstruction", {"n_images": 3, "max_reconstruction_abs_error": 0.0}),
    ],
)
def test_a_check_passes_on_all_batches_of_a_sound_lane(
    finished: Platform, asset: str, check: str, numbers: dict[str, float]
) -> None:
    evaluations = finished.checks(asset, check, "b00001", "b00003")
    assert sorted(evaluations) == ["b00001", "b00002", "b00003"]
    for evaluation in (*evaluations.values(), finished.check(asset, check, "b00002")):
        assert evaluation.passed, findings(evaluation)
        assert {name: evaluation.metadata[name].value for name in numbers} == numbers


def test_labels_of_a_small_sample_miss_classes_which_is_a_warning(finished: Platform) -> None:
    evaluations = finished.checks("uwf700/coco_labels", "label_sanity", *ALL_FOLD_SPLITS)
    assert len(evaluations) == 15
    for evaluation in evaluations.values():
        assert not evaluation.passed
        assert evaluation.severity == WARN
        assert evaluation.metadata["n_errors"].value == 0
        assert "classes without any annotation in any split" in findings(evaluation)


def test_a_removed_tile_is_an_error_that_names_image_and_tile(finished: Platform) -> None:
    finished.store.tile("uwf700__Uveitis-001", "tile_000").unlink()
    evaluations = finished.checks("uwf700/tiles", "tile_reconstruction", "b00001", "b00003")
    (evaluation,) = (one for one in evaluations.values() if not one.passed)
    assert evaluation.severity == ERROR
    assert "uwf700::Uveitis-001: tile_000 has no file" in findings(evaluation)
    assert evaluation.metadata["n_errors"].value == 1


def batch_of(platform: Platform, image_id: str) -> str:
    parts = platform.store.manifest_parts("uwf700")
    return next(part.stem for part in parts if image_id in pl.read_parquet(part)["image_id"].to_list())


def test_broken_masks_and_tiles_are_errors_until_the_next_run_makes_them_again(finished: Platform) -> None:
    store, key = finished.store, "uwf700__Uveitis-001"
    batch = batch_of(finished, "uwf700::Uveitis-001")
    write_bytes(store.roi_mask(key), b"")
    tile = store.tile(key, "tile_000")
    data = tile.read_bytes()
    write_bytes(tile, data[:500] + bytes([data[500] ^ 1]) + data[501:])
    for asset, check, found in (
        ("roi_masks", "roi_plausibility", f"preproc/roi_masks/{key}.png: expected "),
        ("tiles", "tile_reconstruction", f"preproc/tiles/{key}/tile_000.png: expected CRC-32 "),
    ):
        evaluation = finished.check(f"uwf700/{asset}", check, batch)
        assert evaluation.severity == ERROR
        assert f"ERROR: uwf700::Uveitis-001: {found}" in findings(evaluation)
    assert finished.run("uwf700", batch, only=["roi_masks", "normalized_crops", "tiles"]).success
    for asset, n_repaired in (("roi_masks", 1), ("normalized_crops", 0), ("tiles", 1)):
        metadata = finished.metadata(f"uwf700/{asset}", batch)
        assert (metadata["n_repaired"], metadata["n_done"]) == (n_repaired, n_repaired)
        assert ("uwf700::Uveitis-001: preproc/" in metadata["repaired"]) == bool(n_repaired)
    assert tile.read_bytes() == data
    for asset, check in (("roi_masks", "roi_plausibility"), ("tiles", "tile_reconstruction")):
        assert finished.check(f"uwf700/{asset}", check, batch).passed


def test_a_damaged_index_is_a_warning_and_without_its_copy_an_error_until_the_next_run(finished: Platform) -> None:
    index = finished.store.stage_index("uwf700", "tiles", "b00001")
    index.write_bytes(index.read_bytes()[:700])
    evaluation = finished.check("uwf700/tiles", "tile_reconstruction", "b00001")
    assert evaluation.severity == WARN
    assert f"WARN: {index}: expected a stage index, found" in findings(evaluation)
    assert finished.run("uwf700", "b00001", only=["tiles"]).success
    metadata = finished.metadata("uwf700/tiles", "b00001")
    assert metadata["n_done"] == metadata["n_repaired"] == 0
    assert str(index) in metadata["index_finding"]
    assert finished.check("uwf700/tiles", "tile_reconstruction", "b00001").passed
    for path in (index, index_copy(index)):
        path.write_bytes(b"")
    assert finished.check("uwf700/tiles", "tile_reconstruction", "b00001").severity == ERROR


def test_labels_leave_out_an_image_whose_global_image_is_empty_and_name_it(finished: Platform) -> None:
    store, image_id = finished.store, "uwf700::Uveitis-001"
    split = next(
        split
        for split in ("train", "val", "test")
        if any(image["image_id"] == image_id for image in read_coco(store, "uwf700", split)["images"])
    )
    write_bytes(store.global_image("uwf700__Uveitis-001", 1024), b"")
    partition = f"fold0|{split}"
    assert finished.run_labels("uwf700", partition, None).success
    assert image_id not in [image["image_id"] for image in read_coco(store, "uwf700", split)["images"]]
    bad = finished.metadata("uwf700/coco_labels", partition)["bad_labels"]
    assert "preproc/global_1024/uwf700__Uveitis-001.png: expected" in bad[image_id]
    assert "found 0; materialize" in bad[image_id]
    assert image_id in findings(finished.check("uwf700/coco_labels", "label_sanity", partition))


def test_a_bad_reconstruction_is_an_error(finished: Platform) -> None:
    index = finished.store.stage_index("fgadr", "tiles", "b00001")
    rewrite(
        index,
        pl.when(pl.col("image_id") == "fgadr::0001_1").then(0.5).otherwise(0.0).alias("reconstruction_abs_error"),
    )
    evaluation = finished.check("fgadr/tiles", "tile_reconstruction", "b00001")
    assert evaluation.severity == ERROR
    assert "fgadr::0001_1: mean absolute error 0.5 grey levels" in findings(evaluation)


def test_a_small_roi_is_an_error_and_border_touch_and_fallback_are_warnings(finished: Platform) -> None:
    index = finished.store.stage_index("uwf700", "roi_masks", "b00001")
    first, second, third = pl.read_parquet(index)["image_id"].to_list()
    rewrite(index, pl.when(pl.col("image_id") == first).then(0.11).otherwise(0.5).alias("area_ratio"))
    rewrite(index, pl.when(pl.col("image_id") == second).then(0.9).otherwise(0.1).alias("border_touch_ratio"))
    rewrite(
        index,
        pl.when(pl.col("image_id") == third)
        .then(pl.lit(["uwf: nothing found"]))
        .otherwise(pl.lit([], dtype=pl.List(pl.String)))
        .alias("fallbacks"),
    )
    evaluation = finished.check("uwf700/roi_masks", "roi_plausibility", "b00001")
    assert evaluation.severity == ERROR
    text = findings(evaluation)
    assert f"ERROR: {first}: area ratio 0.110, expected at least 0.12" in text
    assert f"WARN: {second}: border touch 0.900" in text
    assert f"WARN: {third}: mask by" in text
    assert "nothing found" in text
    assert evaluation.metadata["n_errors"].value == 2, "one fallback of three is more than a fifth"


def test_channels_without_signal_are_a_warning_that_counts_and_names_the_images(finished: Platform) -> None:
    index = finished.store.stage_index("uwf700", "normalized_crops", "b00001")
    rewrite(index, pl.lit(["blue"]).alias("channels_without_signal"))
    images = pl.read_parquet(index)["image_id"].to_list()
    evaluation = finished.check("uwf700/normalized_crops", "channel_signal", "b00001")
    assert evaluation.severity == WARN
    assert evaluation.metadata["n_channels"].value == 3
    assert "WARN: blue: 3 of 3 images hold noise of the encoding" in findings(evaluation)
    assert all(image in findings(evaluation) for image in images)
    regular = finished.check("fgadr/normalized_crops", "channel_signal", "b00001")
    assert regular.passed, findings(regular)
    assert regular.metadata["n_channels"].value == 0


def test_more_fallbacks_than_allowed_are_an_error(finished: Platform) -> None:
    index = finished.store.stage_index("uwf700", "roi_masks", "b00001")
    rewrite(index, pl.lit(["uwf: nothing found"]).alias("fallbacks"))
    evaluation = finished.check("uwf700/roi_masks", "roi_plausibility", "b00001")
    assert evaluation.severity == ERROR
    assert "3 of 3 masks come from a fallback method" in findings(evaluation)


def test_rows_that_disagree_with_the_ledger_are_errors(finished: Platform) -> None:
    part = finished.store.manifest_part("uwf700", "b00002")
    rows = pl.read_parquet(part)
    names = rows["image_id"].to_list()
    pl.concat([rows[:1], rows[:1], rows[1:2].with_columns(image_id=pl.lit("uwf700::stranger"))]).write_parquet(part)
    text = findings(finished.check("uwf700/manifest", "manifest_integrity", "b00002"))
    assert f"{names[0]} is listed 2 times" in text
    assert f"{names[1]} is registered but not listed" in text
    assert "uwf700::stranger is listed but not registered" in text


def test_a_patient_in_several_splits_is_an_error_of_every_batch_and_fold(finished: Platform) -> None:
    manifests = [finished.store.manifest_part("uwf700", batch) for batch in ("b00001", "b00002", "b00003")]
    splits = [pl.read_parquet(path)["fold_splits"][0].to_list() for path in manifests]
    for path in manifests:
        first = pl.read_parquet(path)["image_id"][0]
        patient_id = pl.when(pl.col("image_id") == first).then(pl.lit("p_1")).otherwise("patient_id")
        rewrite(path, patient_id.alias("patient_id"))
    several = [fold for fold in range(5) if len({of_folds[fold] for of_folds in splits}) > 1]
    assert several
    for evaluation in finished.checks("uwf700/manifest", "manifest_integrity", "b00001", "b00003").values():
        assert evaluation.severity == ERROR
        text = findings(evaluation)
        found = [fold for fold in range(5) if f"1 patients in several splits of fold {fold}: uwf700: p_1" in text]
        assert found == several
        assert "materialize uwf700/manifest of all batches" in text


def test_an_image_that_another_lane_has_in_another_split_is_an_error(finished: Platform) -> None:
    ours = pl.read_parquet(finished.store.manifest_part("uwf700", "b00001"))
    part = finished.store.manifest_part("fgadr", "b00001")
    rows = pl.read_parquet(part)
    copy = next(n for n in range(rows.height) if rows["fold_splits"][n].to_list() != ours["fold_splits"][0].to_list())
    name = rows["image_id"][copy]
    is_copy = pl.col("image_id") == name
    hashes = pl.when(is_copy).then(pl.lit(ours["content_hash"][0])).otherwise("content_hash")
    rewrite(part, hashes.alias("content_hash"))
    evaluation = finished.check("uwf700/manifest", "manifest_integrity", "b00003")
    assert evaluation.severity == ERROR
    text = findings(evaluation)
    assert "1 images are in two of the splits stage0, their copies are in lane fgadr" in text
    assert f"{ours['image_id'][0]} is " in text
    assert f"and {name} " in text


def test_batches_assigned_by_another_configuration_are_an_error_and_give_no_labels(finished: Platform) -> None:
    rewrite(finished.store.manifest_part("uwf700", "b00002"), pl.lit("0" * 16).alias("split_fingerprint"))
    evaluation = finished.check("uwf700/manifest", "manifest_integrity", "b00001")
    assert evaluation.severity == ERROR
    expected = "1 batch not assigned by the present `splits`: b00002; materialize uwf700/manifest[b00002] again"
    assert expected in findings(evaluation)
    result = finished.run_labels("uwf700")
    assert not result.success
    assert "found b00002 assigned by another than the last one" in failure_of(result)
    assert finished.run("uwf700", "b00001", only=["manifest"]).success
    assert finished.check("uwf700/manifest", "manifest_integrity", "b00001").passed
    assert finished.run_labels("uwf700", "fold0|val", None).success


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    return "".join(str(event.event_specific_data) for event in result.all_events if event.is_step_failure)


def test_a_patient_in_two_splits_is_an_error(finished: Platform) -> None:
    part = finished.store.manifest_part("uwf700", "b00001")
    rows = pl.read_parquet(part)
    fold = next(fold for fold in range(5) if rows["fold_splits"].list.get(fold).n_unique() > 1)
    # One patient for all: the images still stand in the splits they were given.
    rows.with_columns(patient_id=pl.lit("p_leaked")).write_parquet(part)
    evaluation = finished.check("uwf700/coco_labels", "label_sanity", f"fold{fold}|val")
    assert evaluation.severity == ERROR
    assert f"patients in several splits of fold {fold}: uwf700: p_leaked" in findings(evaluation)


def test_a_box_that_leaves_its_image_is_an_error(finished: Platform) -> None:
    path = finished.store.coco_file("fgadr", "train", 0, tiles=False)
    coco = json.loads(path.read_bytes())
    coco["annotations"][0]["bbox"][2] = 5000.0
    write_bytes(path, json.dumps(coco).encode())
    evaluation = finished.check("fgadr/coco_labels", "label_sanity", "fold0|train")
    assert evaluation.severity == ERROR
    assert "labels_coco/fgadr_train.json: 1 annotations with a box that leaves its image" in findings(evaluation)


def test_missing_mask_files_are_a_warning_that_says_what_to_set(finished: Platform) -> None:
    folder = finished.store.raw / "fgadr" / "Hemohedge_Masks"
    next(folder.glob("0001_1.*")).unlink()
    n_without = 5 - len(list(folder.iterdir()))
    finished.register("fgadr")
    assert finished.run("fgadr", only=["manifest"]).success
    assert finished.run_labels("fgadr").success
    n_counted = 0
    for split in ("train", "val", "test"):
        metadata = finished.metadata("fgadr/coco_labels", f"fold0|{split}")
        text = findings(finished.check("fgadr/coco_labels", "label_sanity", f"fold0|{split}"))
        count = metadata["missing_masks"].get("Hemohedge_Masks", 0)
        n_counted += count
        assert (f"Hemohedge_Masks {count}" in text) == (count > 0)
        if metadata["missing_masks"]:
            assert f"{metadata['n_partial_labels']} images lack mask files and are listed as free of these" in text
    assert n_counted == n_without


def test_an_implausible_label_file_is_listed_and_the_others_hold(finished: Platform) -> None:
    label = finished.store.raw / "uwf-700" / "Labels" / "Uveitis" / "Uveitis-001.txt"
    label.write_text("4 0.1 0.1 nan 0.2 0.3 0.3 0.1 0.3\n")
    before = {entry["image_id"] for entry in all_images(finished)}
    finished.register("uwf700")
    assert finished.run("uwf700", "b00001", "b00003", only=["manifest"]).success
    result = finished.run_labels("uwf700")
    assert result.success
    assert {entry["image_id"] for entry in all_images(finished)} == before - {"uwf700::Uveitis-001"}
    texts = [findings(evaluation) for evaluation in result.get_asset_check_evaluations()]
    assert sum("uwf700::Uveitis-001" in text and "Uveitis-001.txt:1" in text for text in texts) == 5
    listed = [
        finished.metadata("uwf700/coco_labels", f"fold0|{split}")["bad_labels"] for split in ("train", "val", "test")
    ]
    assert sum("uwf700::Uveitis-001" in text for text in listed) == 1


def all_images(platform: Platform) -> list[dict[str, str]]:
    return [
        image
        for split in ("train", "val", "test")
        for image in json.loads(platform.store.coco_file("uwf700", split, 0, tiles=False).read_bytes())["images"]
    ]


def test_quarantined_images_are_listed_in_metadata_and_checks_with_their_reason(finished: Platform) -> None:
    landing = finished.store.raw / "uwf-700" / "Images" / "Uveitis"
    (landing / "empty.jpg").write_bytes(b"")
    whole = (landing / "Uveitis-001.jpg").read_bytes()
    (landing / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    (landing / "good.jpg").write_bytes(whole + b"")
    finished.register("uwf700")
    result = finished.run("uwf700", "b00004")
    assert result.success
    for asset, check in (("manifest", "manifest_integrity"), ("roi_masks", "roi_plausibility")):
        metadata = finished.metadata(f"uwf700/{asset}", "b00004")
        assert metadata["quarantine_reasons"] == {"empty_file": 1, "truncated": 1}
        assert "uwf700::empty: empty_file: " in metadata["quarantined"]
        assert "uwf700::torn: truncated: " in metadata["quarantined"]
        (evaluation,) = (one for one in result.get_asset_check_evaluations() if one.check_name == check)
        assert "uwf700::empty: empty_file" in findings(evaluation)
        assert "uwf700::torn: truncated" in findings(evaluation)
        assert not evaluation.passed
    evaluation = finished.check("uwf700/manifest", "manifest_integrity", "b00004")
    assert evaluation.severity == ERROR, "two of three images are more than half"
    assert "2 of 3 images are quarantined" in findings(evaluation)
