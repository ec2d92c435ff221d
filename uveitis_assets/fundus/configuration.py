"""Configuration of a fundus lane: typed, range-checked models that forbid unknown fields.

Defaults are those of the earlier scripts unless a comment says otherwise. The models are plain pydantic, so that the
functional core can use them without Dagster; they import nothing heavy because every process that loads the
definitions loads them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

RoiMethod = Literal["threshold", "uwf", "sam2_prompted"]
NormalizationMethod = Literal["none", "zscore_rgb", "grayworld", "clahe_luminance", "reinhard_lab_ref"]
PreprocessStage = Literal["roi_masks", "normalized_crops", "tiles"]
PersistedImage = Literal["crops", "norm", "global", "tiles"]
Layout = Literal["uwf700", "fgadr", "deepdrid", "eyepacs", "image_folder"]
Ratio = Annotated[float, Field(ge=0.0, le=1.0)]


# YAML 1.2 reads 2e-5 as a number, but PyYAML wants a point in it (2.0e-5) and hands it over as text.
_NUMBER_WITHOUT_POINT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")


class Configuration(BaseModel):
    """Base of all configuration: immutable, unknown fields and values of another type are errors.

    Strict, because ``batch_size: yes`` would be 1 otherwise, and ``'16'`` 16: nobody means that. A whole number is a
    number still. Text is never a number, save one: ``2e-5``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _as_written_in_yaml(cls, values: object) -> object:
        """Lists for tuples, which YAML and JSON do not have, and numbers that PyYAML takes for text."""
        if not isinstance(values, Mapping):
            return values
        numeric = {name for name, field in cls.model_fields.items() if _holds_numbers(field.annotation)}
        return {name: _from_yaml(value, numeric=name in numeric) for name, value in values.items()}

    def fingerprint(self) -> str:
        """16 hex digits that change when any value changes."""
        return hashlib.blake2b(self.model_dump_json().encode(), digest_size=8).hexdigest()


def _holds_numbers(annotation: Any) -> bool:
    return annotation is float or any(_holds_numbers(part) for part in get_args(annotation))


def _from_yaml(value: object, *, numeric: bool) -> object:
    if isinstance(value, list | tuple):
        return tuple(_from_yaml(part, numeric=numeric) for part in value)
    if numeric and isinstance(value, str) and _NUMBER_WITHOUT_POINT.fullmatch(value):
        return float(value)
    return value


# What Dagster takes for an owner; it refuses others later, without file and line.
_OWNER = re.compile(r"team:.+|[A-Za-z0-9_][A-Za-z0-9._%+-]*@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}", re.DOTALL)


def _owner(text: str) -> str:
    if not _OWNER.fullmatch(text):
        raise ValueError(f"expected an e-mail address or team:<name>, such as team:imaging, found {text!r}")
    return text


Owner = Annotated[str, AfterValidator(_owner)]


def _path_below(root: str, kind: str, text: str) -> str:
    path = PurePosixPath(text)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"expected a {kind} below {root} without `..`, found {text!r}")
    return text


