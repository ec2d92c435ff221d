"""Predicts batches with a detector lane's folds and settings, and inspects a batch's predictions.

The checkpoints are loaded when an image needs them and kept for the next batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from uveitis_assets.detection.checkpoints.fold_weights import FoldWeights, TrainingNotUsableError, fold_weights
from uveitis_assets.detection.data.preprocessed_images import read_preprocessed_images
from uveitis_assets.detection.evaluation.operating_points import read_operating_scores
from uveitis_assets.detection.inference.prediction_batch import batch_prediction_sheet, predict_batch
from uveitis_assets.detection.inference.prediction_file import read_prediction
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration
from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.messages import enumeration
from uveitis_assets.stages.artefact_files import damaged_files, described
from uveitis_assets.stages.index import index_finding, read_stage_index
from uveitis_assets.stages.suspect_files import note_suspects
from uveitis_assets.storage.files import read_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.device import Device, answers_in_half_precision, chosen_device
from uveitis_assets.training.run_folder import folder_of_best_weights

# Boxes are rounded to 1/64 px and mapped through two frames.
_OUTSIDE_TOLERANCE_PX = 0.1
_SHOWN_IMAGES = 5


@dataclass(frozen=True, slots=True)
class PredictedBatch:
    """Index and numbers of a batch's predictions.

    ``checkpoints`` are the weights' digests by fold, e.g. ``fold0 0123abcd``. ``n_learned_images`` in ``numbers``
    counts images that a chosen fold, or the weights it started from, was trained on: detections there say little about
    new images. ``repaired`` names images whose damaged or lost files were made again, ``index_finding`` a
    damaged index.
    """

    index: Path
    numbers: dict[str, float]
    detections_per_class: dict[str, int]
    checkpoints: tuple[str, ...]
    device: str
    contact_sheet: bytes | None
    repaired: tuple[str, ...]
    index_finding: str | None


@dataclass(frozen=True, slots=True)
class PredictionFindings:
    """Errors found in a batch's predictions, and what someone should look at."""

    n_images: int
    n_without_detections: int
    errors: tuple[str, ...]
    warnings: tuple[str, ...] = ()


class BatchPredictor:
    """Predicts batches of one lane; holds the loaded detectors between batches."""

    def __init__(self, store: ArtefactStore, lane: DetectorLaneConfiguration, *, device: Device, code_version: str):
        """Finds the checkpoints of the chosen folds.

        Raises:
            FileNotFoundError: a fold has no checkpoint.
            TrainingNotUsableError: a fold's training is not finished, or learned other classes than the present ones or
                those of the other folds.
        """
        self._store = store
        self._lane = lane
        self._device = chosen_device(device)
        self._code_version = code_version
        self._names = load_class_map().names
        self._weights = {fold: fold_weights(store, lane.name, fold) for fold in lane.inference.folds}
        for weights in self._weights.values():
            weights.check_categories(self._names)
        _check_same_classes(list(self._weights.values()))
        self._class_scores = self._operating_scores()
        self._models: list[torch.nn.Module] = []

    def predict(self, batch: str) -> PredictedBatch:
        """Brings the predictions of one batch up to date.

        Raises:
            FileNotFoundError: the batch's tiles have not been materialized.
        """
        lane = self._lane
        done = predict_batch(
            self._store,
            lane.name,
            lane.predict_on,
            batch,
            load_models=self._load_models,
            checkpoints=[weights.digest for weights in self._weights.values()],
            configuration=lane.inference,
            names=self._names,
            device=self._device,
            code_version=self._code_version,
            global_tile=lane.global_tile,
            amp=answers_in_half_precision(lane.training.amp, self._device),
            class_scores=self._class_scores,
            masked_classes=any(0 < len(weights.categories) < len(self._names) for weights in self._weights.values()),
        )
        sheet = None
        if lane.inference.overlays:
            sheet = batch_prediction_sheet(self._store, lane.name, lane.predict_on, batch, self._names)
        numbers: dict[str, float] = {
            "n_images": done.n_images,
            "n_predicted": done.n_predicted,
            "n_skipped": done.n_skipped,
            "n_removed": done.n_removed,
            "n_repaired": len(done.repaired),
            "n_detections": done.n_detections,
            "n_images_without_detections": done.n_images_without_detections,
            "n_learned_images": self._learned_images(batch),
        }
        return PredictedBatch(
            index=self._store.prediction_index(lane.name, lane.predict_on, batch),
            numbers=numbers,
            detections_per_class={self._names[key]: count for key, count in done.detections_per_class.items()},
            checkpoints=tuple(f"fold{fold} {weights.digest}" for fold, weights in self._weights.items()),
            device=self._device,
            contact_sheet=sheet,
            repaired=tuple(f"{image_id}: {found}" for image_id, found in sorted(done.repaired.items())),
            index_finding=done.index_finding,
        )

    def _operating_scores(self) -> dict[int, float] | None:
        """Scores per class of the fold's validation report; None without ``operating_fp_per_image``."""
        rate = self._lane.inference.operating_fp_per_image
        if rate is None:
            return None
        [weights] = self._weights.values()
        report = folder_of_best_weights(weights.path).report_file
        if not report.is_file():
            raise FileNotFoundError(
                f"{report}: operating_fp_per_image needs it, found none; materialize the evaluation"
            )
        content = read_json(report)
        if content.get("checkpoint", weights.digest) != weights.digest:
            raise TrainingNotUsableError(
                f"{report}: expected the report of {weights.name} ({weights.digest}), found that of "
                f"{content['checkpoint']}; materialize the evaluation of `val` again"
            )
        return read_operating_scores(content, rate)

    def _load_models(self) -> Sequence[torch.nn.Module]:
        if not self._models:
            self._models = [weights.load().to(self._device) for weights in self._weights.values()]
        return self._models

    def _learned_images(self, batch: str) -> int:
        learned = frozenset[str]().union(*(weights.learned_images for weights in self._weights.values()))
        images = read_preprocessed_images(self._store, self._lane.predict_on, batch)
        return sum(image.image_id in learned for image in images)


