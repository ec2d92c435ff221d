"""Configuration of a fundus lane: everything that its defs.yaml may set."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from uveitis_assets.configuration import Owner
from uveitis_assets.fundus.configuration import (
    NormalizationConfiguration,
    PersistedImage,
    PreprocessConfiguration,
    RoiConfiguration,
    VerificationConfiguration,
)
from uveitis_assets.imaging.configuration import TilingConfiguration
from uveitis_assets.labels.configuration import LabelConfiguration
from uveitis_assets.landing.configuration import AutomationConfiguration, DatasetConfiguration, SplitConfiguration
from uveitis_assets.landing.layouts import find_layout


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
        allowed = {"none", *find_layout(self.layout).lesion_labels}
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
