"""The assets of a fundus lane: manifest, ROI masks, normalized crops, tiles and COCO labels.

Bodies load, call the functional core and record; they import it when they run, so that loading the definitions stays
light. The three preprocessing stages are one step that can be subset: selected together they decode each image once.
"""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from uveitis_assets.components.fundus.keys import LaneKeys, fold_and_split
from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.fundus.configuration import STAGES, PreprocessStage
from uveitis_assets.landing.samples import Split
from uveitis_assets.orchestration.materializations import UPSTREAM_EVENT_METADATA, latest_event_id
from uveitis_assets.orchestration.partition_runs import Metadata, MetadataEntry, materialize_asset, materialize_keys
from uveitis_assets.orchestration.pools import GPU_POOL
from uveitis_assets.orchestration.previews import format_counts, format_listing, picture
from uveitis_assets.orchestration.workers import worker_count
from uveitis_assets.storage.files import read_json
from uveitis_assets.storage.store import ArtefactStore

if TYPE_CHECKING:
    from uveitis_assets.fundus.preprocess import StageOutcome
    from uveitis_assets.landing.samples import RegisteredImage

MANIFEST_CODE_VERSION = "2"
PREPROCESS_CODE_VERSION = "3"
LABELS_CODE_VERSION = "2"
_MONTAGE_BATCHES = 8
BAD_LABELS_METADATA = "bad_labels"
MISSING_MASKS_METADATA = "missing_masks"

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
    assets = [_manifest(lane), _preprocessing(lane)]
    return assets if lane.labels.format == "none" else [*assets, _coco_labels(lane)]


