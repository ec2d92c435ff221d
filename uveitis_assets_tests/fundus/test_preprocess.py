"""Preprocessing of a batch: what is written, what is made again, what goes wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from uveitis_assets.fundus import image_stages
from uveitis_assets.fundus.color import ReferenceColor, normalize_crop
from uveitis_assets.fundus.configuration import STAGES, PreprocessConfiguration, PreprocessStage, RoiConfiguration
from uveitis_assets.fundus.image_stages import ImageStages, StageSettings
from uveitis_assets.fundus.preprocess import preprocess_batch
from uveitis_assets.fundus.reference_color import ReferenceColorMissingError
from uveitis_assets.fundus.roi import sam2 as roi_sam2
from uveitis_assets.fundus.roi.sam2_model import Sam2UnavailableError
from uveitis_assets.fundus.stage_schemas import REFERENCE_COLOR_METADATA, STAGE_SCHEMAS
from uveitis_assets.imaging.configuration import TilingConfiguration
from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets.landing.samples import RegisteredImage
from uveitis_assets.stages.batch_outcome import BatchFailedError, BatchOutcome
from uveitis_assets.stages.index import read_index_metadata, read_stage_index, write_stage_index
from uveitis_assets.storage.files import read_json, temporary_beginning, write_json
from uveitis_assets.storage.store import ArtefactStore, artefact_key
from uveitis_assets_tests.fundus.preprocess_inputs import (
    SMALL,
    artefact_bytes,
    fundus_picture,
    land,
    land_many,
    read_rgb,
    register,
    with_normalization,
)

REFERENCE = {
    "kind": "regular_fundus_color_reference",
    "lab_mean": [90.0, 150.0, 160.0],
    "lab_std": [25.0, 9.0, 11.0],
}


def preprocess(
    store: ArtefactStore,
    images: Sequence[RegisteredImage],
    configuration: PreprocessConfiguration = SMALL,
    stages: Sequence[PreprocessStage] = STAGES,
    workers: int = 1,
    code_version: str = "1",
) -> BatchOutcome[PreprocessStage]:
    return preprocess_batch(
        store, "lane", "b00001", lambda: images, configuration, stages, workers=workers, code_version=code_version
    )


def done(outcome: BatchOutcome[PreprocessStage]) -> dict[str, int]:
    return {stage: result.n_done for stage, result in outcome.stages.items()}


def rows(store: ArtefactStore, stage: PreprocessStage) -> dict[str, dict[str, Any]]:
    return read_stage_index(store.stage_index("lane", stage, "b00001"))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every (image id, stage) that is computed."""
    calls: list[tuple[str, str]] = []
    original = ImageStages.run

    def run(self: ImageStages, stage: PreprocessStage) -> dict[str, Any]:
        calls.append((self.image.image_id, stage))
        return original(self, stage)

    monkeypatch.setattr(ImageStages, "run", run)
    return calls


# What is written --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["zscore_rgb", "clahe_luminance", "reinhard_lab_ref"])
def test_images_of_many_shapes_that_share_a_thread_get_what_each_gets_alone(
    store: ArtefactStore, tmp_path: Path, method: str
) -> None:
    sizes = [(300, 170), (170, 300), (400, 390), (110, 110), (260, 240)]
    images = [
        land(store, f"image{number}.png", fundus_picture(number, width, height))
        for number, (width, height) in enumerate(sizes)
    ]
    write_json(store.reference_color_file(), REFERENCE)
    preprocess(store, images, with_normalization(method))
    together = {name: data for name, data in artefact_bytes(store.root).items() if name.endswith(".png")}
    alone = {}
    for number, image in enumerate(images):
        other = ArtefactStore(root=tmp_path / f"alone{number}", raw=store.raw)
        write_json(other.reference_color_file(), REFERENCE)
        preprocess(other, [image], with_normalization(method))
        alone |= {name: data for name, data in artefact_bytes(other.root).items() if name.endswith(".png")}
    assert together == alone


def test_an_image_whose_canvas_the_thread_gave_to_another_is_refused(store: ArtefactStore) -> None:
    first, second = (ImageStages(image, StageSettings(store, SMALL), {}) for image in land_many(store, 2))
    for image in (first, second):
        image.run("roi_masks")
        image.run("normalized_crops")
    second.run("tiles")
    with pytest.raises(AssertionError, match="another image has taken this one's canvas"):
        first.run("tiles")


