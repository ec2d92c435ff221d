"""Writes the reference pages of the configuration from its models, so that they cannot drift from the code.

    .venv/bin/python docs/generate_configuration.py

configuration.md is about fundus lanes, detector-configuration.md about detectors and encoders. Types, ranges, defaults
and meanings come from the models; units and links are in this script. It validates no defs.yaml.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from uveitis_assets.components.detector.assets import EvaluationRunConfig, PredictionsRunConfig, TrainingRunConfig
from uveitis_assets.components.encoder.assets import PretrainingRunConfig
from uveitis_assets.components.fundus.assets import LabelsRunConfig, PreprocessRunConfig
from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration
from uveitis_assets.detection.pretraining.configuration import EncoderPretrainingConfiguration
from uveitis_assets.fundus.configuration import ReferenceColorConfiguration
from uveitis_assets.landing.layouts import layout_names

REFERENCE = Path(__file__).parent / "reference"

# Fields are looked up by their dotted name; those of other components than a fundus lane have its name in front, which
# the pages leave out.
COMPONENTS = ("reference_color.", "detector.", "encoder.")

# Where a field is explained at length.
LINKS = {
    "image_folder.csv": "[tables](../how-to/add-a-dataset.md#tables)",
    "layout": "[add a dataset](../how-to/add-a-dataset.md#choose-a-layout)",
    "roi.method": "[the methods](../explanation/design.md#regions-of-interest)",
    "normalize.method": "[the methods](../explanation/design.md#colour-normalization)",
    "detector.model.head": "[oriented boxes](../explanation/design.md#oriented-boxes)",
    "detector.model.anchor_sizes": "[small lesions](../explanation/design.md#small-lesions)",
    "detector.model.head_stages": "[the cascade](../explanation/small-lesions.md#steps)",
    "detector.inference.merge": "[merging](../explanation/design.md#merging-tiles)",
    "detector.training.tile_cache_gb": "[decoded tiles](formats.md#decoded-tiles)",
    "detector.overfit_images": "[which images](../explanation/design.md#which-images-a-detector-sees)",
}

# Fields whose values are those of a registry.
CHOICES = {"layout": layout_names}

UNITS = {
    "batch_size": "images",
    "roi.downsample_max_side": "px",
    "roi.sat_threshold": "grey levels",
    "roi.crop_pad_px": "raw px",
    "roi.min_area_ratio": "share of the image",
    "roi.max_area_ratio": "share of the image",
    "roi.max_border_touch_ratio": "share of the border lines",
    "roi.sam2.batch_size": "images",
    "roi.sam2.points_norm": "shares of width and height",
    "roi.sam2.open_kernel": "px",
    "roi.sam2.close_kernel": "px",
    "normalize.stats_erode_px": "raw px",
    "normalize.zscore_clip": "standard deviations",
    "tiling.global_size": "px",
    "tiling.tile_size": "px",
    "tiling.overlap": "share of a side",
    "verify.min_roi_area_ratio": "share of the image",
    "verify.max_roi_border_touch_ratio": "share of the border lines",
    "verify.max_reconstruction_abs_error": "grey levels",
    "verify.max_fallback_ratio": "share of images",
    "verify.max_quarantine_ratio": "share of images",
    "splits.test_ratio": "share of patients",
    "labels.min_component_area": "raw px²",
    "labels.max_marked_share": "share of the retina",
    "labels.edge_tolerance": "share of the side",
    "labels.min_tile_box_ratio": "share of the box",
    "labels.large_lesion_tile_cover": "share of the tile",
    "labels.debug_max_images": "images",
    "automation.landing_interval_s": "s",
    "automation.labels_interval_s": "s",
    "automation.max_batches_per_run": "batches",
    "reference_color.per_dataset": "images",
    "reference_color.max_images": "images",
    "reference_color.downsample_max_side": "px",
    "reference_color.pixels_per_image": "px",
    "reference_color.stats_erode_px": "px",
    "detector.overfit_images": "images",
    "detector.model.finest_stride": "px",
    "detector.model.input_size": "px",
    "detector.model.n_categories": "categories",
    "detector.model.anchor_sizes": "px of the input",
    "detector.model.anchor_ratios": "height / width",
    "detector.model.pyramid_channels": "channels",
    "detector.model.head_width": "channels",
    "detector.model.head_stages": "stages",
    "detector.model.later_stage_ious": "IoU",
    "detector.model.rpn_foreground_iou": "IoU",
    "detector.model.rpn_background_iou": "IoU",
    "detector.model.roi_foreground_iou": "IoU",
    "detector.model.roi_background_iou": "IoU",
    "detector.model.rpn_pre_nms_train": "proposals",
    "detector.model.rpn_post_nms_train": "proposals",
    "detector.model.rpn_pre_nms_test": "proposals",
    "detector.model.rpn_post_nms_test": "proposals",
    "detector.model.detections_per_tile": "detections",
    "detector.model.box_score_threshold": "score",
    "detector.model.box_nms_iou": "IoU",
    "detector.initialise.min_matched": "share of the parameters",
    "detector.augmentation.horizontal_flip": "probability",
    "detector.augmentation.vertical_flip": "probability",
    "detector.augmentation.brightness": "share",
    "detector.augmentation.contrast": "share",
    "detector.augmentation.saturation": "share",
    "detector.sampling.rare_below": "share of the images",
    "detector.sampling.empty_share": "share of the tiles",
    "detector.sampling.max_images": "images",
    "detector.training.epochs": "epochs",
    "detector.training.batch_size": "tiles",
    "detector.training.warmup_steps": "steps",
    "detector.training.freeze_blocks": "blocks",
    "detector.training.freeze_epochs": "epochs",
    "detector.training.unfreeze_blocks_per_epoch": "blocks",
    "detector.training.patience": "epochs",
    "detector.training.evaluate_every": "epochs",
    "detector.training.save_every_epochs": "epochs",
    "detector.training.checkpoint_every_steps": "steps",
    "detector.training.checkpoint_every_minutes": "min",
    "detector.training.loader_workers": "processes",
    "detector.training.tile_cache_gb": "GiB",
    "detector.evaluation.selection_iou": "IoU",
    "detector.evaluation.froc_iou": "IoU",
    "detector.evaluation.froc_fp_per_image": "false positives per image",
    "detector.evaluation.operating_score": "score",
    "detector.evaluation.max_detections": "detections",
    "detector.evaluation.bootstrap_samples": "resamples",
    "detector.inference.batch_size": "tiles",
    "detector.inference.score_threshold": "score",
    "detector.inference.merge_iou": "IoU",
    "detector.pseudo_labels.min_score": "score",
    "detector.pseudo_labels.duplicate_iou": "IoU",
    "detector.pseudo_labels.min_tile_box_ratio": "share of the box",
    "detector.pseudo_labels.large_lesion_tile_cover": "share of the tile",
    "detector.verify.min_map_50": "AP",
    "detector.verify.max_images_without_detections": "share of images",
    "detector.automation.predictions_interval_s": "s",
    "detector.automation.max_batches_per_run": "batches",
    "encoder.masked_share": "share of the patches",
    "encoder.smallest_crop": "share of the image",
    "encoder.epochs": "epochs",
    "encoder.batch_size": "images",
    "encoder.warmup_epochs": "epochs",
    "encoder.checkpoint_every_steps": "steps",
}

HEADINGS = {
    "image_folder": "Options of the layout `image_folder`",
    "patients": "Where patients stand",
    "roi": "Region of interest",
    "roi.sam2": "SAM 2",
    "normalize": "Colour normalization",
    "tiling": "Global image and tiles",
    "verify": "Limits of the asset checks",
    "splits": "Splits",
    "labels": "Lesion labels",
    "automation": "Sensors and schedule",
    "detector.model": "The network",
    "detector.initialise": "First weights",
    "detector.augmentation": "Augmentation",
    "detector.sampling": "Which tiles an epoch shows",
    "detector.training": "Training",
    "detector.evaluation": "Evaluation",
    "detector.inference": "Prediction",
    "detector.pseudo_labels": "Pseudo-labels",
    "detector.verify": "Limits of the asset checks",
    "detector.automation": "Sensor",
}

# Text between a group's heading and its table.
NOTES = {
    "patients": "For the layouts `uwf700`, `fgadr` and `image_folder`: either `csv` or `pattern`; see [patients]"
    "(../how-to/add-a-dataset.md#say-which-images-belong-to-one-person). Without this group each image is a patient of "
    "its own, but for `image_folder.patient_column`.",
    "detector.pseudo_labels": "Without this group a detector makes no pseudo-labels; `pseudo_labels: {}` takes the "
    "defaults.",
}

INTRODUCTION = """# Configuration

