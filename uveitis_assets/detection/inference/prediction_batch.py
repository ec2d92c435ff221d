"""Predict one batch into files: what is done already is skipped, what is stale is removed, any kill can be continued.

An image is done when its prediction file bears the present fingerprint (weights, tiles, merging). Its pictures are
written before that file, so that the file says that all of it is there; a missing picture is drawn again without the
network. The index of the batch is written at the end. Which images have left the batch is the word of the ledger and of
the tiles' index too, because a killed run wrote no index. It decides nothing about detections.
"""

from __future__ import annotations

import io
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from uveitis_assets.detection.configuration import InferenceConfiguration
from uveitis_assets.detection.data.preprocessed_images import PreprocessedImage, read_preprocessed_images
from uveitis_assets.detection.data.tile_files import UnreadableTilesError, read_global_image, read_tile_pixels
from uveitis_assets.detection.inference.detections import Detections
from uveitis_assets.detection.inference.heat_map import draw_heat_map, heat_map
from uveitis_assets.detection.inference.predict_images import predict_images
from uveitis_assets.detection.inference.prediction_file import prediction_fingerprint, read_prediction, write_prediction
from uveitis_assets.detection.inference.prediction_overlays import draw_detections, prediction_sheet
from uveitis_assets.imaging.png import encode_png
from uveitis_assets.stages.batch_ownership import hold_batch, ids_owned_by_other_batches
from uveitis_assets.stages.index import read_stage_index
from uveitis_assets.storage.files import write_bytes
from uveitis_assets.storage.store import ArtefactStore, artefact_key

INDEX_SCHEMA = pl.Schema(
    {
        "image_id": pl.String,
        "key": pl.String,
        "fingerprint": pl.String,
        "n_detections": pl.Int32,
        "best_score": pl.Float32,
    }
)
_DRAWING_THREADS = 2
_DRAWINGS_WAITING = 16
_SHEET_PICTURES = 12
_FAILURES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class BatchPrediction:
    """What a run over one batch did.

    ``n_images`` = ``n_predicted`` (now) + ``n_skipped`` (were done). ``n_removed`` are images whose predictions or
    pictures were removed because they are not usable any more or have left the batch. ``detections_per_class`` maps
    category ids to detections of all images; categories without any are left out.
    """

    n_images: int
    n_predicted: int
    n_skipped: int
    n_removed: int
    n_detections: int
    n_images_without_detections: int
    detections_per_class: dict[int, int]


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
) -> BatchPrediction:
    """Bring the predictions of a batch up to date; a second process on the same batch waits and finds it done.

    Args:
        store: where everything lies.
        experiment: the detector's lane; names the folders.
        lane: the fundus lane that is predicted.
        batch: its batch; its tiles have to be materialized.
        load_models: returns the detectors on ``device``; called only when an image has to be predicted.
        checkpoints: digests of the detectors' weights.
        configuration: merging, thresholds and whether pictures are drawn.
        names: names of the categories.
        device: where the models run.
        code_version: part of every fingerprint.

    Raises:
        FileNotFoundError: the batch's tiles have not been materialized.
        UnreadableTilesError: tiles of some images are missing or damaged; all others are predicted and recorded.
    """
    index = store.prediction_index(experiment, lane, batch)
    with hold_batch(store, lane, batch, lambda name: f"{experiment}.{lane}.{name}.predict") as ownership:
        images = read_preprocessed_images(store, lane, batch)
        own = _own_keys(store, lane, batch, index).union(ownership.released_keys)
        unusable = own.difference(image.key for image in images)
        removed = sum(_remove_prediction(store, experiment, key) for key in sorted(unusable))
        fingerprints = {
            image.image_id: prediction_fingerprint(image.fingerprint, checkpoints, configuration, code_version)
            for image in images
        }
        done = {
            image.image_id: detections
            for image in images
            if (detections := _done(store, experiment, image, fingerprints[image.image_id])) is not None
        }
        todo = [image for image in images if image.image_id not in done]
        unreadable: list[str] = []

        def set_aside(image: PreprocessedImage, error: UnreadableTilesError) -> None:
            # What is there was made by other weights or of other tiles.
            _remove_prediction(store, experiment, image.key)
            unreadable.append(str(error))

        with _drawing(store, experiment, configuration, names) as draw:
            for image in images:
                if image.image_id in done:
                    draw(image, done[image.image_id], None)
            if todo:
                predicted = predict_images(
                    load_models(),
                    todo,
                    configuration,
                    device=device,
                    read_tiles=partial(read_tile_pixels, store),
                    on_unreadable=set_aside,
                )
                for image, detections in predicted:
                    finish = partial(
                        write_prediction,
                        store,
                        experiment,
                        image.image_id,
                        image.frames,
                        detections,
                        checkpoints=checkpoints,
                        configuration=configuration,
                        fingerprint=fingerprints[image.image_id],
                    )
                    draw(image, detections, finish)
                    done[image.image_id] = detections
        _write_index(index, [image for image in images if image.image_id in done], fingerprints, done)
    if unreadable:
        shown = unreadable[:_FAILURES_SHOWN] + ["..."] * (len(unreadable) > _FAILURES_SHOWN)
        raise UnreadableTilesError(
            f"{experiment}/predictions[{batch}]: {len(unreadable)} of {len(images)} images cannot be read, the others "
            "are predicted:\n" + "\n".join(shown)
        )
    labels = Counter(label for detections in done.values() for label in detections.labels.tolist())
    return BatchPrediction(
        n_images=len(images),
        n_predicted=len(todo),
        n_skipped=len(images) - len(todo),
        n_removed=removed,
        n_detections=labels.total(),
        n_images_without_detections=sum(not len(detections) for detections in done.values()),
        detections_per_class=dict(sorted(labels.items())),
    )


