"""Names of a detector lane's assets, partitions and jobs.

Other families of lanes import these names only, not the assets themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import dagster as dg

from uveitis_assets.components.fundus.keys import LaneKeys
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration
from uveitis_assets.orchestration.fold_keys import fold_keys

DETECTOR_TAG = "uveitis/detector"


@dataclass(frozen=True)
class DetectorKeys:
    """Keys of one detector lane, and of the fundus lanes that it learns from and predicts."""

    detector: str
    learned: LaneKeys
    predicted: LaneKeys
    folds: dg.StaticPartitionsDefinition

    @classmethod
    def of(cls, detector: DetectorLaneConfiguration, lanes: Mapping[str, LaneKeys]) -> "DetectorKeys":
        """Keys of the configured detector.

        Raises:
            ValueError: a lane that it names does not exist or has no lesion labels, or a fold is not there.
        """
        for field in ("train_on", "predict_on"):
            if (name := getattr(detector, field)) not in lanes:
                raise ValueError(f"{field}: found no lane {name!r}, expected one of {sorted(lanes)}")
        learned = lanes[detector.train_on]
        if not learned.has_lesion_labels:
            raise ValueError(
                f"train_on: expected a lane with lesion labels, found {learned.lane} with labels.format none"
            )
        n_folds = learned.n_folds
        absent = [fold for fold in detector.inference.folds if not 0 <= fold < n_folds]
        if absent:
            raise ValueError(
                f"inference.folds: expected folds below {n_folds} (splits.folds of {learned.lane}), found {absent}"
            )
        folds = dg.StaticPartitionsDefinition(fold_keys(n_folds))
        return cls(detector.name, learned, lanes[detector.predict_on], folds)

    @property
    def checkpoint(self) -> dg.AssetKey:
        return dg.AssetKey([self.detector, "checkpoint"])

    @property
    def evaluation(self) -> dg.AssetKey:
        return dg.AssetKey([self.detector, "evaluation"])

    @property
    def predictions(self) -> dg.AssetKey:
        return dg.AssetKey([self.detector, "predictions"])

    def predicts_from(self, configuration: DetectorLaneConfiguration) -> list[dg.AssetKey]:
        """Assets by fold that predictions need: the checkpoints and, for operating points, their evaluation."""
        operates = configuration.inference.operating_fp_per_image is not None
        return [self.checkpoint, self.evaluation] if operates else [self.checkpoint]

    @property
    def pseudo_labels(self) -> dg.AssetKey:
        return dg.AssetKey([self.detector, "pseudo_labels"])

    @property
    def training_job(self) -> str:
        """Job over checkpoint and evaluation."""
        return f"{self.detector}_training"

    @property
    def predictions_job(self) -> str:
        return f"{self.detector}_predictions"