@pytest.mark.parametrize("method", ["none", "zscore_rgb", "grayworld", "clahe_luminance", "reinhard_lab_ref"])
@pytest.mark.parametrize("frame", ["global", "native"])
def test_the_artefacts_agree_with_each_other_and_with_the_raw_image(
    store: ArtefactStore, method: str, frame: str
) -> None:
    write_json(store.reference_color_file(), REFERENCE)
    image = land(store, "eye.png", fundus_picture(3))
    tiling = TilingConfiguration.model_validate({**SMALL.tiling.model_dump(), "frame": frame})
    configuration = with_normalization(method).model_copy(update={"tiling": tiling})
    preprocess(store, [image], configuration)

    key = "lane__eye"
    raw = read_rgb(image.path)
    mask = cv2.imread(str(store.roi_mask(key)), cv2.IMREAD_UNCHANGED)
    assert mask is not None
    assert mask.shape == raw.shape[:2]
    assert set(np.unique(mask)) == {0, 255}
    y, x = np.nonzero(mask)
    box = max(0, x.min() - 12), max(0, y.min() - 12), min(240, x.max() + 13), min(200, y.max() + 13)
    crop_metadata = read_json(store.crop_metadata(key))
    assert crop_metadata == {
        "bbox_xyxy": list(box),
        "orig_size": [240, 200],
        "crop_size": [box[2] - box[0], box[3] - box[1]],
    }
    crop = read_rgb(store.crop(key))
    np.testing.assert_array_equal(crop, raw[box[1] : box[3], box[0] : box[2]])
    reference = ReferenceColor((90.0, 150.0, 160.0), (25.0, 9.0, 11.0))
    expected, metadata = normalize_crop(
        crop, np.ascontiguousarray(mask[box[1] : box[3], box[0] : box[2]]), configuration.normalize, reference
    )
    normalized = read_rgb(store.normalized_crop(key))
    np.testing.assert_array_equal(normalized, expected)
    assert read_json(store.normalization_metadata(key)) == metadata

    frames = ImageFrames.from_metadata(crop_metadata, read_json(store.tiles_metadata(key)))
    side = max(normalized.shape[:2])
    square = np.zeros((side, side, 3), dtype=np.uint8)
    top, left = (side - normalized.shape[0]) // 2, (side - normalized.shape[1]) // 2
    square[top : top + normalized.shape[0], left : left + normalized.shape[1]] = normalized
    global_image = read_rgb(store.global_image(key, 128))
    np.testing.assert_array_equal(global_image, cv2.resize(square, (128, 128), interpolation=cv2.INTER_AREA))
    cut_from = global_image if frame == "global" else normalized
    assert len(frames.tiles) > 1
    for tile in frames.tiles:
        pixels = read_rgb(store.tile(key, tile.tile_id))
        np.testing.assert_array_equal(pixels, cut_from[tile.y0 : tile.y1, tile.x0 : tile.x1])


def test_index_rows_are_sorted_and_name_methods_sizes_and_colours(store: ArtefactStore) -> None:
    images = land_many(store, 3)
    preprocess(store, images[::-1])
    frame = pl.read_parquet(store.stage_index("lane", "roi_masks", "b00001"))
    assert frame["image_id"].to_list() == ["lane::image00", "lane::image01", "lane::image02"]
    assert frame["method"].to_list() == ["threshold"] * 3
    assert frame["fallbacks"].to_list() == [[]] * 3
    assert frame.select("width", "height").row(0) == (240, 200)
    mask = cv2.imread(str(store.roi_mask("lane__image01")), cv2.IMREAD_GRAYSCALE)
    assert frame["area_ratio"][1] == pytest.approx((mask > 0).mean())
    normalized = rows(store, "normalized_crops")["lane::image01"]
    metadata = read_json(store.normalization_metadata("lane__image01"))
    assert [normalized["mean_r"], normalized["mean_g"], normalized["mean_b"]] == metadata["mean"]
    tiles = rows(store, "tiles")["lane::image01"]
    assert (tiles["n_tiles"], tiles["global_size"], tiles["reconstruction_abs_error"]) == (4, 128, 0.0)
    black = read_rgb(store.global_image("lane__image01", 128)).sum(axis=2) == 0
    assert tiles["black_ratio"] == pytest.approx(black.mean())


def test_stage_by_stage_gives_the_same_bytes_as_one_pass(store: ArtefactStore, tmp_path: Path) -> None:
    images = land_many(store, 3)
    preprocess(store, images)
    other = ArtefactStore(root=tmp_path / "other", raw=store.raw)
    for stage in STAGES:
        assert done(preprocess(other, images, stages=[stage])) == {stage: 3}
    assert artefact_bytes(other.root) == artefact_bytes(store.root)


