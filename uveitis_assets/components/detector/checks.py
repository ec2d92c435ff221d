"""Asset checks of a detector lane: checkpoint matches its sidecar, minimum AP, all predictions.

They read the files that the assets wrote. Every partition has a result of its own.
"""

import dagster as dg

from uveitis_assets.components.detector.keys import DetectorKeys
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration
from uveitis_assets.orchestration.check_results import check_result
from uveitis_assets.orchestration.fold_keys import fold_number
from uveitis_assets.orchestration.partitioned_check import partitioned_check
from uveitis_assets.storage.store import ArtefactStore


def detector_checks(detector: DetectorLaneConfiguration, keys: DetectorKeys) -> list[dg.AssetChecksDefinition]:
    """All checks of the lane."""
    return [
        _checkpoint_integrity(detector, keys),
        _detection_quality(detector, keys),
        _prediction_sanity(detector, keys),
    ]


def _checkpoint_integrity(detector: DetectorLaneConfiguration, keys: DetectorKeys) -> dg.AssetChecksDefinition:
    def evaluate(instance: dg.DagsterInstance, partition: str) -> dg.AssetCheckResult:
        from uveitis_assets.detection.training.fold_training import inspect_checkpoint

        found = inspect_checkpoint(ArtefactStore.from_environment(), detector, fold_number(partition))
        return check_result(found.errors, found.warnings)

    return partitioned_check(
        "checkpoint_integrity",
        keys.checkpoint,
        keys.folds,
        "Weights can be read, are finite and agree with their lineage; labels that are newer than the training are a "
        "warning.",
        lambda: evaluate,
    )


def _detection_quality(detector: DetectorLaneConfiguration, keys: DetectorKeys) -> dg.AssetChecksDefinition:
    wanted = detector.verify.min_map_50

    def evaluate(instance: dg.DagsterInstance, partition: str) -> dg.AssetCheckResult:
        from uveitis_assets.detection.evaluation.fold_evaluation import reported_limits, reported_map_50

        store = ArtefactStore.from_environment()
        found = reported_map_50(store, detector, fold_number(partition))
        if found is None:
            return check_result([f"{partition}: no evaluation with ground truth; materialize evaluation first"], [])
        errors = [f"AP at IoU 0.5 is {found:.3f}, expected at least {wanted}"] if found < wanted else []
        warnings = reported_limits(store, detector, fold_number(partition))
        return check_result(errors, warnings, map_50=round(found, 4))

    return partitioned_check(
        "detection_quality",
        keys.evaluation,
        keys.folds,
        f"Image-level AP at IoU 0.5 is at least {wanted}; limits that leave out lesions or detections, and tiles "
        "unlike those that the checkpoint learned, are a warning.",
        lambda: evaluate,
    )


def _prediction_sanity(detector: DetectorLaneConfiguration, keys: DetectorKeys) -> dg.AssetChecksDefinition:
    limit = detector.verify.max_images_without_detections

    def evaluate(instance: dg.DagsterInstance, batch: str) -> dg.AssetCheckResult:
        from uveitis_assets.detection.inference.batch_predictor import inspect_predictions

        found = inspect_predictions(ArtefactStore.from_environment(), detector, batch)
        warnings = list(found.warnings)
        if found.n_images and found.n_without_detections > limit * found.n_images:
            warnings.append(f"{found.n_without_detections} of {found.n_images} images have no detection")
        return check_result(list(found.errors), warnings, n_images=found.n_images)

    return partitioned_check(
        "prediction_sanity",
        keys.predictions,
        keys.predicted.batches,
        "Every usable image of the batch has a prediction file; boxes lie inside the image, scores in 0..1, classes "
        "are known. Tiles with as many detections as a tile keeps, or unlike those that the checkpoint learned, are a "
        "warning.",
        lambda: evaluate,
    )
