"""Artefacts of preprocessing that broke after they were made: found by later stages and by the checks' sample."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from uveitis_assets.fundus.configuration import STAGES, PreprocessConfiguration, PreprocessStage
from uveitis_assets.fundus.file_checks import StageFiles, sampled_rows
from uveitis_assets.fundus.preprocess import preprocess_batch
from uveitis_assets.imaging.png import encode_png
from uveitis_assets.landing.samples import RegisteredImage
from uveitis_assets.stages.batch_outcome import BatchFailedError, BatchOutcome
from uveitis_assets.stages.index import Row, read_stage_index
from uveitis_assets.stages.suspect_files import read_suspects
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.fundus.preprocess_inputs import SMALL, artefact_bytes, land_many

KEY = "lane__image00"
ID = "lane::image00"


@pytest.fixture
def store(tmp_path: Path) -> ArtefactStore:
    return ArtefactStore(tmp_path, tmp_path / "raw")


@pytest.fixture
def images(store: ArtefactStore) -> list[RegisteredImage]:
    return land_many(store, 2)


def preprocess(
    store: ArtefactStore,
    images: Sequence[RegisteredImage],
    stages: Sequence[PreprocessStage] = STAGES,
    configuration: PreprocessConfiguration = SMALL,
) -> BatchOutcome[PreprocessStage]:
    return preprocess_batch(store, "lane", "b00001", lambda: images, configuration, stages, workers=1, code_version="1")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rows(store: ArtefactStore, stage: PreprocessStage) -> dict[str, Row]:
    return read_stage_index(store.stage_index("lane", stage, "b00001"))


def counts(outcome: BatchOutcome[PreprocessStage]) -> dict[str, tuple[int, int, list[str]]]:
    return {name: (stage.n_done, stage.n_skipped, list(stage.repaired)) for name, stage in outcome.stages.items()}


def test_a_changed_file_that_a_later_stage_reads_is_made_again_in_the_same_run(
    store: ArtefactStore, images: list[RegisteredImage]
) -> None:
    preprocess(store, images)
    expected = artefact_bytes(store.root)
    flip(store.roi_mask(KEY))
    flip(store.normalized_crop(KEY))
    os.truncate(store.global_image(KEY, 128), 0)
    outcome = preprocess(store, images)
    assert counts(outcome) == {stage: (1, 1, [ID]) for stage in STAGES}
    assert "expected CRC-32" in outcome.stages["roi_masks"].repaired[ID]
    assert outcome.stages["tiles"].repaired[ID].startswith(f"preproc/global_128/{KEY}.png: expected ")
    assert artefact_bytes(store.root) == expected


@pytest.mark.parametrize("broken", ["normalized_crop", "crop_metadata"])
def test_a_stage_that_is_not_requested_is_not_repaired_but_noted_for_its_next_run(
    store: ArtefactStore, images: list[RegisteredImage], broken: str
) -> None:
    preprocess(store, images)
    expected = artefact_bytes(store.root)
    path = getattr(store, broken)(KEY)
    # A digit, so that the metadata can still be parsed.
    path.write_bytes(path.read_bytes().replace(b"200", b"201")) if path.suffix == ".json" else flip(path)
    store.tiles_metadata(KEY).unlink()
    with pytest.raises(BatchFailedError, match=rf"{ID}: DamagedStageError: .*{path.name}: expected CRC-32"):
        preprocess(store, images, ["tiles"])
    assert counts(preprocess(store, images)) == {
        "roi_masks": (0, 2, []), "normalized_crops": (1, 1, [ID]), "tiles": (1, 1, [])
    }  # fmt: skip
    assert artefact_bytes(store.root) == expected


def test_the_sample_depends_on_the_seed_alone_and_holds_usable_images(
    store: ArtefactStore, images: list[RegisteredImage]
) -> None:
    table = [{"image_id": f"lane::{n:02d}", "quarantine_reason": "bad" if n % 3 == 0 else None} for n in range(60)]
    sample = sampled_rows(table, 8, "lane b00001")
    assert len(sample) == 8
    assert sample == sampled_rows(table[::-1], 8, "lane b00001")
    assert sample != sampled_rows(table, 8, "lane b00002")
    assert all(row["quarantine_reason"] is None for row in sample)
    assert len(sampled_rows(table, 100, "x")) == 40
    assert sampled_rows(table, 0, "x") == []


def test_an_opened_mask_is_compared_with_its_record_its_size_its_values_and_the_limit(
    store: ArtefactStore, images: list[RegisteredImage]
) -> None:
    preprocess(store, images)
    row = rows(store, "roi_masks")[ID]
    files, path = StageFiles(store, "lane", "roi_masks", "b00001", SMALL), store.roi_mask(KEY)
    assert files.mask_findings(row, 0.12) == []
    flip(path)
    (finding,) = files.mask_findings(row, 0.12)
    assert finding.startswith(f"{ID}: preproc/roi_masks/{KEY}.png: expected CRC-32 ")
    assert finding.endswith("; materialize lane/roi_masks[b00001] again")
    assert read_suspects(store.stage_index("lane", "roi_masks", "b00001")) == {f"preproc/roi_masks/{KEY}.png"}
    unrecorded = row | {"files": None}
    assert "changed bytes in the chunk" in files.mask_findings(unrecorded, 0.12)[0]
    for mask, text in (
        (np.zeros((5, 5), np.uint8), "expected a mask of 240x200 px"),
        (np.full((200, 240), 7, np.uint8), "found 48000 other pixels"),
        (np.zeros((200, 240), np.uint8), "the mask covers 0.000 of the image"),
    ):
        path.write_bytes(encode_png(mask))
        assert text in files.mask_findings(unrecorded, 0.12)[0]
    path.unlink()
    assert "no such file" in files.mask_findings(row, 0.12)[0]


def test_files_of_a_kind_that_is_not_persisted_any_more_may_be_deleted(
    store: ArtefactStore, images: list[RegisteredImage]
) -> None:
    preprocess(store, images)
    lean = SMALL.model_copy(update={"persist": ("tiles",)})
    store.global_image(KEY, 128).unlink()
    row = rows(store, "tiles")[ID]
    (finding,) = StageFiles(store, "lane", "tiles", "b00001", SMALL).damage(row, contents=True)
    assert "found no file" in finding
    files = StageFiles(store, "lane", "tiles", "b00001", lean)
    assert files.damage(row, contents=True) == []
    assert files.reconstruction(row) == (0.0, [])
    assert counts(preprocess(store, images, configuration=lean))["tiles"] == (0, 2, [])


@pytest.mark.parametrize("frame", ["global", "native"])
def test_opened_tiles_are_put_together_and_compared_with_the_image_they_were_cut_from(
    store: ArtefactStore, images: list[RegisteredImage], frame: str
) -> None:
    configuration = SMALL.model_copy(update={"tiling": SMALL.tiling.model_copy(update={"frame": frame})})
    preprocess(store, images, configuration=configuration)
    row = rows(store, "tiles")[ID]
    files, path = StageFiles(store, "lane", "tiles", "b00001", configuration), store.tile(KEY, "tile_000")
    assert files.reconstruction(row) == (0.0, [])
    pixels = cv2.imread(str(path))
    changed = pixels.copy()
    changed[40:60, 40:60] ^= 1
    path.write_bytes(encode_png(changed))
    assert "expected " in files.reconstruction(row)[1][0]
    # Another sound PNG, and an index that records no files.
    error, findings = files.reconstruction(row | {"files": None})
    assert findings == []
    assert 0 < error < 1
    path.write_bytes(encode_png(changed[:50]))
    assert "expected tiles of" in files.reconstruction(row | {"files": None})[1][0]
    path.unlink()
    assert "no such file" in files.reconstruction(row)[1][0]
