"""Predicts batches with a detector lane's folds and settings, and inspects a batch's predictions.

The checkpoints are loaded when an image needs them and kept for the next batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from uveitis_assets.detection.checkpoints.fold_weights import (
    FoldWeights,
    TrainingNotUsableError,
    fold_weights,
    learned_tiles,
)
from uveitis_assets.detection.data.preprocessed_images import PreprocessedImage, read_preprocessed_images
from uveitis_assets.detection.data.tile_geometry import TileGeometry, tile_finding
from uveitis_assets.detection.evaluation.operating_points import scores_for_prediction
from uveitis_assets.detection.inference.prediction_batch import batch_prediction_sheet, predict_batch
from uveitis_assets.detection.inference.prediction_inspection import PredictionFindings, inspect_prediction_files
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration
from uveitis_assets.imaging.geometry import ImageFrames
from uveitis_assets.labels.class_map import load_class_map
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.device import Device, chosen_device
from uveitis_assets.training.run_folder import RunFolder, folder_of_best_weights
from uveitis_assets.training.run_replacement import current_run
from uveitis_assets.training.weights_files import read_lineage


@dataclass(frozen=True, slots=True)
class PredictedBatch:
    """Index and numbers of a batch's predictions.

    ``checkpoints`` are the weights' digests by fold, e.g. ``fold0 0123abcd``. ``n_learned_images`` in ``numbers``
    counts images that a chosen fold, or the weights it started from, was trained on: detections there say little about
    new images. ``repaired`` names images whose damaged or lost files were made again, ``index_finding`` a damaged
    index. ``tiles`` says in words how the tiles are cut and scaled (None without images), ``tile_findings`` where they
    are unlike those that the weights learned.
    """

    index: Path
    numbers: dict[str, float]
    detections_per_class: dict[str, int]
    checkpoints: tuple[str, ...]
    device: str
    contact_sheet: bytes | None
    repaired: tuple[str, ...]
    index_finding: str | None
    tiles: str | None
    tile_findings: tuple[str, ...]


class BatchPredictor:
    """Predicts batches of one lane; holds the loaded detectors between batches."""

    def __init__(self, store: ArtefactStore, lane: DetectorLaneConfiguration, *, device: Device, code_version: str):
        """Finds the checkpoints of the chosen folds.

        Raises:
            FileNotFoundError: a fold has no checkpoint.
            TrainingNotUsableError: a fold's training is not finished, or learned other classes than the present ones or
                those of the other folds; operating points are wanted, and the validation report holds none for how
                these weights predict.
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
            amp=[weights.answers_in_half_precision(self._device) for weights in self._weights.values()],
            class_scores=self._class_scores,
            masked_classes=any(0 < len(weights.categories) < len(self._names) for weights in self._weights.values()),
        )
        sheet = None
        if lane.inference.overlays:
            empty = f"{lane.name}: no detections in {lane.predict_on} {batch}"
            sheet = batch_prediction_sheet(self._store, done, self._names, text_if_empty=empty)
        frames = [image.frames for image in done.images]
        tiles = TileGeometry.of_images(frames, next(iter(self._weights.values())).input_size)
        numbers: dict[str, float] = {
            "n_images": done.n_images,
            "n_predicted": done.n_predicted,
            "n_skipped": done.n_skipped,
            "n_removed": done.n_removed,
            "n_repaired": len(done.repaired),
            "n_detections": done.n_detections,
            "n_images_without_detections": done.n_images_without_detections,
            "n_learned_images": self._learned_images(done.images),
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
            tiles=None if tiles is None else str(tiles),
            tile_findings=_tile_findings({w.name: w.tiles for w in self._weights.values()}, frames),
        )

    def _operating_scores(self) -> dict[int, float] | None:
        """Scores per class of the fold's validation report; None without ``operating_fp_per_image``."""
        rate = self._lane.inference.operating_fp_per_image
        if rate is None:
            return None
        [weights] = self._weights.values()
        report = folder_of_best_weights(weights.path).report_file
        return scores_for_prediction(report, weights, self._lane, rate)

    def _load_models(self) -> Sequence[torch.nn.Module]:
        if not self._models:
            self._models = [weights.load().to(self._device) for weights in self._weights.values()]
        return self._models

    def _learned_images(self, images: Sequence[PreprocessedImage]) -> int:
        learned = frozenset[str]().union(*(weights.learned_images for weights in self._weights.values()))
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


def _tile_findings(learned: Mapping[str, TileGeometry | None], frames: Sequence[ImageFrames]) -> tuple[str, ...]:
    """Messages about checkpoints, by name, that learned other tiles than these images have."""
    findings = (tile_finding(name, tiles, frames) for name, tiles in learned.items())
    return tuple(finding for finding in findings if finding is not None)


def inspect_predictions(store: ArtefactStore, lane: DetectorLaneConfiguration, batch: str) -> PredictionFindings:
    """Checks a batch's prediction files against its usable images, their sizes and the known classes.

    Tiles unlike those that the present checkpoints learned are a warning.
    """
    if not store.stage_index(lane.predict_on, "tiles", batch).exists():
        return PredictionFindings(0, 0, (f"{lane.predict_on}/tiles[{batch}] has no artefacts; materialize it first",))
    images = read_preprocessed_images(store, lane.predict_on, batch, global_tile=lane.global_tile)
    found = inspect_prediction_files(store, lane, batch, images, load_class_map().names)
    warnings = _tile_findings(_learned_tiles(store, lane), [image.frames for image in images])
    return replace(found, warnings=(*found.warnings, *warnings))


def _learned_tiles(store: ArtefactStore, lane: DetectorLaneConfiguration) -> dict[str, TileGeometry | None]:
    """Geometry of the tiles that each chosen fold learned, by checkpoint.

    Checkpoints that cannot be read are left out: ``checkpoint_integrity`` names them.
    """
    learned: dict[str, TileGeometry | None] = {}
    for fold in lane.inference.folds:
        path = current_run(RunFolder(store.run_folder(lane.name, fold))).best_weights
        try:
            learned[f"{lane.name}/checkpoint of fold{fold}"] = learned_tiles(read_lineage(path))
        except (FileNotFoundError, ValueError):
            continue
    return learned
