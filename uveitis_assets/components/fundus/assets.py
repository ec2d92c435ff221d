"""The assets of a fundus lane: manifest, ROI masks, normalized crops, tiles and COCO labels.

Bodies load, call the functional core and record; they import it when they run, so that loading the definitions stays
light. The three preprocessing stages are one step that can be subset: selected together they decode each image once.
"""

import time
from collections.abc import Callable, Iterator

import dagster as dg
from pydantic import Field

from uveitis_assets.components.fundus.keys import REFERENCE_COLOR, LaneKeys, fold_and_split
from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.components.fundus.metadata import label_metadata, manifest_metadata, stage_metadata
from uveitis_assets.fundus.configuration import STAGES, PreprocessStage
from uveitis_assets.orchestration.asset_factory import AssetFactory
from uveitis_assets.orchestration.materializations import UPSTREAM_EVENT_METADATA, latest_event_id
from uveitis_assets.orchestration.partition_runs import Metadata, materialize_asset, materialize_keys
from uveitis_assets.orchestration.workers import worker_count
from uveitis_assets.storage.store import ArtefactStore

MANIFEST_CODE_VERSION = "2"
PREPROCESS_CODE_VERSION = "5"
LABELS_CODE_VERSION = "3"
_MONTAGE_BATCHES = 8
_IMAGES_PER_MESSAGE = 32

_STAGE_TEXTS: dict[PreprocessStage, str] = {
    "roi_masks": "Retina region-of-interest masks, single-channel PNG in raw pixels.",
    "normalized_crops": "ROI crops and photometrically normalized crops with their metadata.",
    "tiles": "Square global images and overlapping tiles with their coordinate frames.",
}


class PreprocessRunConfig(dg.Config):
    """Launchpad options of the preprocessing step."""

    workers: int = Field(0, ge=0, le=256, description="Threads over images; 0: $UVEITIS_WORKERS or all processors")
    previews: bool = Field(True, description="Attach contact sheets to the materializations")


class LabelsRunConfig(dg.Config):
    """Launchpad options of the labels step."""

    workers: int = Field(0, ge=0, le=256, description="Threads that read labels; 0: $UVEITIS_WORKERS or all processors")
    overlays: bool = Field(True, description="Write labels_debug/ overlays and attach a contact sheet")


def lane_assets(lane: LaneConfiguration) -> list[dg.AssetsDefinition]:
    """All assets of the lane; ``coco_labels`` only where the lane has lesion labels."""
    keys, factory = LaneKeys.of(lane), AssetFactory(lane.name, lane.owners)
    assets = [_manifest(lane, keys, factory), _preprocessing(lane, keys, factory)]
    return [*assets, _coco_labels(lane, keys, factory)] if keys.has_lesion_labels else assets