<!-- Written by docs/generate_configuration.py; change the models or the script, not this page. -->

## Environment variables

| variable | default | meaning |
|---|---|---|
| `UVEITIS_DATA` | `./data` | Root of all artefacts |
| `UVEITIS_RAW` | `$UVEITIS_DATA/raw` | Root of the landing folders; only `uveitis-assets demo` writes there |
| `UVEITIS_WORKERS` | CPUs of the process | Threads over images of one run, at least 1 |
| `UVEITIS_PATIENT_KEY_FILE` | `$UVEITIS_DATA/ledger/patient_key` | Key of the patient pseudonyms, 64 hex digits |
| `UVEITIS_WANDB_KEY_FILE` | none | File with one line, the W&B key; read by trainings with `training.wandb_project` |
| `UVEITIS_REAL_DATA` | `../shared/data` | Tests only: folder of real images; without it some tests are skipped |
| `UVEITIS_CASES` | `../shared/cases` | Tests only: folder of small inputs with right answers; as above |
| `UVEITIS_ACCEPT_SNAPSHOT` | none | Tests only: write the snapshot of the asset graph instead of comparing it |
| `UVEITIS_TEST_PATIENCE` | 10 | Tests only: factor of every timeout, for slow machines |
| `UVEITIS_URL` | `http://127.0.0.1:3000` | `uveitis-assets submit`: the deployment's UI |
| `UVEITIS_SETTINGS` | `docker/.env` | `uveitis-assets doctor`, `backup`, `restore`: settings of the deployment |
| `DAGSTER_HOME` | none; `make` sets `./.dagster_home` | Folder of Dagster's database and of `dagster.yaml` |

