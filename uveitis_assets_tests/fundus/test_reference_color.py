"""Reference colours."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from uveitis_assets.fundus.color import ReferenceColor
from uveitis_assets.fundus.reference_color import (
    ReferenceColorError,
    ReferenceColorMissingError,
    build_reference_color,
    read_reference_color,
)
from uveitis_assets.landing.samples import RegisteredImage
from uveitis_assets.storage.files import write_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.fundus.preprocess_inputs import fundus_picture, land


@pytest.fixture
def images(store: ArtefactStore) -> list[RegisteredImage]:
    return [
        land(store, f"{dataset}{number}.png", fundus_picture(number + offset), dataset)
        for offset, dataset in ((0, "eyepacs"), (50, "fgadr"))
        for number in range(6)
    ]


def test_statistics_are_those_of_all_retina_pixels_when_everything_is_taken(
    store: ArtefactStore, images: list[RegisteredImage]
) -> None:
    content = build_reference_color(store, images, pixels_per_image=10**6, stats_erode_px=4).content
    disc = np.zeros((200, 240), dtype=np.uint8)
    cv2.ellipse(disc, (120, 100), (96, 86), 0, 0, 360, 255, -1)
    pixels = np.concatenate([fundus_picture(seed)[disc > 0] for seed in (*range(6), *range(50, 56))])
    lab = cv2.cvtColor(pixels[:, None], cv2.COLOR_RGB2LAB)[:, 0]
    assert content["n_images_used"] == 12
    assert content["n_pixels"] == pytest.approx(len(pixels), rel=0.02)
    np.testing.assert_allclose(content["rgb_mean"], pixels.mean(axis=0), atol=0.5)
    np.testing.assert_allclose(content["rgb_std"], pixels.std(axis=0), atol=0.5)
    np.testing.assert_allclose(content["lab_mean"], lab.mean(axis=0), atol=0.5)
    np.testing.assert_allclose(content["lab_std"], lab.std(axis=0), atol=0.5)


def test_the_file_has_the_earlier_scripts_keys_and_no_time(store: ArtefactStore, images: list[RegisteredImage]) -> None:
    content = build_reference_color(store, images).content
    assert list(content) == [
        "kind",
        "datasets",
        "n_images_used",
        "n_pixels",
        "rgb_mean",
        "rgb_std",
        "lab_mean",
        "lab_std",
        "cfg",
    ]
    assert content["kind"] == "regular_fundus_color_reference"
    assert content["datasets"] == ["eyepacs", "fgadr"]
    assert content["cfg"] == {"stats_erode_px": 4, "roi_method": "threshold"}


def test_order_and_number_of_workers_do_not_change_the_result(
    store: ArtefactStore, images: list[RegisteredImage]
) -> None:
    first = build_reference_color(store, images, per_dataset=4, pixels_per_image=100)
    assert build_reference_color(store, images[::-1], per_dataset=4, pixels_per_image=100, workers=4) == first
    assert first.content["n_images_used"] == 8
    assert first.content["n_pixels"] == 800
    assert build_reference_color(store, images, per_dataset=4, max_images=3).content["n_images_used"] == 3


def test_unusable_images_are_reported_and_left_out(store: ArtefactStore, images: list[RegisteredImage]) -> None:
    images[0].path.unlink()
    black = land(store, "black.png", np.zeros((100, 100, 3), dtype=np.uint8), "fgadr")
    report = build_reference_color(store, [*images, black])
    assert report.content["n_images_used"] == 11
    assert [image_id for image_id, _ in report.skipped] == ["lane::black", "lane::eyepacs0"]
    with pytest.raises(ValueError, match="none of 1 sampled images"):
        build_reference_color(store, [black])


def test_the_file_is_read_back_for_reinhard(store: ArtefactStore, images: list[RegisteredImage]) -> None:
    content = build_reference_color(store, images).content
    write_json(store.reference_color_file(), content)
    reference = read_reference_color(store.reference_color_file())
    assert reference == ReferenceColor(tuple(content["lab_mean"]), tuple(content["lab_std"]))


@pytest.mark.parametrize(
    "content",
    [{"kind": "other"}, {"kind": "regular_fundus_color_reference", "lab_mean": [1, 2], "lab_std": [1, 2, 3]}, {}],
)
def test_other_files_are_refused_by_name(tmp_path: Path, content: dict[str, object]) -> None:
    path = tmp_path / "stats.json"
    with pytest.raises(ReferenceColorMissingError, match="materialize reference_color"):
        read_reference_color(path)
    path.write_text(json.dumps(content))
    with pytest.raises(ReferenceColorError, match=r"stats\.json: expected regular_fundus_color_reference"):
        read_reference_color(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"{", "expected JSON, found"),
        (b"{}", "found no lab_mean"),
        (b"[]", "expected a JSON object, found list"),
        (b'{"lab_mean": [1, 2, 3]}', "found no lab_std"),
        (b'{"lab_mean": 1, "lab_std": 1}', "not iterable"),
        (b"\xff\x80" * 9, "found bytes that are no text"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "stats.json"
    path.write_bytes(content)
    with pytest.raises(ReferenceColorError, match=rf"stats\.json.*{found}.*; materialize reference_color again"):
        read_reference_color(path)
