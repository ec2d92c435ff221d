"""Assets of a detector lane: checkpoint and evaluation by fold, predictions by batch.

The batches are those of the lane that it predicts. Bodies load, call the functional core and record; they import it
when they run, so that loading the definitions stays light.
"""

from collections.abc import Iterator
from typing import Any, Literal

import dagster as dg
from pydantic import Field

from uveitis_assets.components.detector.keys import DetectorKeys
from uveitis_assets.detection.lane_configuration import DetectorLaneConfiguration
from uveitis_assets.orchestration.asset_factory import AssetFactory
from uveitis_assets.orchestration.fold_keys import fold_key, fold_number
from uveitis_assets.orchestration.materializations import UPSTREAM_EVENT_METADATA, newest_events
from uveitis_assets.orchestration.partition_runs import Metadata, materialize_asset
from uveitis_assets.orchestration.previews import format_listing, picture
from uveitis_assets.storage.store import ArtefactStore
from uveitis_assets.training.device import Device

CHECKPOINT_CODE_VERSION = "4"
EVALUATION_CODE_VERSION = "4"
PREDICTIONS_CODE_VERSION = "2"
PSEUDO_LABELS_CODE_VERSION = "1"


class TrainingRunConfig(dg.Config):
    """Launchpad options of a training."""

    device: Device = Field("auto", description="auto: the GPUs when there are any, else the CPU")
    processes: int = Field(1, ge=1, le=64, description="Processes that train together, one per GPU (torchrun, DDP)")
    overrides: dict[str, Any] = Field(
        default_factory=dict,
        description='Changes to the configuration of defs.yaml for this run, e.g. {"training": {"epochs": 2}}; '
        "they are written into the run's config.yaml",
    )


class EvaluationRunConfig(dg.Config):
    """Launchpad options of an evaluation."""

    device: Device = Field("auto", description="auto: the GPU when there is one, else the CPU")
    split: Literal["val", "test"] = Field("val", description="Which images of the fold are evaluated")


class PredictionsRunConfig(dg.Config):
    """Launchpad options of predictions."""

    device: Device = Field("auto", description="auto: the GPU when there is one, else the CPU")


def detector_assets(
    detector: DetectorLaneConfiguration, keys: DetectorKeys, learned_from: list[dg.AssetDep]
) -> list[dg.AssetsDefinition]:
    """All assets of the lane.

    ``learned_from`` are the assets beside the labels that a training begins with.
    """
    factory = AssetFactory(detector.name, detector.owners)
    assets = [
        _checkpoint(detector, keys, factory, learned_from),
        _evaluation(detector, keys, factory),
        _predictions(detector, keys, factory),
    ]
    return assets if detector.pseudo_labels is None else [*assets, _pseudo_labels(detector, keys, factory)]


def _checkpoint(
    detector: DetectorLaneConfiguration, keys: DetectorKeys, factory: AssetFactory, learned_from: list[dg.AssetDep]
) -> dg.AssetsDefinition:
    @factory.asset(
        keys.checkpoint,
        deps=[_labels_of_fold(keys), *learned_from],
        partitions=keys.folds,
        kinds={"pytorch"},
        code_version=CHECKPOINT_CODE_VERSION,
        uses_gpu=True,
        trains=True,
        configuration=detector.model_dump(mode="json"),
        description=f"{detector.description}\n\nWeights of the best and the last epoch under `runs/{detector.name}/` "
        "(fold k > 0 below `fold<k>/`), with configuration, metrics and lineage. A killed training is continued where "
        "it stopped.",
    )
    def checkpoint(
        context: dg.AssetExecutionContext, config: TrainingRunConfig
    ) -> Iterator[dg.MaterializeResult[None]]:
        from uveitis_assets.detection.training.fold_training import train_fold

        store = ArtefactStore.from_environment()
        configured = detector.overridden(config.overrides)

        def work(partition: str) -> Metadata:
            trained = train_fold(
                store,
                configured,
                fold_number(partition),
                device=config.device,
                processes=config.processes,
                log=lambda line: context.log.info(f"{detector.name}/checkpoint[{partition}]: {line}"),
            )
            return {
                **trained.numbers,
                "initialised_from": trained.initialised_from,
                "device": trained.device,
                **({} if trained.tiles is None else {"tiles": trained.tiles}),
                "curves": picture(trained.curves_jpeg, f"{detector.name} {partition}: loss and AP"),
                "path": dg.MetadataValue.path(str(trained.best_weights)),
            }

        yield from materialize_asset(context, keys.checkpoint, work)

    return checkpoint


