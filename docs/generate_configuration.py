"""Writes docs/reference/configuration.md from the configuration models, so that the page cannot drift from the code.

    .venv/bin/python docs/generate_configuration.py

Types, ranges, defaults and meanings come from the models; units and links stand here.
It validates no defs.yaml.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from uveitis_assets.components.lane_assets import LabelsRunConfig, PreprocessRunConfig
from uveitis_assets.fundus.configuration import LaneConfiguration, ReferenceColorConfiguration

PAGE = Path(__file__).parent / "reference" / "configuration.md"

# Where a field is explained at length.
LINKS = {
    "layout": "[add a dataset](../how-to/add-a-dataset.md#choose-a-layout)",
    "roi.method": "[the methods](../explanation/design.md#regions-of-interest)",
    "normalize.method": "[the methods](../explanation/design.md#colour-normalization)",
}

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
}

HEADINGS = {
    "image_folder": "Options of the layout `image_folder`",
    "roi": "Region of interest",
    "roi.sam2": "SAM 2",
    "normalize": "Colour normalization",
    "tiling": "Global image and tiles",
    "verify": "Limits of the asset checks",
    "splits": "Splits",
    "labels": "Lesion labels",
    "automation": "Sensors and schedule",
}

INTRODUCTION = """# Configuration

<!-- Written by docs/generate_configuration.py; change the models or the script, not this page. -->

## Environment variables

| variable | default | meaning |
|---|---|---|
| `UVEITIS_DATA` | `./data` | Root of everything that is made |
| `UVEITIS_RAW` | `$UVEITIS_DATA/raw` | Root of the landing folders; only `uveitis-assets demo` ever writes there |
| `UVEITIS_WORKERS` | processors of the process | Threads over images of one run, at least 1 |
| `UVEITIS_PATIENT_KEY_FILE` | `$UVEITIS_DATA/ledger/patient_key` | Key of the patient pseudonyms, 64 hex digits |
| `UVEITIS_REAL_DATA` | `../shared/data` | Tests only: folder of real images; without it some tests are skipped |
| `UVEITIS_ACCEPT_SNAPSHOT` | none | Tests only: write the snapshot of the asset graph instead of comparing it |
| `DAGSTER_HOME` | none; `make` sets `./.dagster_home` | Folder of Dagster's database and of `dagster.yaml` |
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
value outside its range is an error when the definitions are loaded. Quantities called a share lie between 0 and 1.
"""

REFERENCE_COLOR = """
## Reference colours: `defs/reference_color/defs.yaml`

Attributes of the component `uveitis_assets.components.reference_color.ReferenceColor`, which makes the asset
`reference_color`. Only lanes with `normalize.method: reinhard_lab_ref` use it.
"""


def page() -> str:
    """Text of the page."""
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
            parts += ["", f"### {HEADINGS[prefix + name]}: `{prefix + name}`", "", *_group(inner, f"{prefix}{name}.")]
    return parts


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
        shown = dotted.removeprefix("reference_color.")
        cells = (f"`{shown}`", _type(field.annotation), _default(field), limits, _words(meaning))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


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
        return "list of points" if get_origin(inner) is tuple else f"list of {_type(inner)}"
    if origin is dict:
        return f"mapping of text to {_type(arguments[1])}"
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
    if "ge" in found and "le" in found:
        return f"{found['ge']:g} to {found['le']:g}"
    return ", ".join(f"{sign} {found[name]:g}" for name, sign in signs if name in found)


def _annotated_metadata(annotation: Any) -> tuple[Any, ...]:
    return tuple(get_args(annotation)[1:]) if get_origin(annotation) is Annotated else ()


def _words(meaning: str) -> str:
    """Angle brackets outside code would be read as HTML."""
    return meaning if "`" in meaning else meaning.replace("<", "&lt;").replace(">", "&gt;")


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    print(f"Wrote {PAGE}")