def batch_prediction_sheet(
    store: ArtefactStore, experiment: str, lane: str, batch: str, names: Mapping[int, str]
) -> bytes:
    """JPEG (at most 150 kB) of the batch's images with the most detections; the batch has to be predicted.

    Raises:
        FileNotFoundError: the batch has not been predicted.
    """
    found = [
        (read_prediction(store.prediction_file(experiment, image.key)).detections, image)
        for image in read_preprocessed_images(store, lane, batch)
    ]
    found.sort(key=lambda pair: (-len(pair[0]), pair[1].image_id))
    pictures = [
        (read_global_image(store, image), detections, None)
        for detections, image in found[:_SHEET_PICTURES]
        if len(detections)
    ]
    return prediction_sheet(pictures, names, text_if_empty=f"{experiment}: no detections in {lane} {batch}")


def _done(store: ArtefactStore, experiment: str, image: PreprocessedImage, fingerprint: str) -> Detections | None:
    """The image's detections if its file is of the present fingerprint."""
    path = store.prediction_file(experiment, image.key)
    if not path.exists():
        return None
    prediction = read_prediction(path)
    return prediction.detections if prediction.fingerprint == fingerprint else None


def _own_keys(store: ArtefactStore, lane: str, batch: str, index: Path) -> set[str]:
    """Artefact names of the images that the batch's predictions or tiles list and that no other batch has now."""
    listed = set(read_stage_index(store.stage_index(lane, "tiles", batch)))
    if index.exists():
        listed.update(pl.read_parquet(index, columns=["image_id"], memory_map=False)["image_id"])
    return {artefact_key(image_id) for image_id in listed - ids_owned_by_other_batches(store, lane, batch, listed)}


def _remove_prediction(store: ArtefactStore, experiment: str, key: str) -> bool:
    """Remove an image's prediction and pictures; says whether there was any."""
    paths = (store.prediction_file(experiment, key), *_pictures(store, experiment, key))
    there = [path for path in paths if path.exists()]
    for path in there:
        path.unlink(missing_ok=True)
    return bool(there)


def _pictures(store: ArtefactStore, experiment: str, key: str) -> tuple[Path, Path]:
    """Where the image's overlay and heat map go."""
    return store.prediction_overlay(experiment, key), store.prediction_heat_map(experiment, key)


Draw = Callable[[PreprocessedImage, Detections, Callable[[], Path] | None], None]


@contextmanager
def _drawing(
    store: ArtefactStore, experiment: str, configuration: InferenceConfiguration, names: Mapping[int, str]
) -> Iterator[Draw]:
    """A function that draws in threads, so that the network does not wait, and then calls what finishes the image."""
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(_DRAWING_THREADS, thread_name_prefix="draw") as pool:

        def draw(image: PreprocessedImage, detections: Detections, finish: Callable[[], Path] | None) -> None:
            while len(waiting) >= _DRAWINGS_WAITING:
                waiting.popleft().result()
            fresh = finish is not None
            if fresh:
                # Pictures of the new detections must not stand beside a file of the old ones, not even after a kill.
                store.prediction_file(experiment, image.key).unlink(missing_ok=True)
            waiting.append(pool.submit(_pictures_then, image, detections, fresh, finish))

        def _pictures_then(
            image: PreprocessedImage, detections: Detections, fresh: bool, finish: Callable[[], Path] | None
        ) -> None:
            if not (configuration.overlays and len(detections)):
                for path in _pictures(store, experiment, image.key):
                    path.unlink(missing_ok=True)
            else:
                _write_pictures(store, experiment, image, detections, names, fresh=fresh)
            if finish is not None:
                finish()

        try:
            yield draw
            while waiting:
                waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _write_pictures(
    store: ArtefactStore,
    experiment: str,
    image: PreprocessedImage,
    detections: Detections,
    names: Mapping[int, str],
    *,
    fresh: bool,
) -> None:
    """Write overlay and heat map; those of a finished image only when they are missing."""
    overlay, heat = _pictures(store, experiment, image.key)
    if not fresh and overlay.exists() and heat.exists():
        return
    picture = read_global_image(store, image)
    size = (picture.shape[1], picture.shape[0])
    write_bytes(heat, encode_png(draw_heat_map(picture, heat_map(detections, size))))
    drawn: NDArray[np.uint8] = picture.copy()
    draw_detections(drawn, detections, names)
    write_bytes(overlay, encode_png(drawn))


def _write_index(
    path: Path, images: Sequence[PreprocessedImage], fingerprints: Mapping[str, str], done: Mapping[str, Detections]
) -> None:
    rows = [
        {
            "image_id": image.image_id,
            "key": image.key,
            "fingerprint": fingerprints[image.image_id],
            "n_detections": len(done[image.image_id]),
            "best_score": max(done[image.image_id].scores.tolist(), default=None),
        }
        for image in images
    ]
    buffer = io.BytesIO()
    pl.DataFrame(rows, schema=INDEX_SCHEMA).write_parquet(buffer, compression="zstd", statistics=True)
    write_bytes(path, buffer.getbuffer())
