import cv2
import numpy as np
import pytest

from uveitis_assets.detection.inference import prediction_overlays
from uveitis_assets.detection.inference.detections import Detections, GroundTruth
from uveitis_assets.detection.inference.prediction_overlays import draw_detections, prediction_sheet
from uveitis_assets.labels.palette import category_color
from uveitis_assets_tests.detection.known_detectors import detections

NAMES = {1: "foyer_choroidien", 5: "hemorragie"}


def black(side: int = 200) -> np.ndarray:
    return np.zeros((side, side, 3), np.uint8)


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, int, int, int]]]:
    """Names that are drawn, with their places."""
    drawn: list[tuple[str, tuple[int, int, int, int]]] = []
    original = prediction_overlays.draw_name

    def record(image: np.ndarray, text: str, box: tuple[float, ...], color: tuple[int, ...], *, height_px: int) -> None:
        place = prediction_overlays.name_rectangle(image, text, box, height_px=height_px)
        drawn.append((text, place))
        original(image, text, box, color, height_px=height_px)

    monkeypatch.setattr(prediction_overlays, "draw_name", record)
    return drawn


def test_a_detection_is_outlined_in_its_categorys_colour_and_named_with_its_score(texts: list) -> None:
    image = black()
    draw_detections(image, detections([((50, 60, 90, 120), 0.874, 5)]), NAMES)
    assert tuple(image[90, 50]) == tuple(image[119, 70]) == category_color(5)
    assert not image[90, 60].any()
    assert [text for text, _ in texts] == ["hemorragie:0.87"]


def test_oriented_detections_are_drawn_as_their_polygon(texts: list) -> None:
    image = black()
    corners = np.array([[[100, 60], [140, 100], [100, 140], [60, 100]]], np.float32)
    box = np.array([[60, 60, 140, 140]], np.float32)
    draw_detections(image, Detections(box, np.ones(1, np.float32), np.array([5], np.int64), corners), NAMES)
    assert image[80, 80].any()
    assert image[120, 120].any()
    assert not image[130, 61].any()
    assert not image[139, 139].any()


def test_labels_are_dashed_where_detections_are_not(texts: list) -> None:
    truth = GroundTruth(
        np.array([[20, 20, 180, 180]], np.float32),
        np.array([1], np.int64),
        np.full((1, 4, 2), np.nan, np.float32),
        np.ones(1, np.float32),
    )
    image = black()
    draw_detections(image, Detections.empty(), NAMES, truth=truth)
    side = image[25:175, 20].any(axis=1)
    assert 0.3 < side.mean() < 0.9
    assert texts == []
    solid = black()
    draw_detections(solid, detections([((20, 20, 180, 180), 0.9, 1)]), NAMES)
    assert solid[40:175, 20].any(axis=1).all()


def test_names_avoid_each_other_while_there_is_room(texts: list) -> None:
    found = detections([((60, 60, 120, 100), 0.9, 1), ((64, 62, 124, 102), 0.8, 5), ((66, 60, 120, 100), 0.7, 1)])
    draw_detections(black(), found, NAMES)
    (_, first), (_, second) = texts[:2]
    assert first[3] <= 60
    assert second[1] >= 102
    # Neither above nor below is there room for the third, whose category has a name.
    assert len(texts) == 2


def test_dense_images_name_a_few_lesions_of_each_category(texts: list) -> None:
    boxes = [((x, y, x + 4, y + 4), 0.9, 5) for x in range(0, 1000, 100) for y in range(20, 1000, 40)]
    draw_detections(black(1024), detections(boxes), NAMES)
    assert len(texts) == 5


def test_a_sheet_of_many_large_images_stays_small() -> None:
    random = np.random.default_rng(0)
    picture = random.integers(0, 255, (1024, 1024, 3), np.uint8)
    before = picture.copy()
    found = detections([((100, 100, 300, 300), 0.9, 1), ((500, 500, 520, 520), 0.8, 5)])
    sheet = prediction_sheet([(picture, found, None)] * 12, NAMES, text_if_empty="nothing")
    assert len(sheet) <= 150_000
    decoded = cv2.imdecode(np.frombuffer(sheet, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert np.array_equal(picture, before)


def test_a_sheet_without_pictures_shows_a_text() -> None:
    empty = cv2.imdecode(np.frombuffer(prediction_sheet([], NAMES, text_if_empty="no lesions"), np.uint8), 1)
    assert empty is not None
    assert empty.max() > 100