### Docker deployment

`docker/prepare.sh` reads these once and writes them to `docker/.env`; `UVEITIS_DATA` and `UVEITIS_RAW` too, which are
folders of the host there.

| variable | default | meaning |
|---|---|---|
| `UVEITIS_HOME` | `<repository>/deployment` | Folder of the others: `data`, `raw`, `state`, `secrets` |
| `UVEITIS_STATE` | `$UVEITIS_HOME/state` | Postgres' and Dagster's files |
| `UVEITIS_SECRETS` | `$UVEITIS_HOME/secrets` | Files with secrets, such as `postgres_password` |
| `UVEITIS_UID` | yours | User id that owns all files |
| `UVEITIS_GID` | yours | Group id that owns all files |
| `UVEITIS_DEPLOYMENT` | `uveitis` | Name of the deployment: its containers and its network |
| `WANDB_KEY_FILE` | none | File with the W&B key, copied to the secrets, where trainings find it |

`docker/compose.yaml` derives mounts and user of run containers from them: `UVEITIS_USER`, `UVEITIS_DATA_MOUNT`,
`UVEITIS_RAW_MOUNT`, `UVEITIS_STATE_MOUNT` and `UVEITIS_SECRETS_FOLDER`. Do not set these.
"""

RUN_OPTIONS = """
## Options of a run

The launchpad in the UI takes these for one run, and `dagster asset materialize` with `--config-json`, for example
`'{"ops": {"uwf700_preprocessing": {"config": {"workers": 1}}}}'`.
"""

LANE = """
## A lane: `defs/<lane>/defs.yaml`

The file names the component and its attributes:

```yaml
type: uveitis_assets.components.fundus_dataset.FundusDataset
attributes:
  name: clinic
  layout: image_folder
  folder: clinic
```

Fields in groups are nested: `roi.method` below is the field `method` under `roi:`. An unknown field, a wrong type or a
value outside its range is an error when the definitions are loaded. Shares are between 0 and 1.
"""

REFERENCE_COLOR = """
## Reference colours: `defs/reference_color/defs.yaml`

Attributes of the component `uveitis_assets.components.reference_color.ReferenceColor`, which makes the asset
`reference_color`. Only lanes with `normalize.method: reinhard_lab_ref` use it.
"""


DETECTOR_INTRODUCTION = """# Configuration of detectors and encoders

<!-- Written by docs/generate_configuration.py; change the models or the script, not this page. -->

How to use them: [train a detector](../how-to/train-a-detector.md).

## Options of a run

The launchpad in the UI takes these for one run, and `dagster asset materialize` with `--config-json`, for example
`'{"ops": {"fgadr_pretrain__checkpoint": {"config": {"processes": 4}}}}'`.
"""

DETECTOR = """
## A detector: `defs/<detector>/defs.yaml`

```yaml
type: uveitis_assets.components.lesion_detector.LesionDetector
attributes:
  name: haemorrhages
  train_on: uwf700
  predict_on: uwf700
```

Fields in groups are nested: `training.epochs` below is the field `epochs` under `training:`. An unknown field, a wrong
type or a value outside its range is an error when the definitions are loaded; whether network and numbers match
(anchors, strides, frozen blocks) is checked when the training starts. Scores, IoU, shares and probabilities are between
0 and 1.
"""

ENCODER = """
## An encoder: `defs/<encoder>/defs.yaml`

