"""Every export, read back as its format says, gives the boxes of the prediction files."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from uveitis_assets.cli import app
from uveitis_assets.detection.configuration import InferenceConfiguration
from uveitis_assets.detection.exports.export import export_predictions
from uveitis_assets.detection.exports.predicted_images import PredictedImage, read_predicted_images
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.landing.manifest_table import MANIFEST_SCHEMA
from uveitis_assets.storage.files import read_json, write_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets_tests.detection.known_detectors import small_frames
from uveitis_assets_tests.detection.written_predictions import write_prediction

FRAMES = small_frames(crop=(200, 180), global_size=256, tile_size=256, origin=(40, 30))
NAMES = load_class_map().names
TOLERANCE_PX = 0.011


@pytest.fixture(params=[False, True], ids=["upright", "oriented"])
def predicted(request: pytest.FixtureRequest, store: ArtefactStore) -> ArtefactStore:
    """Two images with detections and one without, in a lane whose images lie in subfolders."""
    names = {"clinic::a": "left/a.jpg", "clinic::b": "right/b.tif", "clinic::c": "c.png"}
    rng = np.random.default_rng(0)
    for number, image_id in enumerate(names):
        n = (4, 3, 0)[number]
        low = rng.uniform(30, 150, (n, 2))
        boxes = np.hstack([low, low + rng.uniform(5, 60, (n, 2))]).astype(np.float32)
        corners = None
        if request.param:
            x0, y0, x1, y1 = boxes.T
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
            corners = np.stack([x, y0, x1, y, x, y1, x0, y], axis=1).reshape(-1, 4, 2)
        found = Detections(boxes, rng.uniform(0.1, 1, n).astype(np.float32), rng.integers(1, 21, n), corners)
        write_prediction(
            store,
            "finder",
            image_id,
            FRAMES,
            found,
            checkpoints=["w"],
            configuration=InferenceConfiguration(),
            fingerprint="f",
        )
    rows = [{"image_id": key, "relative_path": name, "filepath": f"raw/{name}"} for key, name in names.items()]
    part = store.manifest_part("clinic", "b00001")
    part.parent.mkdir(parents=True)
    pl.DataFrame(rows, schema=MANIFEST_SCHEMA).write_parquet(part)
    return store


def images_of(store: ArtefactStore, frame: str) -> list[PredictedImage]:
    return read_predicted_images(store, "finder", frame=frame)  # type: ignore[arg-type]


def test_images_are_those_of_the_prediction_files_in_either_frame(predicted: ArtefactStore) -> None:
    source, whole = images_of(predicted, "source"), images_of(predicted, "global")
    assert [image.file_name for image in source] == ["left/a.jpg", "right/b.tif", "c.png"]
    assert [image.file_name for image in whole] == ["clinic__a.png", "clinic__b.png", "clinic__c.png"]
    content = read_json(predicted.prediction_file("finder", "clinic__a"))
    assert source[0].size == tuple(content["source_size"])
    assert source[0].boxes.tolist() == [entry["box_source"] for entry in content["predictions"]]
    assert whole[0].boxes.tolist() == [entry["box"] for entry in content["predictions"]]
    if whole[0].polygons is not None:
        np.testing.assert_allclose(whole[0].polygons.min(axis=1), whole[0].boxes[:, :2], atol=0.02)
    scores = read_predicted_images(predicted, "finder", frame="source", min_score=0.5)[0].scores
    assert scores.tolist() == [score for score in source[0].scores.tolist() if score >= 0.5]


@pytest.mark.parametrize("frame", ["source", "global"])
def test_coco_results_are_read_by_pycocotools(predicted: ArtefactStore, tmp_path: Path, frame: str) -> None:
    from pycocotools.coco import COCO

    export_predictions(predicted, "finder", "coco", tmp_path, frame=frame)  # type: ignore[arg-type]
    coco = COCO(str(tmp_path / "images.json"))
    results = coco.loadRes(str(tmp_path / "results.json"))
    for image in images_of(predicted, frame):
        (number,) = [entry["id"] for entry in coco.dataset["images"] if entry["image_id"] == image.image_id]
        found = results.loadAnns(results.getAnnIds(imgIds=[number]))
        boxes = np.array([entry["bbox"] for entry in found]).reshape(-1, 4)
        np.testing.assert_allclose(np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]), image.boxes)
        assert [entry["category_id"] for entry in found] == image.labels.tolist()


def test_coco_results_take_the_numbers_of_a_label_file_of_the_same_frame(
    predicted: ArtefactStore, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.json"
    image = {"id": 77, "image_id": "clinic::b", "width": 256, "height": 256}
    write_json(labels, {"images": [image], "annotations": [], "categories": []})
    export_predictions(predicted, "finder", "coco", tmp_path / "out", frame="global", labels=labels)
    assert {row["image_id"] for row in json.loads((tmp_path / "out" / "results.json").read_text())} == {77}
    with pytest.raises(ValueError, match="labels are of another frame"):
        export_predictions(predicted, "finder", "coco", tmp_path / "out", labels=labels)
    with pytest.raises(ValueError, match="expected the format coco"):
        export_predictions(predicted, "finder", "yolo", tmp_path / "out", labels=labels)


@pytest.mark.parametrize("frame", ["source", "global"])
def test_yolo_lines_are_shares_of_the_image_with_classes_from_zero(
    predicted: ArtefactStore, tmp_path: Path, frame: str
) -> None:
    export_predictions(predicted, "finder", "yolo", tmp_path, frame=frame)  # type: ignore[arg-type]
    for image in images_of(predicted, frame):
        lines = (tmp_path / "labels" / f"{image.stem}.txt").read_text().splitlines()
        assert len(lines) == len(image.boxes)
        if not lines:
            continue
        rows = np.array([line.split() for line in lines], np.float64)
        assert (rows[:, 0] + 1).astype(int).tolist() == image.labels.tolist()
        np.testing.assert_allclose(rows[:, -1], image.scores, atol=1e-4)
        if image.polygons is not None:
            np.testing.assert_allclose(rows[:, 1:9].reshape(-1, 4, 2) * image.size, image.polygons, atol=TOLERANCE_PX)
            continue
        centre, size = rows[:, 1:3] * image.size, rows[:, 3:5] * image.size
        np.testing.assert_allclose(np.hstack([centre - size / 2, centre + size / 2]), image.boxes, atol=TOLERANCE_PX)
    assert '0: "foyer_choroidien"' in (tmp_path / "data.yaml").read_text()


def test_pascal_voc_counts_pixels_from_one_and_includes_the_last(predicted: ArtefactStore, tmp_path: Path) -> None:
    export_predictions(predicted, "finder", "voc", tmp_path)
    for image in images_of(predicted, "source"):
        root = ElementTree.parse(tmp_path / "Annotations" / f"{image.stem}.xml").getroot()
        assert root.findtext("filename") == Path(image.file_name).name
        assert (int(root.findtext("size/width", "")), int(root.findtext("size/height", ""))) == image.size
        sides = ("xmin", "ymin", "xmax", "ymax")
        found = [[float(entry.findtext(f"bndbox/{side}", "")) for side in sides] for entry in root.iter("object")]
        boxes = np.array(found).reshape(-1, 4) - [1, 1, 0, 0]
        np.testing.assert_allclose(boxes, image.boxes, atol=TOLERANCE_PX)
        assert [entry.findtext("name") for entry in root.iter("object")] == [NAMES[label] for label in image.labels]


def test_fiftyone_reads_shares_of_the_image_by_its_path(predicted: ArtefactStore, tmp_path: Path) -> None:
    export_predictions(predicted, "finder", "fiftyone", tmp_path)
    content = read_json(tmp_path / "labels.json")["labels"]
    assert set(content) == {"left/a", "right/b", "c"}
    for image in images_of(predicted, "source"):
        places = np.array([entry["bounding_box"] for entry in content[image.stem]]).reshape(-1, 4)
        low = places[:, :2] * image.size
        np.testing.assert_allclose(np.hstack([low, low + places[:, 2:] * image.size]), image.boxes, atol=1e-9)
        assert [entry["label"] for entry in content[image.stem]] == [NAMES[label] for label in image.labels]
        assert [entry["confidence"] for entry in content[image.stem]] == image.scores.tolist()


def test_cvat_has_boxes_or_polygons_labels_and_scores(predicted: ArtefactStore, tmp_path: Path) -> None:
    export_predictions(predicted, "finder", "cvat", tmp_path)
    root = ElementTree.parse(tmp_path / "annotations.xml").getroot()
    assert root.findtext("version") == "1.1"
    assert {entry.findtext("name") for entry in root.iter("label")} == set(NAMES.values())
    for entry, image in zip(root.iter("image"), images_of(predicted, "source"), strict=True):
        assert (entry.get("name"), int(entry.get("width", ""))) == (image.file_name, image.size[0])
        if image.polygons is None:
            sides = ("xtl", "ytl", "xbr", "ybr")
            boxes = np.array([[float(box.get(side, "")) for side in sides] for box in entry.iter("box")])
            np.testing.assert_allclose(boxes.reshape(-1, 4), image.boxes, atol=TOLERANCE_PX)
        else:
            points = [shape.get("points", "").split(";") for shape in entry.iter("polygon")]
            polygons = np.array([[pair.split(",") for pair in pairs] for pairs in points], np.float64)
            np.testing.assert_allclose(polygons.reshape(-1, 4, 2), image.polygons, atol=TOLERANCE_PX)
        scores = [float(attribute.text or "") for attribute in entry.iter("attribute")]
        np.testing.assert_allclose(scores, image.scores, atol=1e-4)


def test_the_command_exports_and_names_what_is_wrong(
    predicted: ArtefactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UVEITIS_DATA", str(predicted.root))
    monkeypatch.setenv("UVEITIS_RAW", str(predicted.raw))
    done = CliRunner().invoke(app, ["export-predictions", "finder", "cvat", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "7 detections of 3 images" in done.output
    assert (tmp_path / "out" / "annotations.xml").is_file()
    for arguments in (["finder", "voc2"], ["nobody", "coco"]):
        assert CliRunner().invoke(app, ["export-predictions", *arguments, str(tmp_path / "no")]).exit_code != 0
    assert not (tmp_path / "no").exists()
