"""Names of a fundus lane's assets, partitions and jobs.

Other families of lanes import these names only, not the assets themselves.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import dagster as dg

from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.fundus.configuration import STAGES, PreprocessStage
from uveitis_assets.landing.samples import SPLITS, Split
from uveitis_assets.orchestration.fold_keys import fold_key, fold_keys, fold_number
from uveitis_assets.orchestration.lane_component import LaneComponent, lane_configurations

LANE_TAG = "uveitis/lane"
LABELS_TAG = "uveitis/labels"
REFERENCE_COLOR = dg.AssetKey("reference_color")


@dataclass(frozen=True)
class LaneKeys:
    """Keys of one lane, how many folds it has, and whether it has lesion labels."""

    lane: str
    n_folds: int
    has_lesion_labels: bool
    batches: dg.DynamicPartitionsDefinition
    fold_splits: dg.MultiPartitionsDefinition

    @classmethod
    def of(cls, lane: LaneConfiguration) -> "LaneKeys":
        """Keys of the configured lane."""
        return cls(
            lane.name,
            lane.splits.folds,
            lane.labels.format != "none",
            dg.DynamicPartitionsDefinition(name=f"{lane.name}_batches"),
            dg.MultiPartitionsDefinition(
                {
                    "fold": dg.StaticPartitionsDefinition(fold_keys(lane.splits.folds)),
                    "split": dg.StaticPartitionsDefinition(list(SPLITS)),
                }
            ),
        )

    @classmethod
    def of_project(cls, lanes: Iterable[LaneComponent[Any]]) -> "dict[str, LaneKeys]":
        """Keys of all fundus lanes of the project, by lane name."""
        return {name: cls.of(lane) for name, lane in lane_configurations(lanes, LaneConfiguration).items()}

    @property
    def batches_name(self) -> str:
        """Name of the dynamic partitions, one key per batch."""
        return f"{self.lane}_batches"

    @property
    def manifest(self) -> dg.AssetKey:
        return manifest_key(self.lane)

    def stage(self, stage: PreprocessStage) -> dg.AssetKey:
        return dg.AssetKey([self.lane, stage])

    @property
    def stages(self) -> tuple[dg.AssetKey, ...]:
        return tuple(self.stage(stage) for stage in STAGES)

    @property
    def coco_labels(self) -> dg.AssetKey:
        return dg.AssetKey([self.lane, "coco_labels"])

    @property
    def batch_assets(self) -> tuple[dg.AssetKey, ...]:
        """Assets partitioned by batch, upstream first."""
        return (self.manifest, *self.stages)

    @property
    def lane_job(self) -> str:
        """Job over the batch assets."""
        return f"{self.lane}_lane"

    @property
    def labels_job(self) -> str:
        return f"{self.lane}_labels"


def manifest_key(lane: str) -> dg.AssetKey:
    """Key of the manifest of a lane of this name."""
    return dg.AssetKey([lane, "manifest"])


def fold_and_split(partition: str) -> tuple[int, Split]:
    """Parts of a label partition: ``fold0|train`` -> (0, "train")."""
    fold, split_key = partition.split("|")
    return fold_number(fold), next(split for split in SPLITS if split == split_key)


def label_partition(fold: int, split: Split) -> str:
    """Key of a label partition: (0, "train") -> ``fold0|train``."""
    return f"{fold_key(fold)}|{split}"
