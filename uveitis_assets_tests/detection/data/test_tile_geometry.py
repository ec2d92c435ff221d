"""Tiles that are cut or scaled in another way than those that were learned are named."""

from __future__ import annotations

from typing import Any

import pytest

from uveitis_assets.detection.data.tile_geometry import TileGeometry, tile_finding
from uveitis_assets.imaging.configuration import TilingConfiguration
from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets.imaging.tiling import image_frames

CROP = (0, 0, 3000, 2400)


def frames(crop: tuple[int, int, int, int] = CROP, *, whole: bool = False, **tiling: Any) -> ImageFrames:
    made = image_frames((4000, 3000), crop, TilingConfiguration.model_validate(tiling))
    return made.with_global_tile() if whole else made


def geometry(*images: ImageFrames, input_px: int = 768) -> TileGeometry:
    found = TileGeometry.of_images(images, input_px)
    assert found is not None
    return found


def test_geometry_holds_frame_scale_and_the_global_tile_and_survives_its_plain_form() -> None:
    found = geometry(frames(frame="native", tile_size=1536, whole=True))
    assert found == TileGeometry("native", True, 1536, 768, 1024)
    assert found.px_per_input_px == 2.0
    assert TileGeometry.from_plain(found.plain()) == found
    assert str(found) == "native tiles of 1536 px (2 px per input px) and the global image"
    assert str(geometry(frames())) == "global tiles of 768 px of a global image of 1024 px (1 px per input px)"
    assert TileGeometry.of_images([], 768) is None


@pytest.mark.parametrize(
    ("learned", "shown"),
    [
        ({}, {"frame": "native"}),
        ({"frame": "native"}, {}),
        ({"frame": "native"}, {"frame": "native", "whole": True}),
        ({"frame": "native", "tile_size": 768}, {"frame": "native", "tile_size": 512}),
        ({"tile_size": 768}, {"tile_size": 1024}),
        ({"global_size": 1024}, {"global_size": 2048}),
    ],
)
def test_other_frames_scales_and_global_tiles_are_named_in_both_ways(
    learned: dict[str, Any], shown: dict[str, Any]
) -> None:
    before, now = geometry(frames(**learned)), geometry(frames(**shown))
    finding = tile_finding("lane/checkpoint of fold0", before, [frames(**shown)])
    assert finding is not None
    assert finding.startswith(f"lane/checkpoint of fold0 learned {before}, and is shown {now}: ")


def test_photographs_of_other_sizes_and_the_network_s_own_input_are_no_finding() -> None:
    learned = geometry(frames(frame="native"), input_px=512)
    larger = frames((0, 0, 3900, 2900), frame="native")
    small = frames((0, 0, 700, 650), frame="native")
    assert tile_finding("x", learned, [larger, larger, small]) is None
    assert tile_finding("x", None, [frames()]) is None, "of an earlier version"
    assert tile_finding("x", learned, []) is None


def test_a_lane_in_which_some_images_have_tiles_of_another_frame_is_unlike_each_of_both() -> None:
    mixed = [frames(), frames(frame="native")]
    assert geometry(*mixed).frame == "global and native"
    for image in mixed:
        assert tile_finding("x", geometry(image), mixed) is not None
