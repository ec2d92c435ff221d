"""Predicts one batch into files; skips what is done, removes what is stale, resumes after kills.

``stages.batch_run`` runs what is not done; ``prediction_task`` has the fingerprints and files of predictions. An image
is done when its prediction file has the present fingerprint (weights, tiles, merging); a missing or damaged picture is
drawn again without the network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from uveitis_assets.detection.configuration import InferenceConfiguration
from uveitis_assets.detection.data.preprocessed_images import PreprocessedImage
from uveitis_assets.detection.data.tile_files import UnreadableTilesError, read_global_image
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.inference.prediction_overlays import prediction_sheet
from uveitis_assets.detection.inference.prediction_task import PREDICTIONS, PredictionSettings, PredictionTask
from uveitis_assets.stages.batch_outcome import BatchFailedError, StageOutcome, shown
from uveitis_assets.stages.batch_run import run_batch
from uveitis_assets.storage.store import ArtefactStore

_DRAWING_THREADS = 2
_SHEET_PICTURES = 12


@dataclass(frozen=True, slots=True)
class BatchPrediction:
    """Counts of a run over one batch.

    ``n_images`` = ``n_predicted`` (now) + ``n_skipped`` (were done). ``n_removed`` are images whose predictions or
    pictures were removed because they are not usable any more or have left the batch. ``detections_per_class`` maps
    category ids to detections of all images; categories without any are left out. ``repaired`` are images whose files
    were damaged or lost, with what was found; ``index_finding`` what was wrong with the index. ``images`` are those of
    the batch, and ``detections`` theirs by image id, global px.
    """

    n_images: int
    n_predicted: int
    n_skipped: int
    n_removed: int
    n_detections: int
    n_images_without_detections: int
    detections_per_class: dict[int, int]
    repaired: dict[str, str]
    index_finding: str | None
    images: tuple[PreprocessedImage, ...] = field(repr=False, compare=False)
    detections: Mapping[str, Detections] = field(repr=False, compare=False)


def predict_batch(
    store: ArtefactStore,
    experiment: str,
    lane: str,
    batch: str,
    *,
    load_models: Callable[[], Sequence[torch.nn.Module]],
    checkpoints: Sequence[str],
    configuration: InferenceConfiguration,
    names: Mapping[int, str],
    device: torch.device | str,
    code_version: str,
    global_tile: bool = False,
    amp: bool | Sequence[bool] | None = None,
    class_scores: Mapping[int, float] | None = None,
    masked_classes: bool = False,
) -> BatchPrediction:
    """Brings the predictions of a batch up to date; a second process waits and finds them done.

    Args:
        store: where all artefacts are.
        experiment: the detector's lane; names the folders.
        lane: the fundus lane that is predicted.
        batch: its batch; its tiles have to be materialized.
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

    Raises:
        FileNotFoundError: the batch's tiles have not been materialized.
        UnreadableTilesError: tiles of some images are missing or damaged; all others are predicted and recorded.
        BatchFailedError: images failed for other reasons; all others are predicted and recorded.
    """
    settings = PredictionSettings(
        experiment=experiment,
        load_models=load_models,
        checkpoints=checkpoints,
        configuration=configuration,
        names=names,
        device=device,
        code_version=code_version,
        global_tile=global_tile,
        amp=amp,
        class_scores=class_scores,
        masked_classes=masked_classes,
    )
    tasks: list[PredictionTask] = []

    def begin() -> PredictionTask:
        tasks.append(PredictionTask(store, lane, batch, settings))
        return tasks[0]

    try:
        outcome = run_batch(
            store,
            lane,
            batch,
            begin,
            lock_name=lambda name: f"{experiment}.{lane}.{name}.predict",
            workers=_DRAWING_THREADS,
        )
    except BatchFailedError as error:
        unreadable = [str(failure) for _, failure in error.failures if isinstance(failure, UnreadableTilesError)]
        if len(unreadable) < len(error.failures):
            raise
        raise UnreadableTilesError(
            f"{experiment}/predictions[{batch}]: {len(unreadable)} of {len(tasks[0].items)} images cannot be read, the "
            f"others are predicted:\n{shown(unreadable)}"
        ) from error
    return _numbers(tasks[0], outcome.stages[PREDICTIONS])


def _numbers(task: PredictionTask, outcome: StageOutcome) -> BatchPrediction:
    labels = Counter(label for detections in task.detections.values() for label in detections.labels.tolist())
    return BatchPrediction(
        n_images=len(task.items),
        n_predicted=task.n_predicted,
        n_skipped=len(task.items) - task.n_predicted,
        n_removed=task.n_removed,
        n_detections=labels.total(),
        n_images_without_detections=sum(not len(detections) for detections in task.detections.values()),
        detections_per_class=dict(sorted(labels.items())),
        repaired=outcome.repaired,
        index_finding=outcome.index_finding,
        images=tuple(item.source for item in task.items),
        detections=task.detections,
    )


def batch_prediction_sheet(
    store: ArtefactStore, prediction: BatchPrediction, names: Mapping[int, str], *, text_if_empty: str
) -> bytes:
    """JPEG (at most 150 kB) of a batch's images with the most detections, or the text."""
    found = [(prediction.detections[image.image_id], image) for image in prediction.images]
    found.sort(key=lambda pair: (-len(pair[0]), pair[1].image_id))
    pictures = [
        (read_global_image(store, image), detections, None)
        for detections, image in found[:_SHEET_PICTURES]
        if len(detections)
    ]
    return prediction_sheet(pictures, names, text_if_empty=text_if_empty)
