"""Evaluation of a fold's best checkpoint on labelled images: report, figures and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.checkpoints.fold_weights import fold_weights
from uveitis_assets.detection.data.labelled_split import LabelledImage, LabelledSplit
from uveitis_assets.detection.data.sampling import overfit_split
from uveitis_assets.detection.data.tile_files import read_global_image, read_tile_pixels
from uveitis_assets.detection.data.tile_geometry import TileGeometry, tile_finding
from uveitis_assets.detection.evaluation.detection_limits import answers_that_lack_room
from uveitis_assets.detection.evaluation.evaluate import Evaluation, evaluate_detections
from uveitis_assets.detection.evaluation.figures import confusion_figure, froc_figure, precision_recall_figure
from uveitis_assets.detection.evaluation.operating_points import score_settings
from uveitis_assets.detection.evaluation.report import validation_report
from uveitis_assets.detection.inference.detections import Detections, GroundTruth
from uveitis_assets.detection.inference.predict_images import predict_images
from uveitis_assets.detection.inference.prediction_overlays import prediction_sheet
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration
from uveitis_assets.detection.model_configuration import ModelConfiguration
from uveitis_assets.detection.training.fold_training import labelled_split
from uveitis_assets.imaging.figures import png_as_jpeg
from uveitis_assets.storage.files import read_json, write_bytes, write_json
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.device import Device, chosen_device
from uveitis_assets.training.run_folder import RunFolder, folder_of_best_weights
from uveitis_assets.training.run_replacement import current_run
from uveitis_assets.training.weights_files import read_lineage

_SHEET_PICTURES = 9


@dataclass(frozen=True, slots=True)
class FoldEvaluation:
    """An evaluation as it is shown; ``pictures`` are JPEG by name, ``per_class_table`` is Markdown.

    ``split`` names the images evaluated; ``numbers`` hold only what exists: an AP without lesions is left out.
    ``limits`` are messages about settings that leave out lesions or detections, or show other tiles than were learned;
    ``tiles`` says in words how the evaluated tiles are cut and scaled.
    """

    report: Path
    split: str
    numbers: dict[str, float]
    per_class_table: str
    pictures: dict[str, bytes]
    limits: tuple[str, ...]
    tiles: str


def evaluate_fold(
    store: ArtefactStore,
    lane: DetectorLaneConfiguration,
    fold: int,
    *,
    split: Literal["val", "test"],
    device: Device,
) -> FoldEvaluation:
    """Evaluate the fold's best checkpoint and write its report and ``figures/``.

    The report is ``val_report.json`` or ``test_report.json``.

    A lane with ``overfit_images`` is evaluated on the images that it learned, whatever the split.

    Raises:
        FileNotFoundError: there is no checkpoint, or no labels; names what to materialize.
        TrainingNotUsableError: the checkpoint is unfinished, was replaced meanwhile, was trained on images that it is
            to be evaluated on, or learned other classes.
    """
    weights = fold_weights(store, lane.name, fold)
    # Asked for a second time, the run in use might be another.
    folder = folder_of_best_weights(weights.path)
    device_name = chosen_device(device)
    evaluated = _evaluated_images(store, lane, fold, split)
    weights.check_categories(evaluated.categories)
    if not lane.overfit_images:
        weights.check_never_learned([image.image_id for image in evaluated.images], f"{split} of fold{fold}")
    model = weights.load()
    mixed_precision = weights.answers_in_half_precision(device_name)
    everything = lane.inference.model_copy(update={"score_threshold": 0.0})
    found = [
        detections
        for _, detections in predict_images(
            [model.to(device_name)],
            evaluated.images,
            everything,
            device=device_name,
            amp=mixed_precision,
            read_tiles=partial(read_tile_pixels, store),
        )
    ]
    evaluation = evaluate_detections(evaluated.images, found, evaluated.categories, lane.evaluation)
    lineage = read_lineage(weights.path)
    network = ModelConfiguration(**lineage["configuration"]["model"])
    frames = [image.frames for image in evaluated.images]
    tiles = TileGeometry.of_images(frames, network.input_size)
    unlike = tile_finding(weights.name, weights.tiles, frames)
    limits = (
        *answers_that_lack_room(network, evaluated.images),
        *evaluation.limits,
        *([] if unlike is None else [unlike]),
    )
    evaluation = replace(evaluation, limits=limits)
    report = folder.report_file if split == "val" else folder.test_report_file
    epoch = int(lineage["metrics"]["epoch"])
    content = validation_report(evaluation, best_epoch=epoch, fingerprint=evaluated.fingerprint)
    figures = {
        "FROC": froc_figure(evaluation),
        "precision and recall": precision_recall_figure(evaluation),
        "confusion": confusion_figure(evaluation),
    }
    pictures = {name: png_as_jpeg(png) for name, png in figures.items()}
    pictures["preview"] = _sheet(lane, evaluated.images, found, evaluated.categories, store)
    # A training that finished meanwhile has put its own report there. Last of all, because the figures take seconds.
    weights.check_unchanged()
    evaluated_as = {
        "checkpoint": weights.digest,
        "split": evaluated.split,
        "settings": score_settings(lane),
        "mixed_precision": mixed_precision,
        "tiles": None if tiles is None else tiles.plain(),
    }
    write_json(report, content | evaluated_as)
    for name, png in figures.items():
        write_bytes(folder.figures_folder / f"{split}_{name.replace(' ', '_').lower()}.png", png)
    return FoldEvaluation(
        report=report,
        split=evaluated.split,
        numbers=_numbers(evaluation),
        per_class_table=_per_class_table(evaluation),
        pictures=pictures,
        limits=limits,
        tiles=str(tiles),
    )


def reported_map_50(store: ArtefactStore, lane: DetectorLaneConfiguration, fold: int) -> float | None:
    """AP at IoU 0.5 of the fold's newest report on validation images; None when there is none."""
    path = current_run(RunFolder(store.run_folder(lane.name, fold))).report_file
    if not path.exists():
        return None
    value: float | None = read_json(path)["ap"]["0.5"]
    return value


