import numpy as np
import pytest

from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.inference.heat_map import draw_heat_map, heat_map
from uveitis_assets_tests.detection.known_detectors import detections


def test_the_middle_of_a_lesion_is_as_hot_as_its_score_and_far_away_is_cold() -> None:
    heat = heat_map(detections([((40, 40, 61, 61), 0.7, 5)]), (200, 120))
    assert heat.shape == (120, 200)
    assert heat[50, 50] == pytest.approx(0.7, abs=1e-3)
    assert heat.max() <= 0.7 + 1e-6
    assert heat[110, 190] == 0
    # At the middle of a side: exp(-1 / (2 * 0.63^2)) of the height.
    assert heat[50, 61] == pytest.approx(0.7 * 0.284, abs=0.03)


def test_agreeing_detections_add_up_as_independent_witnesses() -> None:
    rows = [((40, 40, 61, 61), 0.7, 5), ((40, 40, 61, 61), 0.5, 1)]
    assert heat_map(detections(rows), (100, 100))[50, 50] == pytest.approx(1 - 0.3 * 0.5, abs=1e-3)


def test_the_scale_is_the_same_whatever_else_an_image_holds() -> None:
    weak = ((10, 10, 30, 30), 0.3, 5)
    alone = heat_map(detections([weak]), (300, 300))
    beside = heat_map(detections([weak, ((200, 200, 260, 260), 0.99, 5)]), (300, 300))
    assert np.array_equal(alone[:60, :60], beside[:60, :60])
    grey = np.full((300, 300, 3), 90, np.uint8)
    assert np.array_equal(draw_heat_map(grey, alone)[:60, :60], draw_heat_map(grey, beside)[:60, :60])


def test_oriented_lesions_are_hot_along_their_axis() -> None:
    corners = np.array([[[20, 26], [26, 20], [80, 74], [74, 80]]], np.float32)
    box = np.array([[20, 20, 80, 80]], np.float32)
    heat = heat_map(Detections(box, np.ones(1, np.float32), np.ones(1, np.int64), corners), (100, 100))
    assert heat[35, 35] > 0.5
    assert heat[65, 35] < 0.01


def test_lesions_at_and_beyond_the_edge_do_not_matter_elsewhere() -> None:
    heat = heat_map(detections([((-20, -20, 6, 6), 0.9, 5), ((500, 500, 520, 520), 0.9, 5)]), (100, 100))
    assert heat[0, 0] > 0.3
    assert heat[60:, 60:].max() == 0


def test_an_image_without_detections_is_cold_and_grey() -> None:
    heat = heat_map(Detections.empty(), (64, 64))
    assert heat.max() == 0
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    drawn = draw_heat_map(image, heat)[:, :20]
    assert (drawn == drawn[..., :1]).all()
