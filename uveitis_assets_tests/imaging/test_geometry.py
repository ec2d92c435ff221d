"""Coordinate frames."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from uveitis_assets.imaging.configuration import TilingConfiguration
from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets.imaging.tiling import image_frames


@st.composite
def frames_of_images(draw: st.DrawFn) -> ImageFrames:
    width, height = draw(st.integers(40, 5000)), draw(st.integers(40, 5000))
    x0, y0 = draw(st.integers(0, width - 33)), draw(st.integers(0, height - 33))
    x1, y1 = draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))
    tiling = TilingConfiguration(
        global_size=draw(st.integers(64, 2048)),
        tile_size=draw(st.integers(32, 1024)),
        overlap=draw(st.floats(0.0, 0.6)),
        frame=draw(st.sampled_from(["global", "native"])),
    )
    return image_frames((width, height), (x0, y0, x1, y1), tiling)


@settings(max_examples=60)
@given(frames_of_images(), st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)), min_size=1, max_size=8))
def test_points_come_back_from_every_frame_to_a_millionth_of_a_pixel(
    frames: ImageFrames, points: list[tuple[float, float]]
) -> None:
    raw = np.array(points)
    for transform in (frames.raw_to_crop, frames.raw_to_global, frames.raw_to_tiling):
        np.testing.assert_allclose(transform.inverse().apply(transform.apply(raw)), raw, rtol=0, atol=1e-6)
        there = transform.apply(raw)
        np.testing.assert_allclose(transform.apply(transform.inverse().apply(there)), there, rtol=0, atol=1e-6)


@settings(max_examples=60)
@given(frames_of_images(), st.floats(0, 5000), st.floats(0, 5000))
def test_global_coordinates_follow_the_documented_formula(frames: ImageFrames, x: float, y: float) -> None:
    side = max(frames.crop_size)
    scale = frames.global_size / side
    expected = (
        (x - frames.crop_box[0] + (side - frames.crop_size[0]) // 2) * scale,
        (y - frames.crop_box[1] + (side - frames.crop_size[1]) // 2) * scale,
    )
    np.testing.assert_allclose(frames.raw_to_global.apply((x, y)), expected, rtol=1e-12, atol=1e-7)


@settings(max_examples=40)
@given(frames_of_images())
def test_frames_come_back_from_their_metadata_files(frames: ImageFrames) -> None:
    def through_json(value: dict[str, Any]) -> dict[str, Any]:
        return dict(json.loads(json.dumps(value)))

    back = ImageFrames.from_metadata(
        through_json(frames.crop_metadata()), through_json(frames.tiles_metadata("lane::image"))
    )
    assert back == frames
    box = np.array([[0.0, 1.0, 17.25, 33.5]])
    np.testing.assert_array_equal(back.raw_to_global.apply_boxes(box), frames.raw_to_global.apply_boxes(box))


def test_metadata_of_the_earlier_scripts_without_a_frame_means_global() -> None:
    crop = {"bbox_xyxy": [10, 20, 1010, 820], "orig_size": [1200, 900], "crop_size": [1000, 800]}
    tiles = {
        "image_id": "uwf700::Uveitis-001",
        "global_size": [1024, 1024],
        "global_meta": {"pad_xy": [0, 100], "padded_side": 1000, "scale": 1.024, "orig_size": [1000, 800]},
        "tiles": [{"tile_id": "tile_003", "x0": 256, "y0": 256, "x1": 1024, "y1": 1024, "scale": 1.0}],
    }
    frames = ImageFrames.from_metadata(crop, tiles)
    assert frames.frame == "global"
    np.testing.assert_allclose(frames.raw_to_tiling.apply((510.0, 420.0)), (512.0, 512.0), atol=1e-9)


def test_the_crop_fills_the_global_image_from_edge_to_edge() -> None:
    frames = image_frames((4000, 3000), (100, 50, 3900, 2950), TilingConfiguration())
    np.testing.assert_allclose(frames.raw_to_global.apply((100.0, 50.0 - 450.0)), (0.0, 0.0), atol=1e-9)
    np.testing.assert_allclose(frames.raw_to_global.apply((3900.0, 2950.0 + 450.0)), (1024.0, 1024.0), atol=1e-9)
