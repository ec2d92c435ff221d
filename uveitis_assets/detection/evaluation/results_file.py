"""Evaluates any COCO results file against a COCO label file, with the report of the asset evaluation."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uveitis_assets.detection.configuration import EvaluationConfiguration
from uveitis_assets.detection.data.coco_ground_truth import LabelFile
from uveitis_assets.detection.data.labelled_split import LabelledImage, labelled_fingerprint
from uveitis_assets.detection.evaluation.evaluate import Evaluation, evaluate_detections
from uveitis_assets.detection.evaluation.report import validation_report
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.imaging.geometry import ImageFrames


def evaluate_results_file(
    labels: Path, results: Path, configuration: EvaluationConfiguration
) -> tuple[Evaluation, dict[str, Any]]:
    """Compare the results with the labels; returns the evaluation and the content of a report.

    Images without results count as images in which nothing was found. Intervals resample patients where the images
    of the label file name them (``patient_id``), else images.

    Args:
        labels: COCO file: images with width and height, boxes, categories with ids from 1.
        results: list of {image_id, category_id, bbox [x, y, width, height] px, score}.
        configuration: IoUs, rates, resamples.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is not what it should be; names file, entry and what was found.
    """
    given = LabelFile.read(labels, "it with the tool that wrote it")
    if given.n_crowds:
        raise ValueError(
            f"{labels}: expected one annotation per lesion, found {given.n_crowds} with iscrowd, which have no place "
            "in AP per lesion; remove them"
        )
    found = _detections(results, [int(entry["id"]) for entry in given.images], given.categories)
    images = [_image(entry, truth) for entry, truth in zip(given.images, given.truths, strict=True)]
    evaluation = evaluate_detections(images, found, given.categories, configuration)
    fingerprint = labelled_fingerprint(images, given.categories)
    report = validation_report(evaluation, best_epoch=0, fingerprint=fingerprint)
    return evaluation, {name: value for name, value in report.items() if not name.startswith("best_")}


def _image(entry: Mapping[str, Any], truth: Any) -> LabelledImage:
    size = (int(entry["width"]), int(entry["height"]))
    image_id = str(entry["id"])
    frames = ImageFrames(
        raw_size=size,
        crop_box=(0, 0, *size),
        global_size=max(size),
        pad_xy=(0, 0),
        padded_side=max(size),
        frame="global",
        tiles=(),
    )
    return LabelledImage(image_id, image_id, str(entry.get("patient_id", image_id)), frames, truth, ())


def _detections(path: Path, numbers: Sequence[int], categories: Mapping[int, str]) -> list[Detections]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, found {error}; write the file again") from error
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a list of results, found {type(content).__name__}; is it a label file?")
    rows: dict[int, list[tuple[list[float], float, int]]] = defaultdict(list)
    known = set(numbers)
    for position, entry in enumerate(content):
        where = f"{path}: result {position}"
        try:
            number, category = int(entry["image_id"]), int(entry["category_id"])
            x, y, width, height = (float(value) for value in entry["bbox"])
            score = float(entry["score"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{where}: expected image_id, category_id, bbox of 4 numbers and score, found {entry} "
                f"({type(error).__name__}: {error})"
            ) from error
        if number not in known:
            raise ValueError(f"{where}: expected an image of the label file, found image_id {number}")
        if category not in categories:
            listed = ", ".join(map(str, sorted(categories)))
            raise ValueError(f"{where}: expected a category of the label file ({listed}), found {category}")
        if not np.isfinite([x, y, width, height, score]).all() or width < 0 or height < 0:
            raise ValueError(f"{where}: expected finite numbers and no negative size, found {entry}")
        rows[number].append(([x, y, x + width, y + height], score, category))
    return [_of_image(rows[number]) for number in numbers]


def _of_image(rows: Sequence[tuple[list[float], float, int]]) -> Detections:
    return Detections(
        np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[1] for row in rows], np.float32),
        np.array([row[2] for row in rows], np.int64),
    )
