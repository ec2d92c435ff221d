"""Configuration of a fundus lane: typed, range-checked models that forbid unknown fields.

Defaults are those of the earlier scripts where a comment does not name others. The models are plain pydantic, so that
the functional core can use them without Dagster; they import nothing heavy because every process that loads the
definitions loads them.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from uveitis_assets.configuration import Configuration, Owner, Ratio
from uveitis_assets.imaging.configuration import TilingConfiguration

RoiMethod = Literal["threshold", "uwf", "sam2_prompted"]
NormalizationMethod = Literal["none", "zscore_rgb", "grayworld", "clahe_luminance", "reinhard_lab_ref"]
PreprocessStage = Literal["roi_masks", "normalized_crops", "tiles"]
STAGES: tuple[PreprocessStage, ...] = ("roi_masks", "normalized_crops", "tiles")
PersistedImage = Literal["crops", "norm", "global", "tiles"]


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
    """How the retina's region of interest is found and when a mask is plausible."""

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
    min_area_ratio: Ratio = Field(0.10, description="Smallest plausible mask, share of the image")
    max_area_ratio: Ratio = Field(
        0.98, description="Largest plausible mask of `sam2_prompted`; the other methods do not look at it"
    )
    max_border_touch_ratio: Ratio = Field(
        0.55,
        description="Largest plausible mean of the four border lines of a `sam2_prompted` mask; the other methods do "
        "not look at it, because a photograph cropped inside the field of view rightly touches its borders",
    )
    sam2: Sam2Configuration = Sam2Configuration()

    @model_validator(mode="after")
    def _a_mask_can_be_plausible(self) -> Self:
        if self.min_area_ratio > self.max_area_ratio:
            raise ValueError(
                f"min_area_ratio: expected at most max_area_ratio, {self.max_area_ratio}, found {self.min_area_ratio}: "
                "no mask would be plausible"
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


class VerificationConfiguration(Configuration):
    """Limits of the asset checks."""

    min_roi_area_ratio: Ratio = Field(0.12, description="`roi_plausibility` fails for a smaller mask")
    max_roi_border_touch_ratio: Ratio = Field(
        0.55, description="`roi_plausibility` warns about a mask that covers more of the border lines"
    )
    max_reconstruction_abs_error: float = Field(1e-6, ge=0, description="Mean absolute error in grey levels")
    max_fallback_ratio: Ratio = Field(0.2, description="Share of images whose ROI came from a fallback method")
    max_quarantine_ratio: Ratio = Field(0.5, description="Share of quarantined images from which the check fails")
    sampled_images: int = Field(
        8,
        ge=0,
        description="Images of a batch whose files `roi_plausibility` and `tile_reconstruction` read; of all others "
        "they compare the sizes of the files only",
    )


class PreprocessConfiguration(Configuration):
    """Everything between a manifest row and tiles."""

    roi: RoiConfiguration = RoiConfiguration()
    normalize: NormalizationConfiguration = NormalizationConfiguration()
    tiling: TilingConfiguration = TilingConfiguration()
    verify: VerificationConfiguration = VerificationConfiguration()
    persist: tuple[PersistedImage, ...] = Field(
        ("crops", "norm", "global", "tiles"), description="Which images are written; metadata always is"
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
