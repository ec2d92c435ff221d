"""Checks the prediction files of a batch: each is read once, compared with its record, and parsed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uveitis_assets.detection.data.preprocessed_images import PreprocessedImage
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.inference.prediction_file import parse_prediction
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration
from uveitis_assets.messages import enumeration
from uveitis_assets.stages.artefact_files import (
    FILES,
    DamagedArtefactError,
    FileStamp,
    check_artefact,
    damaged_files,
    described,
    recorded_stamps,
)
from uveitis_assets.stages.index import Row, index_finding, read_stage_index
from uveitis_assets.stages.suspect_files import note_suspects
from uveitis_assets.storage.store import ArtefactStore

# Boxes are rounded to 1/64 px and mapped through two frames.
_OUTSIDE_TOLERANCE_PX = 0.1
_SHOWN_IMAGES = 5


@dataclass(frozen=True, slots=True)
class PredictionFindings:
    """Errors found in a batch's predictions, and what someone should look at."""

    n_images: int
    n_without_detections: int
    errors: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def inspect_prediction_files(
    store: ArtefactStore,
    lane: DetectorLaneConfiguration,
    batch: str,
    images: Sequence[PreprocessedImage],
    known: Collection[int],
) -> PredictionFindings:
    """Checks a batch's prediction files against its usable images, their sizes and the known classes.

    Files that are not as they were written are noted for the next run of the predictions.

    Args:
        store: where all artefacts are.
        lane: the detector.
        batch: of the lane that it predicts.
        images: the usable images of the batch.
        known: category ids.
    """
    errors: list[str] = []
    full: list[str] = []
    n_without = 0
    index = store.prediction_index(lane.name, lane.predict_on, batch)
    rows: dict[str, Row] = {}
    if (finding := index_finding(index)) is not None:
        errors.append(finding)
    else:
        rows = read_stage_index(index)
    names = {image.image_id: store.name_of(store.prediction_file(lane.name, image.key)) for image in images}
    errors += _damaged_files(store, index, rows, frozenset(names.values()))
    for image in images:
        name = names[image.image_id]
        path = store.root / name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            errors.append(f"{image.image_id}: no prediction file; materialize {lane.name}/predictions of {batch} again")
            continue
        stamp = recorded_stamps(rows.get(image.image_id, {})).get(name)
        if (damage := _damage(path, data, stamp)) is not None:
            errors.append(_noted(store, index, image.image_id, damage))
        try:
            prediction = parse_prediction(data, path)
        except ValueError as error:
            errors.append(str(error))
            continue
        n_without += not len(prediction.detections)
        if prediction.n_full_tiles:
            full.append(f"{image.image_id} ({prediction.n_full_tiles})")
        impossible = _impossible(prediction.detections, image.frames.global_size, known)
        errors += [f"{image.image_id}: {path.name}: {finding}" for finding in impossible]
    warnings = []
    if full:
        warnings.append(
            f"{len(full)} of {len(images)} images have tiles with as many detections as a tile keeps, and there may be "
            f"more: raise model.detections_per_tile and train again; image (tiles): {enumeration(full, _SHOWN_IMAGES)}"
        )
    return PredictionFindings(len(images), n_without, tuple(errors), tuple(warnings))


def _impossible(found: Detections, global_size: int, known: Collection[int]) -> Iterable[str]:
    """Findings about detections that no detector of these classes makes in an image of this size."""
    limit = global_size + _OUTSIDE_TOLERANCE_PX
    # Negated, because comparisons with NaN are false: NaN is outside.
    outside = ~((found.boxes >= -_OUTSIDE_TOLERANCE_PX) & (found.boxes <= limit)).all(axis=1)
    flat = ~(found.boxes[:, 2:] > found.boxes[:, :2]).all(axis=1)
    wrong_scores = ~((found.scores >= 0) & (found.scores <= 1))
    # In a fraction of the time of np.isin, for the few detections of an image.
    unknown = np.array([label not in known for label in found.labels.tolist()], bool)
    for rows, what in (
        (outside, "boxes outside the image"),
        (flat, "boxes without area"),
        (wrong_scores, "scores outside 0..1"),
        (unknown, "unknown classes"),
    ):
        if rows.any():
            yield f"{int(rows.sum())} {what}"


def _damage(path: Path, data: bytes, stamp: FileStamp | None) -> DamagedArtefactError | None:
    """What is wrong with the bytes of a file; None where they are as recorded, or not recorded."""
    try:
        if stamp is not None:
            check_artefact(path, data, stamp)
    except DamagedArtefactError as error:
        return error
    return None


def _damaged_files(store: ArtefactStore, index: Path, rows: Mapping[str, Row], read: Collection[str]) -> Iterable[str]:
    """Findings about recorded files that are not ``read`` by the caller.

    Pictures are compared by size, predictions of images that left the batch by their bytes; such that are gone are no
    loss.
    """
    for image_id, row in rows.items():
        others = {FILES: [file for file in row.get(FILES) or () if file["name"] not in read]}
        for error in damaged_files(store.root, others, contents=lambda path: path.suffix == ".json"):
            if error.path.suffix != ".json" or error.path.exists():
                yield _noted(store, index, image_id, error)


def _noted(store: ArtefactStore, index: Path, image_id: str, error: DamagedArtefactError) -> str:
    """The finding about a damaged file, which is noted for the next run."""
    note_suspects(index, [store.name_of(error.path)])
    return f"{image_id}: {described(store.root, [error])}; materialize the predictions again"