def _manifest(lane: LaneConfiguration, keys: LaneKeys, factory: AssetFactory) -> dg.AssetsDefinition:
    @factory.asset(
        keys.manifest,
        partitions=keys.batches,
        kinds={"polars", "parquet"},
        code_version=MANIFEST_CODE_VERSION,
        description=f"{lane.description}\n\nOne row per landed image: identity, size, eye, labels, split, quarantine. "
        f"Exports `manifests/{lane.name}.jsonl`, `.csv`, `.parquet` and `splits/{lane.splits.name}_<fold>.json`.",
    )
    def manifest(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        from uveitis_assets.landing.manifest import build_manifest_part, export_manifest
        from uveitis_assets.landing.splits_files import write_splits_files

        store = ArtefactStore.from_environment()
        store.remove_dead_partial_files()
        reassigned_batches: set[str] = set()

        def work(batch: str) -> Metadata:
            summary = build_manifest_part(store, lane, lane.splits, batch)
            reassigned_batches.update(summary.reassigned_batches)
            for problem in summary.problems:
                context.log.warning(f"{lane.name}/manifest[{batch}]: {problem}")
            return manifest_metadata(store, lane, batch, summary)

        def export() -> None:
            reassigned_batches.update(export_manifest(store, lane, lane.splits).reassigned_batches)
            if others := sorted(reassigned_batches.difference(context.partition_keys)):
                context.log.warning(
                    f"{lane.name}/manifest: the splits changed since {', '.join(others)} were made; their images were "
                    "assigned to splits again, like those of this run"
                )
            write_splits_files(store, lane.splits.name, lane.splits.folds)

        yield from materialize_asset(context, keys.manifest, work, export)

    return manifest


def _preprocessing(lane: LaneConfiguration, keys: LaneKeys, factory: AssetFactory) -> dg.AssetsDefinition:
    @factory.step(f"{lane.name}_preprocessing", [_stage_spec(lane, keys, factory, stage) for stage in STAGES])
    def preprocessing(
        context: dg.AssetExecutionContext, config: PreprocessRunConfig
    ) -> Iterator[dg.MaterializeResult[None]]:
        from uveitis_assets.fundus.preprocess import preprocess_batch
        from uveitis_assets.fundus.verification import write_preprocess_metrics
        from uveitis_assets.landing.ledger import registered_images

        store = ArtefactStore.from_environment()
        store.remove_dead_partial_files()
        stages = [stage for stage in STAGES if keys.stage(stage) in context.selected_asset_keys]
        workers = worker_count(config.workers)

        def work(batch: str) -> dict[dg.AssetKey, Metadata]:
            outcome = preprocess_batch(
                store,
                lane.name,
                batch,
                lambda: registered_images(store, lane, batch),
                lane.preprocess,
                stages,
                workers=workers,
                code_version=PREPROCESS_CODE_VERSION,
                progress=_progress_messages(context.log.info, f"{lane.name}[{batch}]"),
            )
            previewed = registered_images(store, lane, batch) if config.previews else None
            return {
                keys.stage(stage): stage_metadata(store, lane, stage, batch, outcome, previewed=previewed)
                for stage in stages
            }

        def verify() -> None:
            write_preprocess_metrics(store, lane.name, lane.verify)
            if "roi_masks" in stages and config.previews:
                _write_montages(store, lane)

        yield from materialize_keys(context, [keys.stage(stage) for stage in stages], work, verify)

    return preprocessing


def _stage_spec(lane: LaneConfiguration, keys: LaneKeys, factory: AssetFactory, stage: PreprocessStage) -> dg.AssetSpec:
    upstream = {
        "roi_masks": keys.manifest,
        "normalized_crops": keys.stage("roi_masks"),
        "tiles": keys.stage("normalized_crops"),
    }
    uses_sam2 = any("sam2_prompted" in lane.roi.methods_for(tag) for tag in ("", *lane.roi.method_by_dataset))
    uses_model = uses_sam2 and stage == "roi_masks"
    needs_reference = lane.normalize.method == "reinhard_lab_ref" and stage == "normalized_crops"
    part = {"roi_masks": lane.roi, "normalized_crops": lane.normalize, "tiles": lane.tiling}[stage]
    return factory.spec(
        keys.stage(stage),
        deps=[upstream[stage], *([REFERENCE_COLOR] if needs_reference else [])],
        partitions=keys.batches,
        kinds={"numpy", "file", *(["pytorch"] if uses_model else [])},
        code_version=PREPROCESS_CODE_VERSION,
        description=_STAGE_TEXTS[stage],
        uses_gpu=uses_model,
        configuration=part.model_dump(mode="json", exclude=set() if uses_sam2 else {"sam2"}),
    )


def _coco_labels(lane: LaneConfiguration, keys: LaneKeys, factory: AssetFactory) -> dg.AssetsDefinition:
    @factory.asset(
        keys.coco_labels,
        deps=[
            dg.AssetDep(keys.manifest, partition_mapping=dg.AllPartitionMapping()),
            dg.AssetDep(keys.stage("tiles"), partition_mapping=dg.AllPartitionMapping()),
        ],
        partitions=keys.fold_splits,
        kinds={"python", "json"},
        code_version=LABELS_CODE_VERSION,
        configuration=lane.labels.model_dump(mode="json"),
        description="COCO label files of the global images and of the tiles, per fold and split, with overlays. "
        "Only labelled images are listed: an empty label file is a negative, a missing one is not.",
    )
    def coco_labels(context: dg.AssetExecutionContext, config: LabelsRunConfig) -> Iterator[dg.MaterializeResult[None]]:
        from uveitis_assets.components.fundus.split_labels import make_split_labels
        from uveitis_assets.labels.class_map import load_class_map
        from uveitis_assets.labels.dropped_folds import remove_dropped_folds
        from uveitis_assets.landing.manifest_table import require_parts

        store = ArtefactStore.from_environment()
        store.remove_dead_partial_files()
        # Once, before anything is written: batches that land while this runs have no part yet, and need none.
        require_parts(store, lane.name, STAGES, context.instance.get_materialized_partitions(keys.manifest))
        class_map, workers = load_class_map(), worker_count(config.workers)

        def work(partition: str) -> dict[dg.AssetKey, Metadata]:
            fold, split = fold_and_split(partition)
            # A run that waited for another one's lock reads what is there by then.
            with store.labels_lock(lane.name, split, fold):
                started = time.perf_counter()
                # Read before the inputs: what is materialized from now on is newer than these labels.
                event = latest_event_id(context.instance, [keys.manifest, keys.stage("tiles")])
                labels = make_split_labels(
                    store, lane, class_map, fold, split, workers=workers, overlays=config.overlays
                )
                duration_s = round(time.perf_counter() - started, 3)
            metadata = label_metadata(store, lane, labels, class_map.names)
            return {keys.coco_labels: {**metadata, "duration_s": duration_s, UPSTREAM_EVENT_METADATA: event}}

        def clean_up() -> None:
            if dropped := remove_dropped_folds(store, lane.name, lane.splits.folds):
                context.log.info(f"{lane.name}/coco_labels: removed the files of folds {dropped}, which are no more")

        yield from materialize_keys(context, [keys.coco_labels], work, clean_up)

    return coco_labels


def _progress_messages(log: Callable[[str], None], what: str) -> Callable[[int, int], None]:
    """Log the number of finished images from time to time."""

    def progress(done: int, total: int) -> None:
        if done == total or done % _IMAGES_PER_MESSAGE == 0:
            log(f"{what}: {done} of {total} images")

    return progress


def _write_montages(store: ArtefactStore, lane: LaneConfiguration) -> None:
    """Write the montages of mask outlines, of all batches: they must not depend on the order of runs."""
    from uveitis_assets.fundus.contact_sheet import write_roi_montages
    from uveitis_assets.landing.ledger import registered_images

    batches = store.indexed_batches(lane.name, "roi_masks")
    chosen = batches[:: -(-len(batches) // _MONTAGE_BATCHES)]
    write_roi_montages(store, lane.name, {batch: registered_images(store, lane, batch) for batch in chosen})
