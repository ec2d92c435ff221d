"""Prediction as a task of the batch engine: files, fingerprints, and the network.

A prediction file contains the fingerprint of what it was made with and is itself the record that its image is done:
there is no journal. It is written after its pictures, and removed before pictures of other detections are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from uveitis_assets.detection.configuration import InferenceConfiguration
from uveitis_assets.detection.data.preprocessed_images import PreprocessedImage, read_preprocessed_images
from uveitis_assets.detection.data.tile_files import UnreadableTilesError, read_global_image, read_tile_pixels
from uveitis_assets.detection.evaluation.operating_points import at_operating_scores
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.inference.heat_map import draw_heat_map, heat_map
from uveitis_assets.detection.inference.predict_images import predict_images
from uveitis_assets.detection.inference.prediction_file import (
    parse_prediction,
    prediction_bytes,
    prediction_fingerprint,
)
from uveitis_assets.detection.inference.prediction_overlays import draw_detections
from uveitis_assets.imaging.png import encode_png
from uveitis_assets.stages.artefact_files import FILES, DamagedArtefactError, FileStamp, check_artefact, recorded_stamps
from uveitis_assets.stages.batch_task import BatchItem, BatchTask, ItemWork, Job, StageRecords
from uveitis_assets.stages.index import Row, read_stage_index
from uveitis_assets.storage.store import ArtefactStore

INDEX_SCHEMA = pl.Schema(
    {
        "image_id": pl.String,
        "key": pl.String,
        "fingerprint": pl.String,
        "n_detections": pl.Int32,
        "best_score": pl.Float32,
    }
)

PredictionStage = Literal["predictions"]
PREDICTIONS: PredictionStage = "predictions"
PredictionJob = Job[PreprocessedImage, PredictionStage]
# What the network found in an image, or why its tiles could not be read.
Found = Detections | UnreadableTilesError


@dataclass(frozen=True, slots=True)
class PredictionSettings:
    """Settings that all images of a detector lane share.

    Attributes:
        experiment: the detector's lane; names the folders.
        load_models: returns the detectors on ``device``; called only when an image has to be predicted.
        checkpoints: digests of the detectors' weights.
        configuration: merging, thresholds and whether pictures are drawn.
        names: names of the categories.
        device: where the models run.
        code_version: part of every fingerprint.
        global_tile: the global image is one more tile beside those of the native crop.
        amp: mixed precision, of all detectors or of each; None: on CUDA.
        class_scores: score from which detections of a class are written; others need the configuration's.
        masked_classes: the models learned some of their classes, and give the others no score.
    """

    experiment: str
    load_models: Callable[[], Sequence[torch.nn.Module]]
    checkpoints: Sequence[str]
    configuration: InferenceConfiguration
    names: Mapping[int, str]
    device: torch.device | str
    code_version: str
    global_tile: bool = False
    amp: bool | Sequence[bool] | None = None
    class_scores: Mapping[int, float] | None = None
    masked_classes: bool = False


class PredictionTask(BatchTask[PreprocessedImage, PredictionStage]):
    """The usable images of one batch of a fundus lane.

    ``detections`` are those of every image that is predicted with the present settings, by image id, global px.
    ``n_predicted`` counts images that the network saw, ``n_removed`` images whose files were removed.
    """

    def __init__(self, store: ArtefactStore, lane: str, batch: str, settings: PredictionSettings) -> None:
        """Reads which images are usable.

        Raises:
            FileNotFoundError: the batch's tiles have not been materialized.
        """
        images = read_preprocessed_images(store, lane, batch, global_tile=settings.global_tile)
        super().__init__(
            f"{settings.experiment}/predictions[{batch}]",
            [BatchItem(image.image_id, image.fingerprint, image) for image in images],
            {PREDICTIONS: StageRecords(INDEX_SCHEMA, store.prediction_index(settings.experiment, lane, batch), None)},
            [PREDICTIONS],
        )
        self.detections: dict[str, Detections] = {}
        self.n_predicted = 0
        self.n_removed = 0
        self._suspects: frozenset[str] = frozenset()
        self._n_full_tiles: dict[str, int] = {}
        self._store = store
        self._settings = settings
        self._tiles_index = store.stage_index(lane, "tiles", batch)
        self._fingerprints = {
            image.image_id: prediction_fingerprint(
                image.fingerprint,
                settings.checkpoints,
                settings.configuration,
                settings.code_version,
                class_scores=settings.class_scores,
                masked_classes=settings.masked_classes,
            )
            for image in images
        }

    # What is done -----------------------------------------------------------------------------------------

    def fingerprint(
        self, item: BatchItem[PreprocessedImage], stage: PredictionStage, rows: Mapping[PredictionStage, Row]
    ) -> str:
        return self._fingerprints[item.item_id]

    def recorded_rows(self, stage: PredictionStage, indexed: Mapping[str, Row]) -> dict[str, Row]:
        """Rows of the prediction files that are there, whatever they were made with.

        Of a damaged file, the row of the index: the image is predicted again.
        """
        rows: dict[str, Row] = {}
        suspects = set()
        for item in self.items:
            path = self._store.prediction_file(self._settings.experiment, item.key)
            former = indexed.get(item.item_id, {})
            stamp = recorded_stamps(former).get(self._store.name_of(path))
            data: bytes | None = None
            try:
                data = path.read_bytes()
                prediction = parse_prediction(data, path)
                is_former = former.get("fingerprint") == prediction.fingerprint
                if is_former and stamp is not None:
                    check_artefact(path, data, stamp)
            except (FileNotFoundError, ValueError):
                if former and _is_damaged(path, data, stamp):
                    rows[item.item_id] = former
                    suspects.add(self._store.name_of(path))
                continue
            common = {"image_id": item.item_id, "key": item.key, "fingerprint": prediction.fingerprint}
            rows[item.item_id] = (
                common | _columns(prediction.detections) | {FILES: former[FILES] if is_former else None}
            )
            if prediction.fingerprint == self._fingerprints[item.item_id]:
                self.detections[item.item_id] = prediction.detections
        self._suspects = frozenset(suspects)
        return rows

    def suspects(self, stage: PredictionStage) -> frozenset[str]:
        return self._suspects

    def required_files(self, item: BatchItem[PreprocessedImage], stage: PredictionStage, row: Row) -> list[Path]:
        """The prediction file and, where pictures are drawn and show something, the pictures."""
        files = [self._store.prediction_file(self._settings.experiment, item.key)]
        if self._settings.configuration.overlays and row["n_detections"]:
            files += self._pictures(item.key)
        return files

    def unwanted_files(self, item: BatchItem[PreprocessedImage], stage: PredictionStage, row: Row) -> set[Path]:
        """Pictures where none are drawn, or nothing would show."""
        return set(self._pictures(item.key)).difference(self.required_files(item, stage, row))

    def former_ids(self) -> Iterable[str]:
        """All images that the tiles list, quarantined ones too: a killed run wrote no index of its own."""
        return read_stage_index(self._tiles_index)

    # Computing --------------------------------------------------------------------------------------------

    def prepare(self, jobs: Sequence[PredictionJob], pool: Executor) -> Iterator[tuple[PredictionJob, Found]]:
        """Yields jobs that lack only pictures first; then those that the network has to see."""
        to_predict = {job.item.item_id: job for job in jobs if job.item.item_id not in self.detections}
        for job in jobs:
            if job.item.item_id not in to_predict:
                yield job, self.detections[job.item.item_id]
        if not to_predict:
            return
        self.n_predicted = len(to_predict)
        unreadable: list[tuple[PreprocessedImage, UnreadableTilesError]] = []
        configuration, class_scores = self._settings.configuration, self._settings.class_scores
        threshold = configuration.score_threshold
        if class_scores:
            lowest = min(threshold, *class_scores.values())
            configuration = configuration.model_copy(update={"score_threshold": lowest})
        predicted = predict_images(
            self._settings.load_models(),
            [job.item.source for job in to_predict.values()],
            configuration,
            device=self._settings.device,
            read_tiles=partial(read_tile_pixels, self._store),
            amp=self._settings.amp,
            on_unreadable=lambda image, error: unreadable.append((image, error)),
            on_full=lambda image, n_full: self._n_full_tiles.update({image.image_id: n_full}),
        )
        for image, found in predicted:
            detections = at_operating_scores(found, class_scores, threshold) if class_scores else found
            self.detections[image.image_id] = detections
            yield to_predict[image.image_id], detections
        for image, error in unreadable:
            yield to_predict[image.image_id], error

    def start(
        self, item: BatchItem[PreprocessedImage], rows: Mapping[PredictionStage, Row], prepared: Found
    ) -> ImagePrediction:
        return ImagePrediction(
            self._store,
            self._settings,
            item.source,
            prepared,
            self._fingerprints[item.item_id],
            n_full_tiles=self._n_full_tiles.get(item.item_id, 0),
        )

    # Removing ---------------------------------------------------------------------------------------------

    def remove(self, key: str, stage: PredictionStage, former: Row | None) -> None:
        prediction = self._store.prediction_file(self._settings.experiment, key)
        present = [path for path in (prediction, *self._pictures(key)) if path.exists()]
        for path in present:
            path.unlink(missing_ok=True)
        self.n_removed += bool(present)

    def discard_former(
        self, item: BatchItem[PreprocessedImage], stage: PredictionStage, former: Row | None, fingerprint: str
    ) -> None:
        if former is None or former["fingerprint"] != fingerprint:
            # Pictures of the new detections must not stand beside a file of the old ones, not even after a kill.
            self._store.prediction_file(self._settings.experiment, item.key).unlink(missing_ok=True)

    def _pictures(self, key: str) -> tuple[Path, Path]:
        return prediction_pictures(self._store, self._settings.experiment, key)


class ImagePrediction(ItemWork[PredictionStage]):
    """Draws one image's detections and writes its prediction file."""

    def __init__(
        self,
        store: ArtefactStore,
        settings: PredictionSettings,
        image: PreprocessedImage,
        found: Found,
        fingerprint: str,
        *,
        n_full_tiles: int,
    ) -> None:
        self._store = store
        self._settings = settings
        self.image = image
        self._found = found
        self._fingerprint = fingerprint
        self._n_full_tiles = n_full_tiles

    def run(self, stage: PredictionStage) -> Row:
        """Writes the pictures and then the prediction file, unless that is there.

        Raises:
            UnreadableTilesError: the image's tiles, or its global image, are missing or damaged.
        """
        pictures = prediction_pictures(self._store, self._settings.experiment, self.image.key)
        file = self._store.prediction_file(self._settings.experiment, self.image.key)
        detections = self._found
        if isinstance(detections, UnreadableTilesError):
            # Pictures that are there were made by other weights or of other tiles.
            _remove(pictures)
            raise detections
        # The former prediction is gone by now; one that is there is of these detections.
        fresh = not file.exists()
        if not (self._settings.configuration.overlays and len(detections)):
            _remove(pictures)
        elif fresh or not all(path.exists() for path in pictures):
            self._draw(detections, *pictures)
        if fresh:
            content = prediction_bytes(
                self._settings.experiment,
                self.image.image_id,
                self.image.frames,
                detections,
                checkpoints=self._settings.checkpoints,
                configuration=self._settings.configuration,
                fingerprint=self._fingerprint,
                n_full_tiles=self._n_full_tiles,
            )
            self.write(file, content)
        return _columns(detections)

    def _draw(self, detections: Detections, overlay: Path, heat: Path) -> None:
        picture = read_global_image(self._store, self.image)
        size = (picture.shape[1], picture.shape[0])
        self.write(heat, encode_png(draw_heat_map(picture, heat_map(detections, size))))
        drawn: NDArray[np.uint8] = picture.copy()
        draw_detections(drawn, detections, self._settings.names)
        self.write(overlay, encode_png(drawn))


def prediction_pictures(store: ArtefactStore, experiment: str, key: str) -> tuple[Path, Path]:
    """Where the image's overlay and heat map go."""
    return store.prediction_overlay(experiment, key), store.prediction_heat_map(experiment, key)


def _columns(detections: Detections) -> Row:
    """Number of detections and best score, as in the index."""
    return {
        "n_detections": len(detections),
        "best_score": max(detections.scores.tolist(), default=None),
    }


def _is_damaged(path: Path, data: bytes | None, stamp: FileStamp | None) -> bool:
    """Whether a file is not as it was written, or is gone (no ``data``) and was recorded."""
    if data is None:
        return stamp is not None
    try:
        check_artefact(path, data, stamp)
    except DamagedArtefactError:
        return True
    return False


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
