"""Detections as YOLO text files, upright or oriented, with confidences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from uveitis_assets.detection.exports.predicted_images import PredictedImage
from uveitis_assets.storage.files import write_bytes


def write_yolo(images: Sequence[PredictedImage], names: Mapping[int, str], folder: Path) -> None:
    """Write ``labels/<image's path without suffix>.txt`` and ``data.yaml``.

    A line is ``class centre_x centre_y width height confidence``, of oriented boxes ``class x1 y1 .. x4 y4
    confidence``, in shares of width and height; classes count from 0 in the order of the category ids. Images without
    detections have an empty file.

    Args:
        images: what is written.
        names: category ids and names.
        folder: where the files go.
    """
    number_of = {category: number for number, category in enumerate(sorted(names))}
    for image in images:
        size = np.array(image.size, np.float64)
        if image.polygons is None:
            low, high = image.boxes[:, :2], image.boxes[:, 2:]
            places = np.hstack([(low + high) / 2 / size, (high - low) / size])
        else:
            places = (image.polygons / size).reshape(-1, 8)
        lines = [
            " ".join([str(number_of[label]), *(f"{value:.8f}" for value in place), f"{score:.4f}"])
            for label, place, score in zip(image.labels.tolist(), places.tolist(), image.scores.tolist(), strict=True)
        ]
        write_bytes(folder / "labels" / f"{image.stem}.txt", "".join(f"{line}\n" for line in lines).encode())
    listed = "".join(f"  {number}: {json.dumps(names[key])}\n" for key, number in number_of.items())
    write_bytes(folder / "data.yaml", f"path: .\nnames:\n{listed}".encode())