class Sam2Configuration(Configuration):
    """Settings of the ``sam2_prompted`` ROI method."""

    model_cfg: str = Field("configs/sam2.1/sam2.1_hiera_b+.yaml", description="Hydra configuration inside sam2")
    checkpoint: str = Field(
        "models/sam2/sam2.1_hiera_base_plus.pt",
        description="Official checkpoint (root key `model`); relative paths start at $UVEITIS_DATA",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA when there is a GPU")
    batch_size: int = Field(4, ge=1, le=64, description="Images per forward pass")
    multimask_output: bool = Field(True, description="Let SAM 2 propose three masks and choose the most plausible one")
    apply_postprocessing: bool = Field(
        True, description="Build the model as sam2's own `build_sam2` does: prefer stable single masks"
    )
    points_norm: tuple[tuple[Ratio, Ratio, Annotated[int, Field(ge=0, le=1)]], ...] = Field(
        (
            (0.50, 0.50, 1),
            (0.35, 0.50, 1),
            (0.65, 0.50, 1),
            (0.50, 0.35, 1),
            (0.50, 0.65, 1),
            (0.03, 0.03, 0),
            (0.97, 0.03, 0),
            (0.03, 0.97, 0),
            (0.97, 0.97, 0),
            (0.50, 0.02, 0),
            (0.50, 0.98, 0),
        ),
        min_length=1,
        description="Prompt points: x, y as a share of width and height, label 1 retina or 0 background",
    )
    open_kernel: int = Field(
        7, ge=1, le=101, description="Diameter of the ellipse that opens the mask, at the ROI scale"
    )
    close_kernel: int = Field(
        19, ge=1, le=101, description="Diameter of the ellipse that closes the mask, at the ROI scale"
    )


class RoiConfiguration(Configuration):
    """How the retina's region of interest is found and when a mask is believed."""

    method: RoiMethod = Field("threshold", description="First method")
    method_by_dataset: dict[str, RoiMethod] = Field(
        default_factory=dict, description="Method per dataset tag, for lanes that hold several (deepdrid)"
    )
    fallback: tuple[RoiMethod, ...] = Field(
        (), description="Methods tried in this order when one fails or its mask is implausible"
    )
    downsample_max_side: int = Field(768, ge=64, le=4096, description="Longest side the methods work at, px")
    sat_threshold: int = Field(
        18, ge=0, le=255, description="`threshold` method: saturation above which a pixel is retina"
    )
    crop_pad_px: int = Field(12, ge=0, le=1024, description="Margin of the crop around the mask, raw px")
    min_area_ratio: Ratio = Field(0.10, description="Smallest believed mask, share of the image")
    max_area_ratio: Ratio = Field(
        0.98, description="Largest believed mask of `sam2_prompted`; the other methods do not look at it"
    )
    max_border_touch_ratio: Ratio = Field(
        0.55,
        description="Largest believed mean of the four border lines of a `sam2_prompted` mask; the other methods do "
        "not look at it, because a photograph cropped inside the field of view rightly touches its borders",
    )
    sam2: Sam2Configuration = Sam2Configuration()

    @model_validator(mode="after")
    def _a_mask_can_be_believed(self) -> Self:
        if self.min_area_ratio > self.max_area_ratio:
            raise ValueError(
                f"min_area_ratio: expected at most max_area_ratio, {self.max_area_ratio}, found {self.min_area_ratio}: "
                "no mask would be believed"
            )
        return self

    @model_validator(mode="after")
    def _fallbacks_are_other_methods(self) -> Self:
        tried_first = {self.method, *self.method_by_dataset.values()}
        for position, method in enumerate(self.fallback):
            if method in self.fallback[:position]:
                raise ValueError(f"fallback: expected each method once, found {method} again; remove it")
            # Where the datasets of a lane begin with several methods, each may be the fallback of another.
            if tried_first == {method}:
                raise ValueError(f"fallback: expected methods other than `method`, found {method}; remove it")
        return self

    def methods_for(self, dataset: str) -> tuple[RoiMethod, ...]:
        """The dataset's method followed by its fallbacks, each once."""
        return tuple(dict.fromkeys((self.method_by_dataset.get(dataset, self.method), *self.fallback)))


class NormalizationConfiguration(Configuration):
    """Photometric normalization; statistics come from the eroded ROI only."""

    method: NormalizationMethod = Field("zscore_rgb", description="How colours are made alike")
    stats_erode_px: int = Field(4, ge=0, le=256, description="Erosion of the ROI before statistics, px")
    zscore_clip: float = Field(
        2.5, gt=0, le=10, description="`zscore_rgb`: mean ± this many deviations are mapped to 0..255"
    )
    clahe_clip_limit: float = Field(2.0, gt=0, le=100, description="`clahe_luminance`: OpenCV's clip limit")
    clahe_grid: int = Field(8, ge=1, le=64, description="`clahe_luminance`: cells per side")


class TilingConfiguration(Configuration):
    """Global image and tiles."""

    global_size: int = Field(1024, ge=64, le=8192, description="Side of the square global image, px")
    tile_size: int = Field(768, ge=32, le=4096, description="Side of a tile, px")
    overlap: float = Field(0.25, ge=0.0, lt=0.95, description="Nominal overlap of neighbouring tiles, share of a side")
    frame: Literal["global", "native"] = Field(
        "global", description="Cut tiles from the global image (compatible) or from the crop at native resolution"
    )


class VerificationConfiguration(Configuration):
    """Limits of the asset checks."""

    min_roi_area_ratio: Ratio = Field(0.12, description="`roi_plausibility` fails for a smaller mask")
    max_roi_border_touch_ratio: Ratio = Field(
        0.55, description="`roi_plausibility` warns about a mask that covers more of the border lines"
    )
    max_reconstruction_abs_error: float = Field(1e-6, ge=0, description="Mean absolute error in grey levels")
    max_fallback_ratio: Ratio = Field(0.2, description="Share of images whose ROI came from a fallback method")
    max_quarantine_ratio: Ratio = Field(0.5, description="Share of quarantined images from which the check fails")


class PreprocessConfiguration(Configuration):
    """Everything between a manifest row and tiles."""

    roi: RoiConfiguration = RoiConfiguration()
    normalize: NormalizationConfiguration = NormalizationConfiguration()
    tiling: TilingConfiguration = TilingConfiguration()
    verify: VerificationConfiguration = VerificationConfiguration()
    persist: tuple[PersistedImage, ...] = Field(
        ("crops", "norm", "global", "tiles"), description="Which images are written; metadata always is"
    )


class SplitConfiguration(Configuration):
    """Patient-level splits by a keyed hash: an image keeps its side when others land."""

    name: str = Field(
        "stage0",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$",
        description="Lanes with the same name share the files `splits/<name>_<fold>.json`",
    )
    seed: int = Field(42, description="Seed of the hash that deals patients into splits")
    test_ratio: float = Field(0.15, ge=0.0, lt=1.0, description="Share of the patients in test, in every fold")
    folds: int = Field(5, ge=2, le=20, description="Folds over the patients outside test")
    use_official: bool = Field(True, description="Respect the dataset's own train/val/test in every fold")
    pinned: str | None = Field(
        None,
        description="Existing splits file to keep, relative to $UVEITIS_DATA; `{fold}` in it is replaced, without it "
        "the file holds for every fold",
    )

    @field_validator("pinned")
    @classmethod
    def _pinned_stays_below_data(cls, pinned: str | None) -> str | None:
        if pinned is None:
            return None
        wrong = re.search(r"\{[^{}]*\}?|\}", pinned.replace("{fold}", ""))
        if wrong:
            raise ValueError(f"expected no placeholder but {{fold}}, found {wrong.group()} in {pinned!r}")
        return _path_below("$UVEITIS_DATA", "file", pinned)


class LabelConfiguration(Configuration):
    """Lesion labels of a lane."""

    format: Literal["obb", "mask", "none"] = Field("none", description="none: the lane has no lesion labels")
    classes: tuple[str, ...] = Field(
        (), description="Label-space policy: names of categories or policies (main9, vascularite) kept; empty keeps all"
    )
    label_classes: dict[str, str] = Field(
        default_factory=dict,
        description="Label class (number in the OBB files, folder of the masks) -> category name; empty: uwf700's map "
        "for obb, fgadr's for mask",
    )
    missing_masks: Literal["warn", "no_lesion", "leave_out"] = Field(
        "warn",
        description="An image that lacks the mask file of some lesion folder of the lane: it has no such lesion and "
        "label_sanity warns; it has none, as in datasets that publish no empty masks; or it is left out",
    )
    min_component_area: int = Field(12, ge=1, description="Smallest lesion component of a mask, raw px")
    min_tile_box_ratio: Ratio = Field(0.2, description="Smallest share of a box inside a tile to be kept there")
    large_lesion_tile_cover: Ratio = Field(
        0.2,
        description="A box that the ratio rule would drop is kept, clipped, where it covers at least this share of "
        "the tile: lesions larger than a tile do not vanish",
    )
    debug_max_images: int = Field(80, ge=0, description="Overlays per split")

    @model_validator(mode="after")
    def _classes_are_known(self) -> Self:
        if self.format != "none":
            from uveitis_assets.labels.class_map import load_class_map

            load_class_map().label_space(self.format, classes=self.classes, label_classes=self.label_classes)
        return self

    @model_validator(mode="after")
    def _box_files_have_class_numbers(self) -> Self:
        wrong = [name for name in self.label_classes if not re.fullmatch("[0-9]+", name)]
        if self.format == "obb" and wrong:
            raise ValueError(
                f"label_classes: expected the class numbers of the box files, such as '1', found {', '.join(wrong)}"
            )
        return self


class ImageFolderConfiguration(Configuration):
    """Options of the generic ``image_folder`` layout."""

    csv: str | None = Field(None, description="CSV below the dataset folder")
    path_column: str = Field(
        "image", description="Column with the image's path below the dataset folder, its file name or its stem"
    )
    patient_column: str | None = Field(
        None, description="Column with the patient id; without it every image is its own patient"
    )
    eye_column: str | None = Field(None, description="Column with the eye: `left`, `right`, `OS`, `OD`, `L`, `R`")
    grade_column: str | None = Field(None, description="Column with a grade, a whole number from 0 to 99")
    identify_by_content: bool = Field(
        False, description="File names name patients: image ids come from the content hash instead of the file name"
    )

    @field_validator("csv")
    @classmethod
    def _csv_stays_below_the_folder(cls, csv: str | None) -> str | None:
        return None if csv is None else _path_below("the dataset folder", "CSV file", csv)

    @model_validator(mode="after")
    def _columns_need_a_csv(self) -> Self:
        columns = {
            name: value
            for name, value in self.model_dump().items()
            if name.endswith("_column") and value != type(self).model_fields[name].default
        }
        if self.csv is None and columns:
            raise ValueError(
                f"{' and '.join(columns)} name columns of a CSV file: expected `csv`, found none; without it every "
                "image would be a patient of its own"
            )
        return self


class DatasetConfiguration(Configuration):
    """One landing folder and how it is read."""

    name: str = Field(
        pattern=r"^[a-z0-9]+(_[a-z0-9]+)*$", max_length=64, description="Lane name: key prefix and file names"
    )
    layout: Layout = Field(description="How the folder is read")
    folder: str = Field(description="Folder below $UVEITIS_RAW")
    batch_size: int = Field(256, ge=1, le=4096, description="Images per partition at most")
    image_folder: ImageFolderConfiguration = ImageFolderConfiguration()

    @property
    def dataset_tags(self) -> tuple[str, ...]:
        """What the lane's image ids begin with: its name, or one tag per kind of photograph."""
        return (f"{self.name}_regular", f"{self.name}_uwf") if self.layout == "deepdrid" else (self.name,)

    @field_validator("folder")
    @classmethod
    def _folder_stays_below_raw(cls, folder: str) -> str:
        return _path_below("$UVEITIS_RAW", "folder", folder)

    @model_validator(mode="after")
    def _image_folder_options_need_their_layout(self) -> Self:
        if self.layout != "image_folder" and self.image_folder != ImageFolderConfiguration():
            raise ValueError(f"image_folder options need `layout: image_folder`, found layout {self.layout}")
        return self


class AutomationConfiguration(Configuration):
    """What runs by itself while a daemon is up."""

    landing_sensor: Literal["running", "stopped"] = Field("running", description="State the landing sensor starts in")
    landing_interval_s: int = Field(30, ge=1, le=86400, description="Seconds between looks at the landing folder")
    labels_sensor: Literal["running", "stopped"] = Field("running", description="State the labels sensor starts in")
    labels_interval_s: int = Field(30, ge=1, le=86400, description="Seconds between comparisons of tiles and labels")
    fill_schedule: Literal["running", "stopped"] = Field("running", description="State the nightly schedule starts in")
    fill_cron: str = Field("0 2 * * *", description="When missing partitions are filled, cron syntax")
    timezone: str = Field("UTC", description="Time zone of fill_cron")
    max_batches_per_run: int = Field(16, ge=1, le=500, description="Longest partition range of one automatic run")

    @field_validator("timezone")
    @classmethod
    def _timezone_exists(cls, timezone: str) -> str:
        try:
            ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError(f"expected a time zone such as Europe/Paris, found {timezone!r}") from error
        return timezone


_LABEL_FORMAT_OF_LAYOUT: dict[Layout, tuple[str, ...]] = {"uwf700": ("obb",), "fgadr": ("mask",)}


class LaneConfiguration(DatasetConfiguration):
    """A fundus lane: the attributes of a defs.yaml."""

    description: str = Field("", description="One sentence about the dataset, shown in the UI")
    owners: tuple[Owner, ...] = Field(("team:imaging",), description="E-mail addresses or team:<name>")
    roi: RoiConfiguration = RoiConfiguration()
    normalize: NormalizationConfiguration = NormalizationConfiguration()
    tiling: TilingConfiguration = TilingConfiguration()
    verify: VerificationConfiguration = VerificationConfiguration()
    persist: tuple[PersistedImage, ...] = Field(
        PreprocessConfiguration.model_fields["persist"].default,
        description="Which images are written; metadata, masks and indexes always are. Files of a kind left out later "
        "stay until their image is processed again",
    )
    splits: SplitConfiguration = SplitConfiguration()
    labels: LabelConfiguration = LabelConfiguration()
    automation: AutomationConfiguration = AutomationConfiguration()

    @model_validator(mode="after")
    def _layout_has_these_labels(self) -> Self:
        allowed = {"none", *_LABEL_FORMAT_OF_LAYOUT.get(self.layout, ())}
        if self.labels.format not in allowed:
            raise ValueError(
                f"labels.format: layout {self.layout} has {' or '.join(sorted(allowed))}, found {self.labels.format}"
            )
        return self

    @model_validator(mode="after")
    def _method_by_dataset_names_tags_of_the_lane(self) -> Self:
        unknown = sorted(set(self.roi.method_by_dataset) - set(self.dataset_tags))
        if unknown:
            raise ValueError(
                f"roi.method_by_dataset: expected dataset tags of the lane ({', '.join(self.dataset_tags)}), found "
                f"{', '.join(unknown)}"
            )
        return self

    @property
    def preprocess(self) -> PreprocessConfiguration:
        """The part that the preprocessing stages see."""
        return PreprocessConfiguration(
            roi=self.roi, normalize=self.normalize, tiling=self.tiling, verify=self.verify, persist=self.persist
        )


class ReferenceColorConfiguration(Configuration):
    """Which regular fundus images give the reference colours of Reinhard normalization."""

    lanes: tuple[str, ...] = Field(("deepdrid", "eyepacs", "fgadr"), min_length=1, description="Lanes to sample")
    datasets: tuple[str, ...] = Field(
        ("deepdrid_regular", "eyepacs", "fgadr"), min_length=1, description="Dataset tags to sample"
    )
    owners: tuple[Owner, ...] = Field(("team:imaging",), description="E-mail addresses or team:<name>")
    per_dataset: int = Field(50, ge=1, description="Images sampled of each dataset tag")
    max_images: int = Field(0, ge=0, description="Images altogether at most; 0 sets no limit")
    downsample_max_side: int = Field(512, ge=64, le=4096, description="Longest side that images are shrunk to, px")
    pixels_per_image: int = Field(20000, ge=100, description="Pixels sampled of each image")
    stats_erode_px: int = Field(4, ge=0, le=256, description="Erosion of the ROI before statistics")
