"""Exports a detector's predictions in one of the formats that other tools read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from uveitis_assets.detection.exports.coco_results import write_coco_results
from uveitis_assets.detection.exports.cvat import write_cvat
from uveitis_assets.detection.exports.fiftyone import write_fiftyone
from uveitis_assets.detection.exports.pascal_voc import write_pascal_voc
from uveitis_assets.detection.exports.predicted_images import ExportFrame, PredictedImage, read_predicted_images
from uveitis_assets.detection.exports.yolo import write_yolo
from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.storage.store import ArtefactStore

ExportFormat = Literal["coco", "yolo", "voc", "fiftyone", "cvat"]
Write = Callable[[Sequence[PredictedImage], Mapping[int, str], Path], None]

_WRITERS: dict[ExportFormat, Write] = {
    "yolo": write_yolo,
    "voc": write_pascal_voc,
    "fiftyone": write_fiftyone,
    "cvat": write_cvat,
}


def export_predictions(
    store: ArtefactStore,
    detector: str,
    export_format: ExportFormat,
    folder: Path,
    *,
    frame: ExportFrame = "source",
    min_score: float = 0.0,
    labels: Path | None = None,
) -> tuple[int, int]:
    """Write all predictions of a detector lane; returns the numbers of images and detections.

    Args:
        store: where all artefacts are.
        detector: the lane's name.
        export_format: one of the formats.
        folder: where the files go; files of the same names are replaced, others stay.
        frame: pixels of the landed photographs, or of the global images.
        min_score: detections below are left out.
        labels: ``coco`` only: COCO file whose image numbers are taken.

    Raises:
        FileNotFoundError: there are no predictions.
        ValueError: images that are in no manifest, share a name, or do not fit the labels; labels with another format.
    """
    if labels is not None and export_format != "coco":
        raise ValueError(f"labels: expected the format coco, whose images have numbers, found {export_format}")
    images = read_predicted_images(store, detector, frame=frame, min_score=min_score)
    write = partial(write_coco_results, labels=labels) if export_format == "coco" else _WRITERS[export_format]
    write(images, load_class_map().names, folder)
    return len(images), sum(len(image.boxes) for image in images)
