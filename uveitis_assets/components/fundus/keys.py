"""Names of a fundus lane's assets, partitions and jobs: the one place where they are spelt."""

from dataclasses import dataclass

import dagster as dg

from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.fundus.configuration import STAGES, PreprocessStage
from uveitis_assets.landing.samples import SPLITS, Split

LANE_TAG = "uveitis/lane"
LABELS_TAG = "uveitis/labels"


@dataclass(frozen=True)
class LaneKeys:
    """Keys of one lane."""

    lane: str
    batches: dg.DynamicPartitionsDefinition
    fold_splits: dg.MultiPartitionsDefinition

    @classmethod
    def of(cls, lane: LaneConfiguration) -> "LaneKeys":
        """Keys of the configured lane."""
        return cls(
            lane.name,
            dg.DynamicPartitionsDefinition(name=f"{lane.name}_batches"),
            dg.MultiPartitionsDefinition(
                {
                    "fold": dg.StaticPartitionsDefinition([f"fold{fold}" for fold in range(lane.splits.folds)]),
                    "split": dg.StaticPartitionsDefinition(list(SPLITS)),
                }
            ),
        )

    @property
    def batches_name(self) -> str:
        """Name of the dynamic partitions, one key per batch."""
        return f"{self.lane}_batches"

    @property
    def manifest(self) -> dg.AssetKey:
        return dg.AssetKey([self.lane, "manifest"])

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


def fold_and_split(partition: str) -> tuple[int, Split]:
    """Parts of a label partition: ``fold0|train`` -> (0, "train")."""
    fold_key, split_key = partition.split("|")
    return int(fold_key.removeprefix("fold")), next(split for split in SPLITS if split == split_key)
