import json
from pathlib import Path

import numpy as np
import pytest

from uveitis_assets.detection.configuration import InferenceConfiguration
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.inference.prediction_file import prediction_fingerprint, read_prediction
from uveitis_assets.detection.pseudo_labels.expansion import read_confident_predictions
from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.detection.known_detectors import detections, small_frames
from uveitis_assets_tests.detection.written_predictions import write_prediction

CONFIGURATION = InferenceConfiguration()


@pytest.fixture
def store(tmp_path: Path) -> ArtefactStore:
    return ArtefactStore(tmp_path, tmp_path / "raw")


@pytest.fixture
def frames() -> ImageFrames:
    """A crop of 200 x 100 px that begins at (40, 30), in a global image of 100 px: half the size, 25 px margin."""
    return small_frames(crop=(200, 100), global_size=100, origin=(40, 30))


def written(store: ArtefactStore, frames: ImageFrames, found: Detections) -> Path:
    return write_prediction(
        store,
        "exp",
        "uwf700::Uveitis-001",
        frames,
        found,
        checkpoints=["abc"],
        configuration=CONFIGURATION,
        fingerprint="0123",
    )


def test_the_file_holds_the_earlier_keys_and_the_place_in_the_source_image(
    store: ArtefactStore, frames: ImageFrames
) -> None:
    path = written(store, frames, detections([((10, 30, 20, 40), 0.5, 3), ((0, 25, 50, 75), 0.87654, 20)]))
    assert path == store.root / "preds/exp/uwf700__Uveitis-001.json"
    content = json.loads(path.read_text())
    assert content["image_id"] == "uwf700::Uveitis-001"
    assert content["predictions"] == [
        {
            "box": [0, 25, 50, 75],
            "score": 0.8765,
            "label": 20,
            "box_source": [40, 30, 140, 130],
            "polygon_source": [[40, 30], [140, 30], [140, 130], [40, 130]],
        },
        {
            "box": [10, 30, 20, 40],
            "score": 0.5,
            "label": 3,
            "box_source": [60, 40, 80, 60],
            "polygon_source": [[60, 40], [80, 40], [80, 60], [60, 60]],
        },
    ]
    assert content["source_size"] == [245, 137]
    assert content["global_size"] == [100, 100]
    assert content["experiment"] == "exp"
    assert content["checkpoints"] == ["abc"]
    assert content["merge"] == {"method": "nms", "iou": 0.5, "score_threshold": 0.3}


def test_boxes_in_the_source_end_at_its_edge(store: ArtefactStore, frames: ImageFrames) -> None:
    path = written(store, frames, detections([((90, 20, 100, 100), 0.5, 3)]))
    # The source is 245 x 137 px; the box would reach from y = 20 to y = 180.
    assert json.loads(path.read_text())["predictions"][0]["box_source"] == [220, 20, 240, 137]


def test_reading_back_gives_the_detections(store: ArtefactStore, frames: ImageFrames) -> None:
    found = detections([((10.25, 30.5, 20, 40), 0.75, 3), ((0, 25, 50, 75), 0.5, 20)])
    prediction = read_prediction(written(store, frames, found))
    assert prediction.image_id == "uwf700::Uveitis-001"
    assert np.array_equal(prediction.detections.boxes, found.boxes)
    assert np.array_equal(prediction.detections.scores, found.scores)
    assert np.array_equal(prediction.detections.labels, found.labels)
    assert prediction.detections.corners is None
    assert (prediction.source_size, prediction.global_size) == ((245, 137), (100, 100))
    assert (prediction.experiment, prediction.checkpoints, prediction.fingerprint) == ("exp", ("abc",), "0123")


@pytest.mark.parametrize("n", [0, 1])
def test_oriented_boxes_are_stored_in_source_pixels_and_come_back_in_global_pixels(
    store: ArtefactStore, frames: ImageFrames, n: int
) -> None:
    corners = np.array([[[20, 40], [30, 50], [20, 60], [10, 50]]], np.float32)[:n]
    found = Detections(
        np.array([[10, 40, 30, 60]], np.float32)[:n],
        np.ones(n, np.float32),
        np.ones(n, np.int64),
        corners,
    )
    path = written(store, frames, found)
    stored = [entry["polygon_source"] for entry in json.loads(path.read_text())["predictions"]]
    assert stored == [[[80, 60], [100, 80], [80, 100], [60, 80]]][:n]
    back = read_prediction(path).detections
    assert back.corners is not None
    assert np.allclose(back.corners, corners, atol=0.01)


def test_ties_are_written_in_a_fixed_order(store: ArtefactStore, frames: ImageFrames) -> None:
    rows = [((30, 30, 40, 40), 0.5, 2), ((10, 30, 20, 40), 0.50004, 2), ((50, 30, 60, 40), 0.49996, 1)]
    first = written(store, frames, detections(rows)).read_bytes()
    assert written(store, frames, detections(rows[::-1])).read_bytes() == first
    # All three scores are written as 0.5.
    assert [entry["label"] for entry in json.loads(first)["predictions"]] == [1, 2, 2]


def test_a_file_of_the_earlier_scripts_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    entry = {"box": [1.5, 2.25, 30.0, 40.0], "score": 0.91234, "label": 15}
    path.write_text(json.dumps({"image_id": "uwf700::a", "predictions": [entry]}, indent=2))
    prediction = read_prediction(path)
    assert prediction.detections.boxes.tolist() == [[1.5, 2.25, 30, 40]]
    assert prediction.detections.labels.tolist() == [15]
    assert prediction.source_size is None
    assert prediction.fingerprint is None


@pytest.mark.parametrize("content", ['{"image_id": "a"}', '{"image_id": "a", "predictions": [{"box": [1]}]}'])
def test_what_is_no_prediction_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "odd.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"odd.json: expected predictions with box, score and label"):
        read_prediction(path)


def test_the_fingerprint_follows_what_can_change_detections_and_nothing_else() -> None:
    def of(tiles: str = "t", checkpoints: tuple[str, ...] = ("a", "b"), code: str = "1", **settings: object) -> str:
        masked, scores = bool(settings.pop("masked_classes", False)), settings.pop("class_scores", None)
        configuration = InferenceConfiguration.model_validate(settings)
        return prediction_fingerprint(
            tiles, checkpoints, configuration, code, class_scores=scores, masked_classes=masked
        )

    same = {of(), of(checkpoints=("b", "a")), of(batch_size=64), of(overlays=False)}
    assert len(same) == 1
    others = [
        of(tiles="u"),
        of(checkpoints=("a",)),
        of(code="2"),
        of(merge="edge_aware"),
        of(merge_iou=0.6),
        of(score_threshold=0.2),
        of(class_scores={3: 0.4}),
        of(class_scores={3: 0.5}),
        of(masked_classes=True),
    ]
    assert len({*same, *others}) == 10


def test_detections_by_other_weights_than_expected_are_refused_as_a_source_of_labels(
    store: ArtefactStore, frames: ImageFrames
) -> None:
    path = written(store, frames, detections([((10, 30, 20, 40), 0.5, 3)]))
    ids = ["uwf700::Uveitis-001", "uwf700::without-predictions"]
    assert list(read_confident_predictions(path.parent, ids, made_by="abc")) == ids[:1]
    assert list(read_confident_predictions(path.parent, ids)) == ids[:1]
    with pytest.raises(ValueError, match=r"expected detections by the weights other alone, found those by abc,"):
        read_confident_predictions(path.parent, ids, made_by="other")
