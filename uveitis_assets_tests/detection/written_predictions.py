"""Prediction files of chosen detections, as the platform names and writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.inference.prediction_file import prediction_bytes
from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets.storage.files import write_bytes
from uveitis_assets.storage.store import ArtefactStore, artefact_key


def write_prediction(
    store: ArtefactStore, experiment: str, image_id: str, frames: ImageFrames, detections: Detections, **settings: Any
) -> Path:
    """Write a prediction file and return its path; settings as of ``prediction_bytes``."""
    path = store.prediction_file(experiment, artefact_key(image_id))
    write_bytes(path, prediction_bytes(experiment, image_id, frames, detections, **settings))
    return path