def _manifest(lane: LaneConfiguration) -> dg.AssetsDefinition:
    keys = LaneKeys.of(lane)

    @dg.asset(
        key=keys.manifest,
        partitions_def=keys.batches,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=lane.name,
        owners=list(lane.owners),
        kinds={"polars", "parquet"},
        code_version=MANIFEST_CODE_VERSION,
        description=f"{lane.description}\n\nOne row per landed image: identity, size, eye, labels, split, quarantine. "
        f"Exports `manifests/{lane.name}.jsonl`, `.csv`, `.parquet` and "
        f"`splits/{lane.splits.name}_<fold>.json`.".strip(),
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
            return {
                "n_images": summary.n_images,
                "n_usable": summary.n_usable,
                "n_quarantined": summary.n_quarantined,
                "n_duplicates": summary.n_duplicates,
                "n_patients": summary.n_patients,
                "quarantine_reasons": format_counts(summary.quarantine_reasons),
                "quarantined": _quarantined(store.manifest_part(lane.name, batch)),
                "landing_problems": format_listing(landing_problems(store, lane)),
                "splits_fold0": format_counts(summary.splits),
                "label_formats": format_counts(summary.label_formats),
                "eyes": format_counts(summary.eyes),
                "path": dg.MetadataValue.path(str(store.manifest_part(lane.name, batch))),
            }

        def export() -> None:
            reassigned_batches.update(export_manifest(store, lane, lane.splits).reassigned_batches)
            if others := sorted(reassigned_batches.difference(context.partition_keys)):
                context.log.warning(
                    f"{lane.name}/manifest: the splits changed since {', '.join(others)} were made; their images were "
                    "dealt again, like those of this run"
                )
            write_splits_files(store, lane.splits.name, lane.splits.folds)

        yield from materialize_asset(context, keys.manifest, work, export)

    return manifest


def _preprocessing(lane: LaneConfiguration) -> dg.AssetsDefinition:
    keys = LaneKeys.of(lane)
    upstream = {"roi_masks": keys.manifest, "normalized_crops": keys.stage("roi_masks")}
    upstream["tiles"] = keys.stage("normalized_crops")
    uses_sam2 = _uses_sam2(lane)
    needs_reference = lane.normalize.method == "reinhard_lab_ref"

    def spec(stage: PreprocessStage) -> dg.AssetSpec:
        needs_model = uses_sam2 and stage == "roi_masks"
        deps: list[dg.AssetKey] = [upstream[stage]]
        if needs_reference and stage == "normalized_crops":
            deps.append(dg.AssetKey("reference_color"))
        return dg.AssetSpec(
            keys.stage(stage),
            deps=deps,
            partitions_def=keys.batches,
            group_name=lane.name,
            owners=list(lane.owners),
            kinds={"numpy", "file", *(["pytorch"] if needs_model else [])},
            code_version=PREPROCESS_CODE_VERSION,
            description=_STAGE_TEXTS[stage],
            tags={"uveitis/gpu": "preferred" if needs_model else "none"},
            metadata={"configuration": dg.MetadataValue.json(_configuration_of(lane, stage))},
            skippable=True,
        )

    @dg.multi_asset(
        name=f"{lane.name}_preprocessing",
        specs=[spec(stage) for stage in STAGES],
        can_subset=True,
        partitions_def=keys.batches,
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=GPU_POOL if uses_sam2 else None,
    )
    def preprocessing(
        context: dg.AssetExecutionContext, config: PreprocessRunConfig
    ) -> Iterator[dg.MaterializeResult[None]]:
        from uveitis_assets.fundus.contact_sheet import write_roi_montages
        from uveitis_assets.fundus.preprocess import preprocess_registered_batch
        from uveitis_assets.fundus.verification import write_preprocess_metrics
        from uveitis_assets.landing.ledger import registered_images

        store = ArtefactStore.from_environment()
        store.remove_dead_partial_files()
        stages = [stage for stage in STAGES if keys.stage(stage) in context.selected_asset_keys]
        workers = worker_count(config.workers)

        def work(batch: str) -> dict[dg.AssetKey, Metadata]:
            def progress(done: int, total: int) -> None:
                if done == total or done % 32 == 0:
                    context.log.info(f"{lane.name}[{batch}]: {done} of {total} images")

            outcome = preprocess_registered_batch(
                store,
                lane,
                batch,
                lane.preprocess,
                stages,
                workers=workers,
                code_version=PREPROCESS_CODE_VERSION,
                progress=progress,
            )
            images = registered_images(store, lane, batch)
            return {
                keys.stage(stage): {
                    **_stage_metadata(stage, outcome.stages[stage]),
                    "quarantined": _quarantined(store.stage_index(lane.name, stage, batch)),
                    "duration_s": round(outcome.duration_s, 3),
                    **(_preview(store, lane, stage, batch, images) if config.previews else {}),
                }
                for stage in stages
            }

        def verify() -> None:
            write_preprocess_metrics(store, lane.name, lane.verify)
            if "roi_masks" in stages and config.previews:
                # All batches and not just these: the montage must not depend on the order of runs.
                batches = store.indexed_batches(lane.name, "roi_masks")
                chosen = batches[:: -(-len(batches) // _MONTAGE_BATCHES)]
                write_roi_montages(store, lane.name, {key: registered_images(store, lane, key) for key in chosen})

        yield from materialize_keys(context, [keys.stage(stage) for stage in stages], work, verify)

    return preprocessing


def _coco_labels(lane: LaneConfiguration) -> dg.AssetsDefinition:
    keys = LaneKeys.of(lane)

    @dg.asset(
        key=keys.coco_labels,
        deps=[
            dg.AssetDep(keys.manifest, partition_mapping=dg.AllPartitionMapping()),
            dg.AssetDep(keys.stage("tiles"), partition_mapping=dg.AllPartitionMapping()),
        ],
        partitions_def=keys.fold_splits,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=lane.name,
        owners=list(lane.owners),
        kinds={"python", "json"},
        code_version=LABELS_CODE_VERSION,
        metadata={"configuration": dg.MetadataValue.json(lane.labels.model_dump(mode="json"))},
        description="COCO label files of the global images and of the tiles, per fold and split, with overlays. "
        "Only labelled images are listed: an empty label file is a negative, a missing one is not.",
    )
    def coco_labels(context: dg.AssetExecutionContext, config: LabelsRunConfig) -> Iterator[dg.MaterializeResult[None]]:
        from uveitis_assets.labels.class_map import load_class_map
        from uveitis_assets.labels.coco import build_coco_split
        from uveitis_assets.labels.coco_summary import write_coco_summary
        from uveitis_assets.labels.dropped_folds import remove_dropped_folds
        from uveitis_assets.labels.overlays import label_contact_sheet, write_label_overlays
        from uveitis_assets.landing.manifest_table import read_manifest, require_one_split_assignment, require_parts

        store = ArtefactStore.from_environment()
        store.remove_dead_partial_files()
        # Once, before anything is written: batches that land while this runs have no part yet, and need none.
        require_parts(store, lane.name, STAGES, context.instance.get_materialized_partitions(keys.manifest))
        class_map = load_class_map()
        names = class_map.names
        workers = worker_count(config.workers)

        def work(partition: str) -> dict[dg.AssetKey, Metadata]:
            fold, split = fold_and_split(partition)
            # Two runs would mix one's images with the other's tiles; who waited reads what is there by then.
            with store.labels_lock(lane.name, split, fold):
                return {keys.coco_labels: make(partition, fold, split)}

        def make(partition: str, fold: int, split: Split) -> Metadata:
            started = time.perf_counter()
            # Read before the inputs: what is materialized from now on is newer than these labels.
            upstream_event = latest_event_id(context.instance, [keys.manifest, keys.stage("tiles")])
            manifest = read_manifest(store, lane.name)
            require_one_split_assignment(lane.name, manifest)
            summary = build_coco_split(
                store,
                lane.name,
                store.raw_folder(lane.folder),
                lane.labels,
                class_map,
                fold=fold,
                split=split,
                manifest=manifest,
                workers=workers,
            )
            write_coco_summary(store, summary)
            metadata: dict[str, MetadataEntry] = {
                **summary.counts(),
                "class_counts": format_counts(
                    {names[key]: count for key, count in summary.class_counts.items() if count}
                ),
                "missing_classes": ", ".join(summary.missing_classes) or "none",
                MISSING_MASKS_METADATA: format_counts(summary.missing_masks),
                BAD_LABELS_METADATA: dg.MetadataValue.json({bad.image_id: bad.detail for bad in summary.bad_labels}),
                "not_preprocessed": format_listing(list(summary.not_preprocessed)),
                "avg_box_area_px2": round(summary.avg_box_area, 1),
                "path": dg.MetadataValue.path(str(store.coco_file(lane.name, split, fold, tiles=False))),
            }
            if config.overlays:
                write_label_overlays(store, lane.name, fold, split, lane.labels.debug_max_images)
                if summary.n_tiles and "tiles" in lane.persist:
                    sheet = label_contact_sheet(store, lane.name, fold, split)
                    metadata["preview"] = picture(sheet, f"{lane.name} {partition}: boxes on tiles")
            metadata["duration_s"] = round(time.perf_counter() - started, 3)
            metadata[UPSTREAM_EVENT_METADATA] = upstream_event
            return metadata

        def clean_up() -> None:
            if dropped := remove_dropped_folds(store, lane.name, lane.splits.folds):
                context.log.info(f"{lane.name}/coco_labels: removed the files of folds {dropped}, which are no more")

        yield from materialize_keys(context, [keys.coco_labels], work, clean_up)

    return coco_labels


def _stage_metadata(stage: PreprocessStage, outcome: "StageOutcome") -> dict[str, MetadataEntry]:
    fallbacks: dict[str, MetadataEntry] = {
        "n_fallback": sum(outcome.n_fallback.values()),
        "fallback_methods": format_counts(outcome.n_fallback),
    }
    return {
        "n_images": outcome.n_images,
        "n_done": outcome.n_done,
        "n_skipped": outcome.n_skipped,
        "n_quarantined": sum(outcome.n_quarantined.values()),
        "quarantine_reasons": format_counts(outcome.n_quarantined),
        **(fallbacks if stage == "roi_masks" else {}),
        "worker_duration_s": round(outcome.duration_s, 3),
        "written_bytes": outcome.bytes_written,
        **{name: round(value, 4) for name, value in outcome.statistics.items()},
    }


def _preview(
    store: ArtefactStore,
    lane: LaneConfiguration,
    stage: PreprocessStage,
    batch: str,
    images: "list[RegisteredImage]",
) -> dict[str, MetadataEntry]:
    from uveitis_assets.fundus.contact_sheet import normalization_contact_sheet, roi_contact_sheet

    if stage == "roi_masks":
        sheet, title = roi_contact_sheet(store, lane.name, batch, images), "mask outlines on raw images"
    elif stage == "normalized_crops":
        sheet, title = normalization_contact_sheet(store, lane.name, batch, images), "raw beside normalized crops"
    else:
        return {}
    return {} if sheet is None else {"preview": picture(sheet, f"{lane.name} {batch}: {title}")}


def _uses_sam2(lane: LaneConfiguration) -> bool:
    return any("sam2_prompted" in lane.roi.methods_for(tag) for tag in ("", *lane.roi.method_by_dataset))


def _configuration_of(lane: LaneConfiguration, stage: PreprocessStage) -> dict[str, object]:
    part = {"roi_masks": lane.roi, "normalized_crops": lane.normalize, "tiles": lane.tiling}[stage]
    return part.model_dump(mode="json", exclude=set() if _uses_sam2(lane) else {"sam2"})


def landing_problems(store: ArtefactStore, lane: LaneConfiguration) -> list[str]:
    """What the last registration could not take from the landing folder; names that name patients stay in the file."""
    path = store.landing_problems_file(lane.name)
    problems = read_json(path)["problems"] if path.exists() else []
    if lane.image_folder.identify_by_content and problems:
        reasons = Counter(problem["reason"] for problem in problems)
        return [f"{count} of {reason}, see {store.name_of(path)}" for reason, count in sorted(reasons.items())]
    return [f"{problem['path']}: {problem['reason']}: {problem['detail']}" for problem in problems]


def _quarantined(book: Path) -> dg.MarkdownMetadataValue:
    """Every quarantined image of a manifest part or a stage index with its reason and what to do about it."""
    import polars as pl

    columns = ["image_id", "quarantine_reason", "quarantine_detail"]
    rows = pl.read_parquet(book, columns=columns).drop_nulls("quarantine_reason").sort("image_id")
    return format_listing([f"{image_id}: {reason}: {detail}" for image_id, reason, detail in rows.iter_rows()])
