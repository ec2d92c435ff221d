"""Detections as FiftyOne's own JSON import format; FiftyOne itself is not needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from uveitis_assets.detection.exports.predicted_images import PredictedImage
from uveitis_assets.storage.files import write_json


def write_fiftyone(images: Sequence[PredictedImage], names: Mapping[int, str], folder: Path) -> None:
    """Write ``labels.json`` of the type FiftyOneImageDetectionDataset.

    It maps an image's path without suffix to its detections: label, bounding box [left, top, width, height] in shares
    of the image, confidence. Load it with the folder of the images as ``data_path``. Oriented boxes are written as the
    upright ones, with their corners (shares of the image) as attribute.

    Args:
        images: what is written.
        names: category ids and names.
        folder: where the file goes.
    """
    labels = {}
    for image in images:
        size = np.array(image.size, np.float64)
        places = np.hstack([image.boxes[:, :2] / size, (image.boxes[:, 2:] - image.boxes[:, :2]) / size])
        corners = None if image.polygons is None else (image.polygons / size).tolist()
        labels[image.stem] = [
            {
                "label": names[label],
                "bounding_box": place,
                "confidence": score,
                **({} if corners is None else {"attributes": {"corners": corners[row]}}),
            }
            for row, (label, place, score) in enumerate(
                zip(image.labels.tolist(), places.tolist(), image.scores.tolist(), strict=True)
            )
        ]
    write_json(folder / "labels.json", {"labels": labels})
