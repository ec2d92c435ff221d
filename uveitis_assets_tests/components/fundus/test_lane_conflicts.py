"""Lanes compared with each other; how messages name files and lines is tested with the components."""

import pytest

from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.components.fundus.lane_conflicts import PlacedLane, check_lanes_compatible
from uveitis_assets.landing.layouts import scan_landing_folder
from uveitis_assets.orchestration.lane_names import LaneConflictError
from uveitis_assets_tests.landing.landing_samples import jpeg, land

FILES = {
    "uwf700": ["Images/DR/a.jpg"],
    "fgadr": ["Original_Images/a.png"],
    "deepdrid": ["ultra-widefield-training/Images/1/1_l1.jpg", "regular-fundus-training/Images/1/1_r1.jpg"],
    "eyepacs": ["train/1_left.jpeg"],
    "image_folder": ["a.jpg"],
}


def lane(name="lane", layout="image_folder", **options):
    return LaneConfiguration(name=name, layout=layout, folder="ds", **options)


@pytest.mark.parametrize("layout", FILES)
def test_a_lane_s_tags_are_those_that_its_layout_gives(store, layout):
    for name in FILES[layout]:
        land(store, name, jpeg(1))
    found = {image.dataset for image in scan_landing_folder(lane(layout=layout), store).samples}
    assert found == set(lane(layout=layout).dataset_tags)


def test_all_conflicts_are_listed_at_once_and_without_places_the_lanes_are_named():
    lanes = [lane("deepdrid", "deepdrid"), lane("deepdrid_uwf", splits={"folds": 3}), lane("x", splits={"folds": 3})]
    with pytest.raises(LaneConflictError) as caught:
        check_lanes_compatible([PlacedLane(one) for one in lanes])
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "`name` of lane deepdrid_uwf",
        "`splits.folds` of lane deepdrid_uwf",
        "`splits.folds` of lane x",
    ]


@pytest.mark.parametrize("pinned", ["splits/stage0_0.json", "splits//stage0_{fold}.json", "./splits/stage0_11.json"])
def test_a_lane_must_not_pin_the_splits_file_that_it_writes_itself(pinned):
    with pytest.raises(LaneConflictError, match="which the manifest of lane lane overwrites; copy the file"):
        check_lanes_compatible([PlacedLane(lane(splits={"pinned": pinned}))])
    check_lanes_compatible([PlacedLane(lane(splits={"pinned": pinned, "name": "stage1"}))])