def reported_limits(store: ArtefactStore, lane: DetectorLaneConfiguration, fold: int) -> list[str]:
    """The newest validation report's messages about settings that leave out lesions or detections."""
    path = current_run(RunFolder(store.run_folder(lane.name, fold))).report_file
    return list(read_json(path).get("limits", ())) if path.exists() else []


def _evaluated_images(
    store: ArtefactStore, lane: DetectorLaneConfiguration, fold: int, split: Literal["val", "test"]
) -> LabelledSplit:
    if lane.overfit_images:
        return overfit_split(labelled_split(store, lane, fold, "train"), lane.overfit_images)
    return labelled_split(store, lane, fold, split)


def _numbers(evaluation: Evaluation) -> dict[str, float]:
    pooled = dict(zip(evaluation.froc.rates, evaluation.froc.pooled.at_rates, strict=True))
    figures: dict[str, float | None] = {
        "map_50": evaluation.map_50,
        "map_30": evaluation.map_30,
        "map_50_95": evaluation.map_50_95,
        **{f"sensitivity_at_{rate:g}_fp_per_image": value for rate, value in pooled.items()},
    }
    counts = {
        "n_images": evaluation.n_images,
        "n_patients": evaluation.n_patients,
        "n_lesions": sum(evaluation.n_lesions.values()),
    }
    return counts | {name: round(value, 4) for name, value in figures.items() if value is not None}


def _per_class_table(evaluation: Evaluation) -> str:
    """Markdown, one row per class with lesions."""
    lines = ["| class | lesions | AP 0.3 | AP 0.5 | AP 0.5:0.95 |", "|---|---:|---:|---:|---:|"]
    precision = evaluation.average_precision
    for category, n_lesions in evaluation.n_lesions.items():
        if n_lesions:
            values = (precision.iou_30, precision.iou_50, precision.iou_50_95)
            cells = " | ".join(_shown(value.per_class[category]) for value in values)
            lines.append(f"| {evaluation.categories[category]} | {n_lesions} | {cells} |")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _sheet(
    lane: DetectorLaneConfiguration,
    images: Sequence[LabelledImage],
    found: Sequence[Detections],
    names: dict[int, str],
    store: ArtefactStore,
) -> bytes:
    """The images with the most lesions: detections above the written threshold, labels dashed."""
    order = sorted(range(len(images)), key=lambda at: (-len(images[at].truth), images[at].image_id))
    pictures: list[tuple[NDArray[np.uint8], Detections, GroundTruth | None]] = []
    for at in order[:_SHEET_PICTURES]:
        certain = found[at].select(found[at].scores >= lane.inference.score_threshold)
        pictures.append((read_global_image(store, images[at]), certain, images[at].truth))
    return prediction_sheet(pictures, names, text_if_empty=f"{lane.name}: no labelled images")