def test_what_is_not_persisted_is_made_again_in_memory_for_later_stages(store: ArtefactStore, tmp_path: Path) -> None:
    images = land_many(store, 2)
    preprocess(store, images)
    other = ArtefactStore(root=tmp_path / "other", raw=store.raw)
    lean = SMALL.model_copy(update={"persist": ("tiles",)})
    for stage in STAGES:
        preprocess(other, images, lean, [stage])
    preproc = other.root / "preproc"
    assert sorted(path.name for path in preproc.iterdir()) == [
        "crop_meta",
        "norm_meta",
        "roi_masks",
        "tiles",
        "tiles_meta",
    ]
    written = {name: data for name, data in artefact_bytes(other.root).items() if name.startswith("preproc/")}
    assert written.items() <= artefact_bytes(store.root).items()
    assert done(preprocess(other, images, lean)) == dict.fromkeys(STAGES, 0)
    # Asking for the full set again makes what is missing and nothing else.
    assert done(preprocess(other, images)) == {"roi_masks": 0, "normalized_crops": 2, "tiles": 2}
    assert artefact_bytes(other.root) == artefact_bytes(store.root)


def test_dropping_an_image_kind_removes_it_when_the_stage_is_made_again(store: ArtefactStore) -> None:
    images = land_many(store, 1)
    preprocess(store, images)
    lean = SMALL.model_copy(update={"persist": ("norm",)})
    preprocess(store, images, lean, code_version="2")
    assert not store.crop("lane__image00").exists()
    assert not store.global_image("lane__image00", 128).exists()
    assert not store.tile("lane__image00", "tile_000").exists()
    assert store.normalized_crop("lane__image00").exists()


def test_files_of_an_image_kind_dropped_later_stay_and_are_not_missed_when_deleted(store: ArtefactStore) -> None:
    images = land_many(store, 2)
    preprocess(store, images)
    before = artefact_bytes(store.root)
    lean = SMALL.model_copy(update={"persist": ("tiles",)})
    assert done(preprocess(store, images, lean)) == dict.fromkeys(STAGES, 0)
    assert artefact_bytes(store.root) == before
    for image in images:
        key = artefact_key(image.image_id)
        for path in (store.crop(key), store.normalized_crop(key), store.global_image(key, 128)):
            path.unlink()
    assert done(preprocess(store, images, lean)) == dict.fromkeys(STAGES, 0)


# What is made again -----------------------------------------------------------------------------------------


CHANGES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "saturation": ({"roi": {"sat_threshold": 30}}, set(STAGES)),
    "crop margin": ({"roi": {"crop_pad_px": 20}}, {"normalized_crops", "tiles"}),
    "normalization": ({"normalize": {"method": "grayworld"}}, {"normalized_crops", "tiles"}),
    "tiling": ({"tiling": {"global_size": 128, "tile_size": 64}}, {"tiles"}),
    "other methods' settings": ({"normalize": {"clahe_grid": 4}, "roi": {"sam2": {"batch_size": 9}}}, set()),
    "model limits": ({"roi": {"max_area_ratio": 0.5, "max_border_touch_ratio": 0.1}}, set()),
    "check limits": ({"verify": {"min_roi_area_ratio": 0.5}}, set()),
}


