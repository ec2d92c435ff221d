"""Configuration of the lesion labels."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from uveitis_assets.configuration import Configuration, Ratio


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
    max_marked_share: Ratio = Field(
        0.5,
        description="A mask that marks more than this share of the retina (a disc in the crop) is taken for inverted "
        "and sets its image aside; 1: none is",
    )
    edge_tolerance: Ratio = Field(
        0.005,
        description="Corners of oriented boxes outside the image by at most this share of its side are set to the "
        "edge, which label_sanity lists; a corner further out sets the image aside",
    )
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
