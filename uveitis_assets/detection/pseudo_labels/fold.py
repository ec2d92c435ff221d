"""Pseudo-labels of a detector lane for one fold, as COCO files that another lane trains on.

Detections of unlabelled images and, if wanted, missed lesions of labelled training images join the fold's training
labels by the rules of ``pseudo_labels``. Images that the fold is evaluated on, val and test, stay out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uveitis_assets.detection.checkpoints.fold_weights import fold_weights
from uveitis_assets.detection.data.preprocessed_images import PreprocessedImage, read_preprocessed_images
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration
from uveitis_assets.detection.pseudo_labels.expansion import expand_coco, frames_reader, read_confident_predictions
from uveitis_assets.landing.manifest_table import read_manifest
from uveitis_assets.storage.files import read_json, write_json
from uveitis_assets.storage.store import ArtefactStore

_UNLABELLED = (None, "none", "grade")


@dataclass(frozen=True, slots=True)
class ExpandedFold:
    """What was written; ``numbers`` count images and lesions, not tiles."""

    path: Path
    numbers: dict[str, float]


def expand_fold(store: ArtefactStore, lane: DetectorLaneConfiguration, fold: int) -> ExpandedFold:
    """Write the fold's training labels with pseudo-labels to ``labels_coco/pseudo/<detector>/``.

    Raises:
        FileNotFoundError: labels or tiles are not there; names what to materialize.
        ValueError: the lane makes no pseudo-labels, or not for this fold; the predictions are not by its present
            checkpoint.
    """
    if lane.pseudo_labels is None or fold not in lane.inference.folds:
        raise ValueError(
            f"{lane.name}: expected pseudo_labels and fold {fold} in inference.folds, found {lane.pseudo_labels} and "
            f"{list(lane.inference.folds)}"
        )
    paths = [store.coco_file(lane.train_on, "train", fold, tiles=tiles) for tiles in (False, True)]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: found none; materialize {lane.train_on}/coco_labels of fold{fold} first")
    bases = [read_json(path) for path in paths]
    manifest = read_manifest(store, lane.train_on)
    rows = {
        image_id: (label_format, splits[fold])
        for image_id, label_format, splits in manifest.select("image_id", "label_format", "fold_splits").iter_rows()
    }
    images = [
        image
        for batch in store.indexed_batches(lane.train_on, "tiles")
        for image in read_preprocessed_images(store, lane.train_on, batch)
        if image.image_id in rows
    ]
    held_out = {image_id for image_id, (_, split) in rows.items() if split != "train"}
    unlabelled = [image for image in images if rows[image.image_id][0] in _UNLABELLED]
    weights = fold_weights(store, lane.name, fold)
    expanded, counts = expand_coco(
        bases,
        _as_coco(store, unlabelled, bases[0]["categories"]),
        read_confident_predictions(store.prediction_file(lane.name, "any").parent, rows, made_by=weights.digest),
        frames_of=frames_reader(store),
        held_out=held_out,
        configuration=lane.pseudo_labels,
    )
    targets = [store.pseudo_coco_file(lane.name, lane.train_on, fold, tiles=tiles) for tiles in (False, True)]
    for target, content in zip(targets, expanded, strict=True):
        write_json(target, content, indent=None)
    numbers = {
        **asdict(counts),
        "n_images": len(expanded[0]["images"]),
        "n_annotations": len(expanded[0]["annotations"]),
        "n_unlabelled_images": len(unlabelled),
    }
    return ExpandedFold(targets[0], numbers)


def _as_coco(
    store: ArtefactStore, images: list[PreprocessedImage], categories: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Global images and tiles as COCO files without annotations."""
    files: list[list[dict[str, Any]]] = [[], []]
    for image in images:
        side = image.frames.global_size
        whole = store.name_of(store.global_image(image.key, side))
        files[0].append({"file_name": whole, "width": side, "height": side, "image_id": image.image_id})
        files[1] += [
            {
                "file_name": store.name_of(store.tile(image.key, tile.tile_id)),
                "width": tile.width,
                "height": tile.height,
                "image_id": image.image_id,
                "tile_id": tile.tile_id,
            }
            for tile in image.frames.tiles
        ]
    return [
        {
            "images": [{"id": number, **entry} for number, entry in enumerate(entries, start=1)],
            "annotations": [],
            "categories": categories,
        }
        for entries in files
    ]
