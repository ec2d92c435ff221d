"""Any COCO results file is evaluated from the shell, with pycocotools' numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from uveitis_assets.cli import app
from uveitis_assets.detection.configuration import EvaluationConfiguration
from uveitis_assets.detection.evaluation.results_file import evaluate_results_file
from uveitis_assets.storage.files import read_json, write_json

PLAIN = EvaluationConfiguration(bootstrap_samples=0)


def write_case(folder: Path, *, dense: int = 12, seed: int = 0) -> tuple[Path, Path]:
    """Images of different sizes, lesions of two classes, and results near them, by chance, and twice."""
    rng = np.random.default_rng(seed)
    images, annotations, results = [], [], []
    for number in (3, 7, 11, 20):
        images.append({"id": number, "file_name": f"{number}.png", "width": 900, "height": 700})
        for _ in range(0 if number == 20 else dense):
            x, y, width, height = (
                float(v) for v in (rng.integers(0, 800), rng.integers(0, 600), *rng.integers(8, 90, 2))
            )
            category = int(rng.integers(1, 3))
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "iscrowd": 0}
            annotations.append({**annotation, "bbox": [x, y, width, height], "area": width * height})
            for _ in range(int(rng.integers(0, 3))):
                moved = [x + float(rng.normal(0, 4)), y + float(rng.normal(0, 4)), width, height]
                row = {"image_id": number, "category_id": category, "bbox": moved, "score": float(rng.uniform())}
                results.append(row)
        for _ in range(5):
            box = [float(v) for v in rng.integers(0, 500, 2)] + [40.0, 30.0]
            results.append({"image_id": number, "category_id": 2, "bbox": box, "score": float(rng.uniform())})
    categories = [{"id": 1, "name": "exudats"}, {"id": 2, "name": "hemorragie"}]
    labels = folder / "labels.json"
    # Boxes at the border would be clipped: pycocotools takes them as they are.
    for annotation in annotations:
        box = annotation["bbox"]
        box[2], box[3] = min(box[2], 900 - box[0]), min(box[3], 700 - box[1])
    write_json(labels, {"images": images, "annotations": annotations, "categories": categories})
    write_json(folder / "results.json", results)
    return labels, folder / "results.json"


def by_pycocotools(labels: Path, results: Path, max_detections: int) -> dict[float, float]:
    """Mean AP by IoU."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(labels))
    judge = COCOeval(truth, truth.loadRes(str(results)), "bbox")
    judge.params.iouThrs = np.array([0.3, 0.5])
    judge.params.maxDets = [max_detections]
    judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
    judge.evaluate()
    judge.accumulate()
    precision = judge.eval["precision"][..., 0, 0]
    return {iou: float(precision[row].mean()) for row, iou in enumerate((0.3, 0.5))}


@pytest.mark.parametrize("seed", [0, 1])
def test_numbers_are_those_of_pycocotools(tmp_path: Path, seed: int) -> None:
    labels, results = write_case(tmp_path, seed=seed)
    evaluation, report = evaluate_results_file(labels, results, PLAIN)
    expected = by_pycocotools(labels, results, 400)
    assert evaluation.map_30 == pytest.approx(expected[0.3], abs=1e-9)
    assert evaluation.map_50 == pytest.approx(expected[0.5], abs=1e-9)
    assert 0 < expected[0.5] < 1
    assert report["n_images"] == 4
    assert "froc" in report
    assert "best_epoch" not in report


def test_more_than_400_lesions_of_an_image_can_all_be_found(tmp_path: Path) -> None:
    labels, results = write_case(tmp_path, dense=1000)
    content = read_json(labels)
    write_json(results, [{**entry, "score": 0.9} for entry in content["annotations"]])
    evaluation, report = evaluate_results_file(labels, results, PLAIN)
    assert max(evaluation.n_lesions.values()) > 3 * 400
    assert evaluation.map_50 == pytest.approx(1.0)
    assert evaluation.limits == ()
    assert "limits" not in report
    capped, said = evaluate_results_file(labels, results, PLAIN.model_copy(update={"max_detections": 400}))
    assert capped.map_50 is not None
    assert capped.map_50 == pytest.approx(by_pycocotools(labels, results, 400)[0.5], abs=1e-9)
    assert capped.map_50 < 0.95
    assert "evaluation.max_detections 400: an image has" in said["limits"][0]
    assert "3 of 4 images have more detections of one class" in said["limits"][1]


def test_the_command_prints_a_table_and_writes_the_report(tmp_path: Path) -> None:
    labels, results = write_case(tmp_path)
    out = tmp_path / "report.json"
    done = CliRunner().invoke(
        app, ["evaluate", str(labels), str(results), "--out", str(out), "--bootstrap-samples", "20"]
    )
    assert done.exit_code == 0, done.output
    assert "exudats" in done.output
    assert f"{by_pycocotools(labels, results, 400)[0.5]:.4f}" in done.output
    assert read_json(out)["ap"]["selection_interval"] is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, "result 0: expected an image of the label file, found image_id 99"),
        ({"category_id": 9}, r"result 0: expected a category of the label file \(1, 2\), found 9"),
        ({"bbox": [1, 2, 3]}, "result 0: expected image_id, category_id, bbox of 4 numbers and score"),
        ({"score": float("inf")}, "result 0: expected finite numbers"),
    ],
)
def test_wrong_results_are_refused_with_their_place(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    labels, results = write_case(tmp_path)
    rows = json.loads(results.read_text())
    results.write_text(json.dumps([{**rows[0], **change}, *rows[1:]]))
    with pytest.raises(ValueError, match=message):
        evaluate_results_file(labels, results, PLAIN)


def test_two_label_files_are_told_from_results(tmp_path: Path) -> None:
    labels, _ = write_case(tmp_path)
    with pytest.raises(ValueError, match="expected a list of results, found dict"):
        evaluate_results_file(labels, labels, PLAIN)


def test_labels_are_read_once_and_crowds_are_refused_with_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, results = write_case(tmp_path)
    reads: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (reads.append(path), read_bytes(path))[1])
    evaluate_results_file(labels, results, PLAIN)
    assert sorted(reads) == sorted([labels, results])
    content = read_json(labels)
    for annotation in content["annotations"][:3]:
        annotation["iscrowd"] = 1
    write_json(labels, content)
    with pytest.raises(ValueError, match=rf"{labels.name}: expected one annotation per lesion, found 3 with iscrowd"):
        evaluate_results_file(labels, results, PLAIN)