def _check_same_classes(folds: Sequence[FoldWeights]) -> None:
    """An ensemble counts a detector that never learned a class as one that found nothing."""
    for other in folds[1:]:
        different = sorted(set(folds[0].categories.items()) ^ set(other.categories.items()))
        if different:
            raise TrainingNotUsableError(
                f"inference.folds: expected folds that learned the same classes, found {folds[0].name} and "
                f"{other.name} different in {', '.join(name for _, name in different)}; materialize both again"
            )


def _damaged_files(store: ArtefactStore, index: Path) -> list[str]:
    """Recorded files whose bytes (predictions) or sizes (pictures) have changed; noted for the next run.

    Predictions that are gone are left to the caller, which knows the usable images.
    """
    errors = []
    for image_id, row in read_stage_index(index).items():
        for error in damaged_files(store.root, row, contents=lambda path: path.suffix == ".json"):
            if error.path.suffix != ".json" or error.path.exists():
                note_suspects(index, [store.name_of(error.path)])
                errors.append(f"{image_id}: {described(store.root, [error])}; materialize the predictions again")
    return errors


def inspect_predictions(store: ArtefactStore, lane: DetectorLaneConfiguration, batch: str) -> PredictionFindings:
    """Checks a batch's prediction files against its usable images, their sizes and the known classes."""
    names = load_class_map().names
    errors: list[str] = []
    full: list[str] = []
    n_without = 0
    if not store.stage_index(lane.predict_on, "tiles", batch).exists():
        return PredictionFindings(0, 0, (f"{lane.predict_on}/tiles[{batch}] has no artefacts; materialize it first",))
    images = read_preprocessed_images(store, lane.predict_on, batch)
    index = store.prediction_index(lane.name, lane.predict_on, batch)
    if (finding := index_finding(index)) is not None:
        errors.append(finding)
    else:
        errors += _damaged_files(store, index)
    for image in images:
        path = store.prediction_file(lane.name, image.key)
        if not path.exists():
            errors.append(f"{image.image_id}: no prediction file; materialize {lane.name}/predictions of {batch} again")
            continue
        try:
            prediction = read_prediction(path)
        except ValueError as error:
            errors.append(str(error))
            continue
        found = prediction.detections
        n_without += not len(found)
        if prediction.n_full_tiles:
            full.append(f"{image.image_id} ({prediction.n_full_tiles})")
        limit = image.frames.global_size + _OUTSIDE_TOLERANCE_PX
        # Negated, because comparisons with NaN are false: NaN is outside.
        outside = ~((found.boxes >= -_OUTSIDE_TOLERANCE_PX) & (found.boxes <= limit)).all(axis=1)
        flat = ~(found.boxes[:, 2:] > found.boxes[:, :2]).all(axis=1)
        impossible = ~((found.scores >= 0) & (found.scores <= 1))
        unknown = ~np.isin(found.labels, list(names))
        for rows, what in (
            (outside, "boxes outside the image"),
            (flat, "boxes without area"),
            (impossible, "scores outside 0..1"),
            (unknown, "unknown classes"),
        ):
            if rows.any():
                errors.append(f"{image.image_id}: {path.name}: {int(rows.sum())} {what}")
    warnings = []
    if full:
        warnings.append(
            f"{len(full)} of {len(images)} images have tiles with as many detections as a tile keeps, and there may be "
            f"more: raise model.detections_per_tile and train again; image (tiles): {enumeration(full, _SHOWN_IMAGES)}"
        )
    return PredictionFindings(len(images), n_without, tuple(errors), tuple(warnings))