@pytest.mark.parametrize(("update", "affected"), CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_setting_recomputes_exactly_the_stages_it_touches(
    store: ArtefactStore, update: dict[str, Any], affected: set[str]
) -> None:
    images = land_many(store, 1)
    preprocess(store, images)
    changed = PreprocessConfiguration.model_validate({"tiling": SMALL.tiling.model_dump()} | update)
    outcome = preprocess(store, images, changed)
    assert {stage for stage, count in done(outcome).items() if count} == affected


def test_a_method_for_another_dataset_tag_recomputes_nothing(store: ArtefactStore) -> None:
    images = land_many(store, 1)
    preprocess(store, images)
    roi = RoiConfiguration(method_by_dataset={"deepdrid_uwf": "uwf"})
    assert done(preprocess(store, images, SMALL.model_copy(update={"roi": roi}))) == dict.fromkeys(STAGES, 0)


def test_a_new_code_version_recomputes_everything(store: ArtefactStore) -> None:
    images = land_many(store, 2)
    preprocess(store, images)
    assert done(preprocess(store, images, code_version="2")) == dict.fromkeys(STAGES, 2)


def test_new_reference_colours_recompute_reinhard_crops_only(store: ArtefactStore) -> None:
    write_json(store.reference_color_file(), REFERENCE)
    images = land_many(store, 1)
    preprocess(store, images, with_normalization("reinhard_lab_ref"))
    write_json(store.reference_color_file(), {**REFERENCE, "lab_mean": [80.0, 140.0, 150.0]})
    outcome = preprocess(store, images, with_normalization("reinhard_lab_ref"))
    assert done(outcome) == {"roi_masks": 0, "normalized_crops": 1, "tiles": 1}


def test_an_index_from_before_it_named_its_reference_colours_learns_them_without_new_crops(
    store: ArtefactStore,
) -> None:
    write_json(store.reference_color_file(), REFERENCE)
    images = land_many(store, 1)
    preprocess(store, images, with_normalization("reinhard_lab_ref"))
    index = store.stage_index("lane", "tiles", "b00001")
    digest = read_index_metadata(index, REFERENCE_COLOR_METADATA)
    assert digest is not None
    write_stage_index(index, STAGE_SCHEMAS["tiles"], rows(store, "tiles").values())
    assert read_index_metadata(index, REFERENCE_COLOR_METADATA) is None
    assert done(preprocess(store, images, with_normalization("reinhard_lab_ref")))["tiles"] == 0
    assert read_index_metadata(index, REFERENCE_COLOR_METADATA) == digest


def test_a_deleted_artefact_is_made_again_and_nothing_else(
    store: ArtefactStore, computed: list[tuple[str, str]]
) -> None:
    images = land_many(store, 3)
    preprocess(store, images)
    before = artefact_bytes(store.root)
    computed.clear()
    store.tile("lane__image01", "tile_002").unlink()
    store.roi_mask("lane__image02").unlink()
    preprocess(store, images)
    assert sorted(computed) == [("lane::image01", "tiles"), ("lane::image02", "roi_masks")]
    assert artefact_bytes(store.root) == before


def test_fewer_tiles_than_before_leave_no_stale_ones(store: ArtefactStore) -> None:
    images = land_many(store, 1)
    preprocess(store, images)
    assert len(list(store.tile("lane__image00", "tile_000").parent.iterdir())) == 4
    one_tile = SMALL.model_copy(update={"tiling": TilingConfiguration(global_size=96, tile_size=96)})
    preprocess(store, images, one_tile)
    assert [path.name for path in store.tile("lane__image00", "x").parent.iterdir()] == ["tile_000.png"]
    assert not store.global_image("lane__image00", 128).exists()


def test_an_image_registered_with_new_content_is_made_again(store: ArtefactStore) -> None:
    images = land_many(store, 2)
    preprocess(store, images)
    changed = land(store, "image01.png", fundus_picture(77))
    assert done(preprocess(store, [images[0], changed])) == dict.fromkeys(STAGES, 1)
    np.testing.assert_array_equal(
        read_rgb(store.crop("lane__image01"))[50, 50:60],
        fundus_picture(77)[
            50 + read_json(store.crop_metadata("lane__image01"))["bbox_xyxy"][1],
            50 + read_json(store.crop_metadata("lane__image01"))["bbox_xyxy"][0] :,
        ][:10],
    )


# What goes wrong --------------------------------------------------------------------------------------------


def test_bad_images_are_quarantined_and_never_stop_the_others(store: ArtefactStore) -> None:
    good = land(store, "good.png", fundus_picture(1))
    changed = land(store, "changed.png", fundus_picture(2))
    changed.path.write_bytes(good.path.read_bytes())
    missing = land(store, "missing.png", fundus_picture(3))
    missing.path.unlink()
    torn = land(store, "torn.png", fundus_picture(4))
    torn.path.write_bytes(torn.path.read_bytes()[:-500])
    torn = register(torn.path)
    black = land(store, "black.png", np.zeros((100, 100, 3), dtype=np.uint8))
    refused = replace(good, image_id="lane::refused", quarantine_reason="alpha_channel", quarantine_detail="found RGBA")
    outcome = preprocess(store, [good, changed, missing, torn, black, refused], workers=3)
    for stage in STAGES:
        assert {image_id: row["quarantine_reason"] for image_id, row in rows(store, stage).items()} == {
            "lane::good": None,
            "lane::changed": "changed_since_registration",
            "lane::missing": "missing",
            "lane::torn": "truncated",
            "lane::black": "roi_not_found",
            "lane::refused": "alpha_channel",
        }
        result = outcome.stages[stage]
        assert result.n_done == 1
        assert result.n_images == 6
        assert sum(result.n_quarantined.values()) == 5
    assert "threshold: expected" in rows(store, "roi_masks")["lane::black"]["quarantine_detail"]
    assert {path.stem for path in (store.root / "preproc").rglob("*.png") if "tile" not in path.stem} == {"lane__good"}


def test_images_quarantined_for_a_transient_reason_are_tried_again_and_others_are_not(
    store: ArtefactStore, computed: list[tuple[str, str]]
) -> None:
    missing = land(store, "missing.png", fundus_picture(3))
    content = missing.path.read_bytes()
    missing.path.unlink()
    black = land(store, "black.png", np.zeros((100, 100, 3), dtype=np.uint8))
    preprocess(store, [missing, black])
    computed.clear()
    missing.path.write_bytes(content)
    assert done(preprocess(store, [missing, black])) == dict.fromkeys(STAGES, 1)
    assert {image_id for image_id, _ in computed} == {"lane::missing"}


def test_a_later_stage_alone_quarantines_what_an_earlier_one_did(store: ArtefactStore) -> None:
    missing = land(store, "missing.png", fundus_picture(3))
    missing.path.unlink()
    black = land(store, "black.png", np.zeros((100, 100, 3), dtype=np.uint8))
    for stage in STAGES:
        outcome = preprocess(store, [missing, black], stages=[stage])
        assert outcome.stages[stage].n_quarantined == {"missing": 1, "roi_not_found": 1}


def test_a_newly_quarantined_image_loses_the_artefacts_of_its_former_content(store: ArtefactStore) -> None:
    image = land(store, "eye.png", fundus_picture(1))
    preprocess(store, [image])
    black = land(store, "eye.png", np.zeros((100, 100, 3), dtype=np.uint8))
    preprocess(store, [black])
    assert [path for path in (store.root / "preproc").rglob("*") if path.is_file()] == []


def test_a_raw_file_that_is_gone_harms_no_finished_artefacts(store: ArtefactStore) -> None:
    images = land_many(store, 1)
    preprocess(store, images)
    before = artefact_bytes(store.root)
    images[0].path.unlink()
    assert done(preprocess(store, images)) == dict.fromkeys(STAGES, 0)
    assert artefact_bytes(store.root) == before
    outcome = preprocess(store, images, code_version="2")
    assert outcome.stages["tiles"].n_quarantined == {"missing": 1}
    assert store.roi_mask("lane__image00").exists()


def test_a_stage_without_its_prerequisite_says_what_to_materialize(store: ArtefactStore) -> None:
    images = land_many(store, 2)
    with pytest.raises(BatchFailedError, match=r"lane::image00: .*materialize roi_masks") as caught:
        preprocess(store, images, stages=["normalized_crops"])
    assert len(caught.value.failures) == 2
    preprocess(store, images, stages=["roi_masks", "normalized_crops"])
    with pytest.raises(BatchFailedError, match=r"normalized_crops has no artefact .* materialize normalized_crops"):
        preprocess(store, images, with_normalization("grayworld"), stages=["tiles"])


def test_an_unexpected_error_names_the_image_after_the_others_are_done(
    store: ArtefactStore, monkeypatch: pytest.MonkeyPatch, computed: list[tuple[str, str]]
) -> None:
    images = land_many(store, 4)
    original = image_stages.crop_box

    def fail_once(mask: NDArray[np.uint8], pad_px: int) -> tuple[int, int, int, int]:
        if computed[-1][0] == "lane::image02":
            raise RuntimeError("the disk is full")
        return original(mask, pad_px)

    with monkeypatch.context() as patched:
        patched.setattr(image_stages, "crop_box", fail_once)
        with pytest.raises(BatchFailedError, match="lane::image02: RuntimeError: the disk is full") as caught:
            preprocess(store, images)
    outcome = caught.value.outcome
    assert done(outcome) == {"roi_masks": 4, "normalized_crops": 3, "tiles": 3}
    assert outcome.stages["tiles"].n_failed == 1
    assert "lane::image02" not in rows(store, "tiles")
    computed.clear()
    preprocess(store, images)
    assert computed == [("lane::image02", "normalized_crops"), ("lane::image02", "tiles")]


def test_reinhard_without_reference_colours_stops_before_any_image(store: ArtefactStore) -> None:
    with pytest.raises(ReferenceColorMissingError, match="materialize reference_color"):
        preprocess(store, land_many(store, 1), with_normalization("reinhard_lab_ref"))
    assert not (store.root / "preproc").exists()


def test_quarantine_details_name_the_image_by_the_name_it_may_have(store: ArtefactStore) -> None:
    image = land(store, "patient4711.png", fundus_picture(1))
    image = replace(image, image_id="lane::3f2a", name="lane::3f2a.png")
    image.path.write_bytes(b"")
    preprocess(store, [image, replace(register(image.path), image_id="lane::77", name="lane::77.png")])
    details = [row["quarantine_detail"] for row in rows(store, "roi_masks").values()]
    assert len(details) == 2
    assert not any("4711" in detail for detail in details)


# Records ----------------------------------------------------------------------------------------------------


def test_an_image_begun_anew_is_not_taken_for_done_when_the_old_configuration_returns(
    store: ArtefactStore, computed: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = land_many(store, 1)
    preprocess(store, images)
    before = artefact_bytes(store.root)
    original = image_stages.json_bytes

    def fail(value: Any) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        # Interrupted after the crop's images, before its metadata: the files are a mixture of both configurations.
        patched.setattr(image_stages, "json_bytes", fail)
        with pytest.raises(KeyboardInterrupt):
            preprocess(store, images, with_normalization("grayworld"))
    assert original is image_stages.json_bytes
    computed.clear()
    preprocess(store, images)
    assert ("lane::image00", "normalized_crops") in computed
    assert artefact_bytes(store.root) == before


def test_partial_files_of_a_killed_run_are_removed_but_only_of_this_batch(store: ArtefactStore) -> None:
    images = land_many(store, 1)
    preprocess(store, images)
    journal = store.stage_journal("lane", "roi_masks", "b00001")
    journal.write_bytes(b"")
    store.tile("lane__image00", "tile_003").unlink()
    ours = [
        store.roi_mask("x").with_name(".lane__image00.png.123-abcdef01.partial"),
        store.tile("lane__image00", "tile_000").with_name(".tile_001.png.123-abcdef01.partial"),
        store.tiles_metadata("x").with_name(".lane__image00.json.123-abcdef01.partial"),
        store.stage_index("lane", "tiles", "x").with_name(".b00001.parquet.123-abcdef01.partial"),
    ]
    foreign = [store.roi_mask("x").with_name(".lane__other.png.123-abcdef01.partial")]
    for path in ours + foreign:
        path.write_bytes(b"half")
    preprocess(store, images)
    assert [path for path in ours if path.exists()] == []
    assert all(path.exists() for path in foreign)
    assert not journal.exists()


def test_partial_files_of_an_image_with_a_long_name_are_removed(store: ArtefactStore) -> None:
    image = land(store, f"{'a' * 149}.png", fundus_picture(1))
    preprocess(store, [image])
    store.stage_journal("lane", "roi_masks", "b00001").write_bytes(b"")
    mask = store.roi_mask(artefact_key(image.image_id))
    half = mask.with_name(f"{temporary_beginning(mask.name)}.123-abcdef01.partial")
    half.write_bytes(b"half")
    preprocess(store, [image])
    assert mask.exists()
    assert not half.exists()


def test_progress_and_statistics_are_reported(store: ArtefactStore) -> None:
    images = land_many(store, 3)
    seen: list[tuple[int, int]] = []
    outcome = preprocess_batch(
        store,
        "lane",
        "b00001",
        lambda: images,
        SMALL,
        STAGES,
        workers=2,
        code_version="1",
        progress=lambda count, total: seen.append((count, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    areas = [row["area_ratio"] for row in rows(store, "roi_masks").values()]
    assert outcome.stages["roi_masks"].statistics["roi_area_ratio_min"] == min(areas)
    assert outcome.stages["tiles"].statistics["n_tiles"] == 12
    sizes = {
        stage: sum(path.stat().st_size for name in names for path in (store.root / "preproc" / name).rglob("*.*"))
        for stage, names in {
            "roi_masks": ["roi_masks"],
            "normalized_crops": ["crops", "crop_meta", "norm", "norm_meta"],
            "tiles": ["global_128", "tiles", "tiles_meta"],
        }.items()
    }
    assert {stage: result.bytes_written for stage, result in outcome.stages.items()} == sizes


# SAM 2 ------------------------------------------------------------------------------------------------------


class FakeSegmenter:
    """Marks the central box; refuses images whose id the test asks for."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def segment(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8] | str]:
        self.batches.append(len(images))
        results: list[NDArray[np.uint8] | str] = []
        for image in images:
            mask = np.zeros(image.shape[:2], dtype=np.uint8)
            mask[40:160, 40:200] = 255
            results.append("empty mask" if image[100, 120].tolist() == [9, 9, 9] else mask)
        return results


def sam2_roi(fallback: tuple[str, ...], **settings: Any) -> PreprocessConfiguration:
    roi = RoiConfiguration.model_validate({"method": "sam2_prompted", "fallback": fallback, **settings})
    return SMALL.model_copy(update={"roi": roi})


def test_sam2_sees_the_images_in_batches_and_fallbacks_are_recorded(
    store: ArtefactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = land_many(store, 4)
    refused = fundus_picture(9)
    refused[100, 120] = 9
    images.append(land(store, "refused.png", refused))
    images[1].path.unlink()
    segmenter = FakeSegmenter()
    monkeypatch.setattr(roi_sam2, "load_sam2_segmenter", lambda configuration, checkpoint: segmenter)
    outcome = preprocess(store, images, sam2_roi(("threshold",), sam2={"batch_size": 3}), workers=2)
    assert segmenter.batches == [2, 2]
    result = rows(store, "roi_masks")
    assert result["lane::image00"]["method"] == "sam2_prompted"
    assert result["lane::image01"]["quarantine_reason"] == "missing"
    assert result["lane::refused"]["method"] == "threshold"
    assert result["lane::refused"]["fallbacks"] == ["sam2_prompted: empty mask"]
    assert outcome.stages["roi_masks"].n_fallback == {"threshold": 1}
    mask = cv2.imread(str(store.roi_mask("lane__image00")), cv2.IMREAD_GRAYSCALE)
    assert mask is not None
    assert (mask[40:160, 40:200] == 255).all()
    assert np.count_nonzero(mask) == 120 * 160


def test_sam2_after_another_method_is_asked_image_by_image(
    store: ArtefactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = FakeSegmenter()
    monkeypatch.setattr(roi_sam2, "load_sam2_segmenter", lambda configuration, checkpoint: segmenter)
    dark = np.zeros((200, 240, 3), dtype=np.uint8)
    dark[90:110, 100:140] = (120, 60, 30)
    images = [land(store, "dark.png", dark), land(store, "fine.png", fundus_picture(1))]
    roi = RoiConfiguration(method="threshold", fallback=("sam2_prompted",))
    preprocess(store, images, SMALL.model_copy(update={"roi": roi}))
    assert segmenter.batches == [1]
    assert rows(store, "roi_masks")["lane::dark"]["method"] == "sam2_prompted"
    assert rows(store, "roi_masks")["lane::dark"]["fallbacks"][0].startswith("threshold: expected a mask")


def test_sam2_that_cannot_be_loaded_is_each_images_reason_to_fall_back(
    store: ArtefactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(configuration: Any, checkpoint: Path) -> FakeSegmenter:
        raise Sam2UnavailableError(f"{checkpoint.name}: no such file")

    monkeypatch.setattr(roi_sam2, "load_sam2_segmenter", load)
    images = land_many(store, 2)
    outcome = preprocess(store, images, sam2_roi(("threshold",)))
    assert outcome.stages["roi_masks"].n_fallback == {"threshold": 2}
    expected = "sam2_prompted: unavailable: sam2.1_hiera_base_plus.pt: no such file"
    assert all(row["fallbacks"] == [expected] for row in rows(store, "roi_masks").values())
    with pytest.raises(Sam2UnavailableError, match="no such file"):
        preprocess(store, images, sam2_roi(()))


class Sam2ThatComesAndGoes:
    """Loads a fake segmenter while ``there`` is true; the checkpoint's digest stays the same all the while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there = False
        self.n_loads = 0
        monkeypatch.setattr(roi_sam2, "load_sam2_segmenter", self._load)

    def _load(self, configuration: Any, checkpoint: Path) -> FakeSegmenter:
        self.n_loads += 1
        if not self.there:
            raise Sam2UnavailableError("cuda: expected a GPU, found none")
        return FakeSegmenter()


def test_masks_made_without_sam2_are_made_again_with_all_later_stages_once_it_is_there(
    store: ArtefactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sam2 = Sam2ThatComesAndGoes(monkeypatch)
    refused = fundus_picture(9)
    refused[100, 120] = 9
    images = [*land_many(store, 2), land(store, "refused.png", refused)]
    configuration = sam2_roi(("threshold",))
    assert done(preprocess(store, images, configuration)) == {"roi_masks": 3, "normalized_crops": 3, "tiles": 3}
    assert done(preprocess(store, images, configuration)) == {"roi_masks": 0, "normalized_crops": 0, "tiles": 0}
    sam2.there = True
    assert done(preprocess(store, images, configuration)) == {"roi_masks": 3, "normalized_crops": 3, "tiles": 3}
    assert rows(store, "roi_masks")["lane::image00"]["method"] == "sam2_prompted"
    assert rows(store, "roi_masks")["lane::refused"]["fallbacks"] == ["sam2_prompted: empty mask"]
    n_loads = sam2.n_loads
    assert done(preprocess(store, images, configuration)) == {"roi_masks": 0, "normalized_crops": 0, "tiles": 0}
    assert sam2.n_loads == n_loads, "an implausible mask is no reason to ask again"
    fresh = ArtefactStore(root=tmp_path / "fresh", raw=store.raw)
    preprocess(fresh, images, configuration)
    assert artefact_bytes(fresh.root) == artefact_bytes(store.root)


def test_crops_and_tiles_follow_a_mask_that_was_made_again_by_itself(
    store: ArtefactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sam2 = Sam2ThatComesAndGoes(monkeypatch)
    images = land_many(store, 2)
    configuration = sam2_roi(("threshold",))
    preprocess(store, images, configuration)
    sam2.there = True
    assert done(preprocess(store, images, configuration, stages=["roi_masks"])) == {"roi_masks": 2}
    later = preprocess(store, images, configuration, stages=["normalized_crops", "tiles"])
    assert done(later) == {"normalized_crops": 2, "tiles": 2}
    fresh = ArtefactStore(root=tmp_path / "fresh", raw=store.raw)
    preprocess(fresh, images, configuration)
    assert artefact_bytes(fresh.root) == artefact_bytes(store.root)


def test_images_quarantined_without_sam2_are_tried_again_once_it_is_there(
    store: ArtefactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sam2 = Sam2ThatComesAndGoes(monkeypatch)
    dark = np.zeros((200, 240, 3), dtype=np.uint8)
    dark[90:110, 100:140] = (120, 60, 30)
    images = [land(store, "dark.png", dark)]
    roi = RoiConfiguration(method="threshold", fallback=("sam2_prompted",))
    configuration = SMALL.model_copy(update={"roi": roi})
    preprocess(store, images, configuration)
    assert rows(store, "tiles")["lane::dark"]["quarantine_reason"] == "roi_not_found"
    sam2.there = True
    assert done(preprocess(store, images, configuration, stages=["roi_masks"])) == {"roi_masks": 1}
    later = preprocess(store, images, configuration, stages=["normalized_crops", "tiles"])
    assert done(later) == {"normalized_crops": 1, "tiles": 1}


def test_a_new_checkpoint_recomputes_the_masks(store: ArtefactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roi_sam2, "load_sam2_segmenter", lambda configuration, checkpoint: FakeSegmenter())
    images = land_many(store, 1)
    configuration = sam2_roi(("threshold",), sam2={"checkpoint": "models/small.pt"})
    assert done(preprocess(store, images, configuration))["roi_masks"] == 1
    assert done(preprocess(store, images, configuration))["roi_masks"] == 0
    checkpoint = store.root / "models" / "small.pt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"weights")
    assert done(preprocess(store, images, configuration))["roi_masks"] == 1


def test_tiles_of_a_former_crop_lose_their_metadata_until_they_are_made_again(store: ArtefactStore) -> None:
    images = land_many(store, 1)
    preprocess(store, images)
    wide = SMALL.model_copy(update={"roi": SMALL.roi.model_copy(update={"crop_pad_px": 1})})
    preprocess(store, images, wide, stages=("roi_masks", "normalized_crops"))
    assert not store.tiles_metadata("lane__image00").exists()
    preprocess(store, images, wide)
    frames = ImageFrames.from_metadata(
        read_json(store.crop_metadata("lane__image00")), read_json(store.tiles_metadata("lane__image00"))
    )
    assert frames.raw_to_global.apply([frames.crop_box[0], 0])[0] == pytest.approx(
        frames.pad_xy[0] * frames.global_size / frames.padded_side
    )


def test_losing_the_crops_index_leaves_no_image_without_tiles(store: ArtefactStore) -> None:
    images = land_many(store, 1)
    preprocess(store, images)
    before = artefact_bytes(store.root)
    store.stage_index("lane", "normalized_crops", "b00001").unlink()
    preprocess(store, images)
    assert artefact_bytes(store.root) == before


def test_a_batch_without_images_has_an_empty_index(store: ArtefactStore) -> None:
    preprocess(store, [])
    assert rows(store, "tiles") == {}
    assert store.stage_index("lane", "tiles", "b00001").exists()
