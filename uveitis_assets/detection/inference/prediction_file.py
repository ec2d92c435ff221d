"""The JSON file of one image's detections, in px of the global image and of the source image.

It has the fields of the earlier scripts, and more:

    {"image_id": "uwf700::Uveitis-001",
     "predictions": [{"box": [x1, y1, x2, y2], "score": 0.87, "label": 5,
                      "box_source": [x1, y1, x2, y2], "polygon_source": [[x, y], [x, y], [x, y], [x, y]]}],
     "source_size": [w, h], "global_size": [w, h], "source_to_global": {"scale": s, "offset": [x, y]},
     "oriented": false, "experiment": "uveitis_ft", "checkpoints": ["<digest>"],
     "merge": {"method": "nms", "iou": 0.5, "score_threshold": 0.3}, "fingerprint": "<16 hex digits>"}

``box`` is in px of the global image, ``box_source`` and ``polygon_source`` in px of the source image as displayed
(pixel edges); ``polygon_source`` is the oriented box, which may reach over the image's edge, or the four corners of
``box_source``, clockwise from the top left. Pixels are rounded to 0.01, scores to 0.0001; detections come in falling
order of the score as written, ties by label, then by box. No patient appears.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.configuration import InferenceConfiguration
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.imaging.geometry import AxisAlignedTransform, ImageFrames
from uveitis_assets.storage.digests import short_digest
from uveitis_assets.storage.files import json_bytes, parse_json

_PX_DECIMALS = 2
_SCORE_DECIMALS = 4


@dataclass(frozen=True, slots=True)
class Prediction:
    """A prediction file read back; ``detections`` are in global px.

    Of files of the earlier scripts only ``image_id`` and ``detections`` are known; the others are None or empty.
    """

    image_id: str
    detections: Detections
    source_size: tuple[int, int] | None
    global_size: tuple[int, int] | None
    experiment: str | None
    checkpoints: tuple[str, ...]
    fingerprint: str | None
    n_full_tiles: int = 0


def prediction_fingerprint(
    tiles: str,
    checkpoints: Sequence[str],
    configuration: InferenceConfiguration,
    code_version: str,
    *,
    class_scores: Mapping[int, float] | None = None,
    masked_classes: bool = False,
) -> str:
    """Digest of all that a prediction depends on, 16 hex digits; batch size and drawing do not enter.

    Args:
        tiles: fingerprint of the image's tiles.
        checkpoints: digests of the detectors' weights; their order does not matter.
        configuration: merging and thresholds enter.
        code_version: version of the code that predicts.
        class_scores: score from which detections of a class are written.
        masked_classes: the networks learned some of their classes, and give the others no score.
    """
    value: dict[str, Any] = {
        "tiles": tiles,
        "checkpoints": sorted(checkpoints),
        "merge": _merge_settings(configuration),
        "code": code_version,
    }
    # Named only where it changes the detections: predictions of before that are the same stay done.
    if configuration.merge != "nms":
        value["scores"] = "thresholds after merging"
    if class_scores:
        value["class_scores"] = sorted(class_scores.items())
    if masked_classes:
        value["classes"] = "untaught masked"
    return short_digest(json.dumps(value, sort_keys=True))


def prediction_bytes(
    experiment: str,
    image_id: str,
    frames: ImageFrames,
    detections: Detections,
    *,
    checkpoints: Sequence[str],
    configuration: InferenceConfiguration,
    fingerprint: str,
    n_full_tiles: int = 0,
) -> bytes:
    """The content of a prediction file.

    Args:
        experiment: the detector's lane.
        image_id: as in the manifest.
        frames: frames of the image.
        detections: global px.
        checkpoints: digests of the detectors' weights.
        configuration: how the detections were merged.
        fingerprint: as ``prediction_fingerprint``.
        n_full_tiles: tiles whose list of detections was full; named in the file where there are any.
    """
    content = {
        "image_id": image_id,
        "predictions": _entries(frames, detections),
        "source_size": list(frames.raw_size),
        "global_size": [frames.global_size, frames.global_size],
        "source_to_global": _scale_and_offset(frames.raw_to_global),
        "oriented": detections.corners is not None,
        "experiment": experiment,
        "checkpoints": list(checkpoints),
        "merge": _merge_settings(configuration),
        "fingerprint": fingerprint,
        **({"n_full_tiles": n_full_tiles} if n_full_tiles else {}),
    }
    return json_bytes(content, indent=None)


def read_prediction(path: Path) -> Prediction:
    """Read a prediction file, also one of the earlier scripts.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is not a prediction file; the message names it.
    """
    return parse_prediction(path.read_bytes(), path)


def parse_prediction(data: bytes, path: Path) -> Prediction:
    """The prediction in the bytes of a file.

    Raises:
        ValueError: they are not those of a prediction file; the message names the file.
    """
    content = parse_json(data, path)
    try:
        entries = content["predictions"]
        sizes = [content.get(name) for name in ("source_size", "global_size")]
        return Prediction(
            image_id=str(content["image_id"]),
            detections=Detections(
                boxes=np.array([entry["box"] for entry in entries], np.float32).reshape(-1, 4),
                scores=np.array([entry["score"] for entry in entries], np.float32),
                labels=np.array([entry["label"] for entry in entries], np.int64),
                corners=_corners(content),
            ),
            source_size=None if sizes[0] is None else (int(sizes[0][0]), int(sizes[0][1])),
            global_size=None if sizes[1] is None else (int(sizes[1][0]), int(sizes[1][1])),
            experiment=content.get("experiment"),
            checkpoints=tuple(content.get("checkpoints", ())),
            fingerprint=content.get("fingerprint"),
            n_full_tiles=int(content.get("n_full_tiles", 0)),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{path}: expected predictions with box, score and label, found {type(error).__name__}: {error}; "
            "delete the file and predict again"
        ) from error


def _entries(frames: ImageFrames, detections: Detections) -> list[dict[str, Any]]:
    to_source = frames.raw_to_global.inverse()
    boxes = np.round(detections.boxes.astype(np.float64), _PX_DECIMALS)
    scores = np.round(detections.scores.astype(np.float64), _SCORE_DECIMALS)
    in_source = np.round(
        np.clip(to_source.apply_boxes(detections.boxes), 0.0, np.tile(frames.raw_size, 2)), _PX_DECIMALS
    )
    if detections.corners is None:
        polygons = in_source[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
    else:
        polygons = np.round(to_source.apply(detections.corners), _PX_DECIMALS)
    x0, y0, x1, y1 = boxes.T
    order = np.lexsort((y1, x1, y0, x0, detections.labels, -scores))
    # Adding 0.0 turns the -0.0 of rounding into 0.0.
    return [
        {
            "box": box,
            "score": score,
            "label": label,
            "box_source": box_source,
            "polygon_source": polygon,
        }
        for box, score, label, box_source, polygon in zip(
            (boxes[order] + 0.0).tolist(),
            scores[order].tolist(),
            detections.labels[order].tolist(),
            (in_source[order] + 0.0).tolist(),
            (polygons[order] + 0.0).tolist(),
            strict=True,
        )
    ]


def _corners(content: dict[str, Any]) -> NDArray[np.float32] | None:
    if not content.get("oriented", False):
        return None
    polygons = np.array([entry["polygon_source"] for entry in content["predictions"]], np.float64).reshape(-1, 4, 2)
    scale, offset = content["source_to_global"]["scale"], content["source_to_global"]["offset"]
    return AxisAlignedTransform(scale, scale, *offset).apply(polygons).astype(np.float32)


def _scale_and_offset(transform: AxisAlignedTransform) -> dict[str, Any]:
    return {"scale": transform.scale_x, "offset": [transform.offset_x, transform.offset_y]}


def _merge_settings(configuration: InferenceConfiguration) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "method": configuration.merge,
        "iou": configuration.merge_iou,
        "score_threshold": configuration.score_threshold,
    }
    # Named only where they change something: predictions from before they existed stay what they are.
    if configuration.flips != ("none",):
        settings["flips"] = list(configuration.flips)
    if configuration.operating_fp_per_image is not None:
        settings["operating_fp_per_image"] = configuration.operating_fp_per_image
    return settings
