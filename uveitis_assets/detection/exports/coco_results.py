"""Detections as COCO results, with the list of images that their numbers belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uveitis_assets.detection.exports.predicted_images import PredictedImage
from uveitis_assets.storage.files import read_json, write_bytes, write_json


def write_coco_results(
    images: Sequence[PredictedImage], names: Mapping[int, str], folder: Path, *, labels: Path | None = None
) -> None:
    """Write ``results.json`` and, without a file of labels, ``images.json``.

    A result is {image_id, category_id, bbox [x, y, width, height] px, score}, and ``segmentation`` of oriented boxes.

    Args:
        images: what is written.
        names: category ids and names.
        folder: where the files go.
        labels: COCO file whose images are numbered alike: only they are written, under its numbers; None: images are
            numbered from 1, and ``images.json`` is a COCO file of them without annotations.

    Raises:
        ValueError: none of the images is in the file of labels, or one has another size there.
    """
    if labels is None:
        numbered = [(number, image) for number, image in enumerate(images, start=1)]
    else:
        numbered = _as_in(labels, images)
    rows = [row for number, image in numbered for row in _rows(number, image)]
    write_bytes(folder / "results.json", json.dumps(rows, allow_nan=False).encode())
    if labels is not None:
        return
    content = {
        "images": [
            {
                "id": number,
                "file_name": image.file_name,
                "width": image.size[0],
                "height": image.size[1],
                "image_id": image.image_id,
            }
            for number, image in numbered
        ],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in sorted(names.items())],
    }
    write_json(folder / "images.json", content)


def _as_in(labels: Path, images: Sequence[PredictedImage]) -> list[tuple[int, PredictedImage]]:
    by_id = {image.image_id: image for image in images}
    numbered = []
    for entry in read_json(labels)["images"]:
        image = by_id.get(entry.get("image_id"))
        if image is None:
            continue
        found = (entry["width"], entry["height"])
        if found != image.size:
            raise ValueError(
                f"{labels}: {image.image_id}: expected {image.size[0]} x {image.size[1]} px, found {found[0]} x "
                f"{found[1]}: its labels are of another frame; export the other one (--frame)"
            )
        numbered.append((int(entry["id"]), image))
    if not numbered:
        raise ValueError(f"{labels}: expected some of the {len(images)} predicted images (by image_id), found none")
    return numbered


def _rows(number: int, image: PredictedImage) -> list[dict[str, Any]]:
    rows = []
    for row, (x0, y0, x1, y1) in enumerate(image.boxes.tolist()):
        result: dict[str, Any] = {
            "image_id": number,
            "category_id": int(image.labels[row]),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": float(image.scores[row]),
        }
        if image.polygons is not None:
            result["segmentation"] = [image.polygons[row].ravel().tolist()]
        rows.append(result)
    return rows