Attributes of the component `uveitis_assets.components.encoder_pretraining.EncoderPretraining`, which makes the asset
`<encoder>/encoder`.
"""


def pages() -> dict[Path, str]:
    """Text of each page."""
    return {REFERENCE / "configuration.md": _lanes(), REFERENCE / "detector-configuration.md": _detectors()}


def _detectors() -> str:
    parts = [
        DETECTOR_INTRODUCTION.rstrip(),
        "",
        *_table(TrainingRunConfig, "<detector>__checkpoint."),
        "",
        *_table(EvaluationRunConfig, "<detector>__evaluation."),
        "",
        *_table(PredictionsRunConfig, "<detector>__predictions."),
        "",
        *_table(PretrainingRunConfig, "<encoder>__encoder."),
        DETECTOR,
        *_group(DetectorLaneConfiguration, "detector."),
        ENCODER,
        *_table(EncoderPretrainingConfiguration, "encoder."),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _lanes() -> str:
    parts = [
        INTRODUCTION.rstrip(),
        RUN_OPTIONS,
        *_table(PreprocessRunConfig, "<lane>_preprocessing."),
        "",
        *_table(LabelsRunConfig, "<lane>__coco_labels."),
        LANE,
        *_group(LaneConfiguration, ""),
        REFERENCE_COLOR,
        *_table(ReferenceColorConfiguration, "reference_color."),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _group(model: type[BaseModel], prefix: str) -> list[str]:
    parts = _table(model, prefix)
    for name, field in model.model_fields.items():
        inner = _model_of(field)
        if inner:
            dotted = prefix + name
            parts += ["", f"### {HEADINGS[dotted]}: `{_shown(dotted)}`", ""]
            parts += [NOTES[dotted], ""] if dotted in NOTES else []
            parts += _group(inner, f"{dotted}.")
    return parts


def _shown(dotted: str) -> str:
    for component in COMPONENTS:
        dotted = dotted.removeprefix(component)
    return dotted


def _table(model: type[BaseModel], prefix: str) -> list[str]:
    rows = ["| field | type | default | range, unit | meaning |", "|---|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if _model_of(field):
            continue
        dotted = prefix + name
        if not field.description:
            raise SystemExit(f"{dotted} has no meaning: add a description to the model")
        meaning = "; see ".join([field.description, *([LINKS[dotted]] if dotted in LINKS else [])])
        limits = ", ".join(part for part in (_range(field), UNITS.get(dotted, "")) if part)
        choices = Literal[CHOICES[dotted]()] if dotted in CHOICES else field.annotation
        cells = (f"`{_shown(dotted)}`", _type(choices), _default(field), limits, _words(meaning))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a group of fields, also of one that may be left out."""
    candidates = [field.annotation, *get_args(field.annotation)]
    models = [found for found in candidates if isinstance(found, type) and issubclass(found, BaseModel)]
    return models[0] if models else None


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if argument is types.NoneType else _type(argument) for argument in arguments)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        inner = arguments[0]
        if get_origin(inner) is tuple:
            return f"list of lists of {_type(get_args(inner)[0])}" if Ellipsis in get_args(inner) else "list of points"
        return f"list of {_type(inner)}"
    if origin is tuple:
        return f"list of {len(arguments)} {_type(arguments[0])}s"
    if origin is dict:
        return "mapping" if arguments[1] is Any else f"mapping of text to {_type(arguments[1])}"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, bool) or value is None:
        return {True: "`true`", False: "`false`", None: "none"}[value]
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return f"{len(value)} points"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`" if value != "" else "empty"


def _range(field: FieldInfo) -> str:
    found: dict[str, Any] = {}
    for item in (*_annotated_metadata(field.annotation), *field.metadata):
        for name in ("ge", "gt", "le", "lt", "min_length", "pattern"):
            value = getattr(item, name, None)
            if value is not None:
                found[name] = value
    if "pattern" in found:
        return f"`{found['pattern']}`"
    if "min_length" in found:
        return f"at least {found['min_length']}"
    signs = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
    if "gt" in found:
        # A field's own bound is narrower than that of its type.
        found.pop("ge", None)
    if "ge" in found and "le" in found:
        return f"{found['ge']:g} to {found['le']:g}"
    return ", ".join(f"{sign} {found[name]:g}" for name, sign in signs if name in found)


def _annotated_metadata(annotation: Any) -> tuple[Any, ...]:
    return tuple(get_args(annotation)[1:]) if get_origin(annotation) is Annotated else ()


def _words(meaning: str) -> str:
    """Angle brackets outside code would be read as HTML."""
    return meaning if "`" in meaning else meaning.replace("<", "&lt;").replace(">", "&gt;")


if __name__ == "__main__":
    REFERENCE.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text)
        print(f"Wrote {path}")