def _evaluation(detector: DetectorLaneConfiguration, keys: DetectorKeys, factory: AssetFactory) -> dg.AssetsDefinition:
    @factory.asset(
        keys.evaluation,
        deps=[
            dg.AssetDep(keys.checkpoint, partition_mapping=dg.IdentityPartitionMapping()),
            _labels_of_fold(keys),
        ],
        partitions=keys.folds,
        kinds={"pytorch", "json"},
        code_version=EVALUATION_CODE_VERSION,
        uses_gpu=True,
        description="The best checkpoint on images it did not learn from: AP, FROC with bootstrap intervals over "
        "patients, confusion of classes; `val_report.json` and figures.",
    )
    def evaluation(
        context: dg.AssetExecutionContext, config: EvaluationRunConfig
    ) -> Iterator[dg.MaterializeResult[None]]:
        from uveitis_assets.detection.evaluation.fold_evaluation import evaluate_fold

        store = ArtefactStore.from_environment()

        def work(partition: str) -> Metadata:
            found = evaluate_fold(store, detector, fold_number(partition), split=config.split, device=config.device)
            title = f"{detector.name} {partition}"
            return {
                **found.numbers,
                "split": found.split,
                "tiles": found.tiles,
                **({"limits": dg.MetadataValue.json(list(found.limits))} if found.limits else {}),
                "per_class": dg.MetadataValue.md(found.per_class_table),
                **{name: picture(jpeg, f"{title}: {name}") for name, jpeg in found.pictures.items()},
                "path": dg.MetadataValue.path(str(found.report)),
            }

        yield from materialize_asset(context, keys.evaluation, work)

    return evaluation


def _predictions(detector: DetectorLaneConfiguration, keys: DetectorKeys, factory: AssetFactory) -> dg.AssetsDefinition:
    chosen = [fold_key(fold) for fold in detector.inference.folds]
    tiles = keys.predicted.stage("tiles")

    @factory.asset(
        keys.predictions,
        deps=[
            dg.AssetDep(tiles, partition_mapping=dg.IdentityPartitionMapping()),
            *(
                dg.AssetDep(key, partition_mapping=dg.SpecificPartitionsPartitionMapping(chosen))
                for key in keys.predicts_from(detector)
            ),
        ],
        partitions=keys.predicted.batches,
        kinds={"pytorch", "json"},
        code_version=PREDICTIONS_CODE_VERSION,
        uses_gpu=True,
        description=f"Lesions of every usable image of a batch by the checkpoints of {', '.join(chosen)}: "
        f"`preds/{detector.name}/` in pixels of the global image and of the source image, overlays and heat maps in "
        f"`preds_vis/{detector.name}/`.",
    )
    def predictions(
        context: dg.AssetExecutionContext, config: PredictionsRunConfig
    ) -> Iterator[dg.MaterializeResult[None]]:
        from uveitis_assets.detection.inference.batch_predictor import BatchPredictor

        store = ArtefactStore.from_environment()
        store.remove_dead_partial_files()
        predictor = BatchPredictor(store, detector, device=config.device, code_version=PREDICTIONS_CODE_VERSION)

        def work(batch: str) -> Metadata:
            # Read before the tiles: what is materialized from now on is newer than these predictions.
            upstream_event = newest_events(context.instance, tiles, [batch]).get(batch, 0)
            predicted = predictor.predict(batch)
            for finding in predicted.tile_findings:
                context.log.warning(f"{detector.name}/predictions[{batch}]: {finding}")
            metadata: dict[str, Any] = {
                **predicted.numbers,
                "repaired": format_listing(predicted.repaired),
                **({} if predicted.index_finding is None else {"index_finding": predicted.index_finding}),
                "detections_per_class": dg.MetadataValue.json(predicted.detections_per_class),
                "checkpoints": ", ".join(predicted.checkpoints),
                "device": predicted.device,
                **({} if predicted.tiles is None else {"tiles": predicted.tiles}),
                **({"tile_findings": format_listing(predicted.tile_findings)} if predicted.tile_findings else {}),
                "path": dg.MetadataValue.path(str(predicted.index)),
                UPSTREAM_EVENT_METADATA: upstream_event,
            }
            if predicted.contact_sheet is not None:
                metadata["preview"] = picture(predicted.contact_sheet, f"{detector.name} {batch}: predictions")
            return metadata

        yield from materialize_asset(context, keys.predictions, work)

    return predictions


def _pseudo_labels(
    detector: DetectorLaneConfiguration, keys: DetectorKeys, factory: AssetFactory
) -> dg.AssetsDefinition:
    chosen = [fold_key(fold) for fold in detector.inference.folds]

    @factory.asset(
        keys.pseudo_labels,
        deps=[
            dg.AssetDep(keys.predictions, partition_mapping=dg.AllPartitionMapping()),
            dg.AssetDep(keys.learned.coco_labels, partition_mapping=dg.AllPartitionMapping()),
        ],
        partitions=dg.StaticPartitionsDefinition(chosen),
        kinds={"python", "json"},
        code_version=PSEUDO_LABELS_CODE_VERSION,
        description="The fold's training labels with confident detections as pseudo-labels, without duplicates and "
        f"never on its val and test images: `labels_coco/pseudo/{detector.name}/`.",
    )
    def pseudo_labels(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        from uveitis_assets.detection.pseudo_labels.fold import expand_fold

        store = ArtefactStore.from_environment()

        def work(partition: str) -> Metadata:
            expanded = expand_fold(store, detector, fold_number(partition))
            return {**expanded.numbers, "path": dg.MetadataValue.path(str(expanded.path))}

        yield from materialize_asset(context, keys.pseudo_labels, work)

    return pseudo_labels


def _labels_of_fold(keys: DetectorKeys) -> dg.AssetDep:
    """The COCO files of all splits of the same fold."""
    return dg.AssetDep(keys.learned.coco_labels, partition_mapping=dg.MultiToSingleDimensionPartitionMapping("fold"))
