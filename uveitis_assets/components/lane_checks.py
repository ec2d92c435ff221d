"""Asset checks of a fundus lane: manifest integrity, ROI plausibility, tile reconstruction, label sanity.

They read the books that the assets wrote, not pixels. In a run over several partitions one result covers them all.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import dagster as dg

from uveitis_assets.components.lane_assets import BAD_LABELS_METADATA, landing_problems
from uveitis_assets.components.lane_keys import LaneKeys
from uveitis_assets.fundus.configuration import LaneConfiguration, PreprocessStage
from uveitis_assets.storage import ArtefactStore, artefact_key

_SHOWN = 300


def lane_checks(lane: LaneConfiguration) -> list[dg.AssetChecksDefinition]:
    """All checks of the lane."""
    checks = [_manifest_integrity(lane), _roi_plausibility(lane), _tile_reconstruction(lane)]
    return checks if lane.labels.format == "none" else [*checks, _label_sanity(lane)]


def _manifest_integrity(lane: LaneConfiguration) -> dg.AssetChecksDefinition:
    keys = LaneKeys.of(lane)

    @dg.asset_check(
        asset=keys.manifest,
        partitions_def=keys.batches,
        description="Rows are unique, agree with the ledger and few are quarantined; quarantined images and what could "
        "not be taken from the landing folder are listed.",
    )
    def manifest_integrity(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        import polars as pl

        from uveitis_assets.fundus.ledger import registered_images

        store = ArtefactStore.from_environment()
        errors: list[str] = []
        quarantined: list[str] = []
        n_images = 0
        for batch in context.partition_keys:
            part = pl.read_parquet(store.manifest_part(lane.name, batch))
            n_images += part.height
            listed = part["image_id"].to_list()
            registered = {image.image_id for image in registered_images(store, lane, batch)}
            errors += [
                f"{batch}: {name} is listed twice" for name in sorted({n for n in listed if listed.count(n) > 1})
            ]
            errors += [f"{batch}: {name} is registered but not listed" for name in sorted(registered - set(listed))]
            errors += [f"{batch}: {name} is listed but not registered" for name in sorted(set(listed) - registered)]
            usable = part.filter(pl.col("quarantine_reason").is_null())
            sizeless = usable.filter((pl.col("width") <= 0) | (pl.col("height") <= 0))["image_id"].to_list()
            errors += [f"{batch}: {name} has no size" for name in sizeless]
            set_aside = part.filter(pl.col("quarantine_reason").is_not_null()).sort("image_id")
            for row in set_aside.iter_rows(named=True):
                quarantined.append(f"{row['image_id']}: {row['quarantine_reason']}: {row['quarantine_detail']}")
        if len(quarantined) > lane.verify.max_quarantine_ratio * max(n_images, 1):
            errors.append(
                f"{len(quarantined)} of {n_images} images are quarantined, more than the share "
                f"{lane.verify.max_quarantine_ratio} of `verify.max_quarantine_ratio`"
            )
        warnings = [*quarantined, *(f"landing folder: {problem}" for problem in landing_problems(store, lane))]
        return _result(errors, warnings, n_images=n_images, n_quarantined=len(quarantined))

    return manifest_integrity


def _roi_plausibility(lane: LaneConfiguration) -> dg.AssetChecksDefinition:
    keys = LaneKeys.of(lane)
    limits = lane.verify

    @dg.asset_check(
        asset=keys.stage("roi_masks"),
        partitions_def=keys.batches,
        description=f"Masks cover at least {limits.min_roi_area_ratio:.0%} of the image; border touch, fallbacks and "
        "quarantined images are listed.",
    )
    def roi_plausibility(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        errors: list[str] = []
        warnings: list[str] = []
        n_images = n_fallback = 0
        for row in _stage_rows(lane, "roi_masks", context.partition_keys):
            if row["quarantine_reason"] is not None:
                warnings.append(f"{row['image_id']}: {row['quarantine_reason']}: {row['quarantine_detail']}")
                continue
            n_images += 1
            if row["area_ratio"] < limits.min_roi_area_ratio:
                errors.append(
                    f"{row['image_id']}: area ratio {row['area_ratio']:.3f}, expected at least "
                    f"{limits.min_roi_area_ratio}"
                )
            if row["border_touch_ratio"] > limits.max_roi_border_touch_ratio:
                warnings.append(
                    f"{row['image_id']}: border touch {row['border_touch_ratio']:.3f}, expected at most "
                    f"{limits.max_roi_border_touch_ratio}"
                )
            if row["fallbacks"]:
                n_fallback += 1
                warnings.append(f"{row['image_id']}: mask by {row['method']} after {'; '.join(row['fallbacks'])}")
        if n_fallback > limits.max_fallback_ratio * max(n_images, 1):
            errors.append(
                f"{n_fallback} of {n_images} masks come from a fallback method, more than the share "
                f"{limits.max_fallback_ratio} of `verify.max_fallback_ratio`"
            )
        return _result(errors, warnings, n_images=n_images, n_fallback=n_fallback)

    return roi_plausibility


def _tile_reconstruction(lane: LaneConfiguration) -> dg.AssetChecksDefinition:
    keys = LaneKeys.of(lane)
    limit = lane.verify.max_reconstruction_abs_error

    @dg.asset_check(
        asset=keys.stage("tiles"),
        partitions_def=keys.batches,
        description="Tiles put together give the image they were cut from, and their files are there.",
    )
    def tile_reconstruction(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        store = ArtefactStore.from_environment()
        errors: list[str] = []
        n_images = 0
        largest_error = 0.0
        for row in _stage_rows(lane, "tiles", context.partition_keys):
            if row["quarantine_reason"] is not None:
                continue
            n_images += 1
            largest_error = max(largest_error, row["reconstruction_abs_error"])
            if row["reconstruction_abs_error"] > limit:
                errors.append(
                    f"{row['image_id']}: mean absolute error {row['reconstruction_abs_error']:.3g} grey levels, "
                    f"expected at most {limit}"
                )
            if "tiles" in lane.persist:
                key = artefact_key(row["image_id"])
                missing = [n for n in range(row["n_tiles"]) if not store.tile(key, f"tile_{n:03d}").is_file()]
                errors += [f"{row['image_id']}: tile_{n:03d} has no file" for n in missing]
        return _result(errors, [], n_images=n_images, max_reconstruction_abs_error=largest_error)

    return tile_reconstruction


def _label_sanity(lane: LaneConfiguration) -> dg.AssetChecksDefinition:
    keys = LaneKeys.of(lane)
    label_format = lane.labels.format
    assert label_format != "none", "lane_checks leaves lanes without lesion labels out"

    @dg.asset_check(
        asset=keys.coco_labels,
        partitions_def=keys.fold_splits,
        description="Boxes lie inside their images, classes are known, patients are disjoint across splits; classes "
        "that a split lacks and label files that were set aside are warnings.",
    )
    def label_sanity(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        from uveitis_assets.fundus.landed import SPLITS, Split
        from uveitis_assets.fundus.manifest import read_manifest
        from uveitis_assets.labels.class_map import load_class_map
        from uveitis_assets.labels.sanity import check_fold

        store = ArtefactStore.from_environment()
        manifest = read_manifest(store, lane.name)
        errors: list[str] = []
        warnings: list[str] = []
        splits_of_fold: dict[int, list[Split]] = {}
        for key in context.partition_keys:
            fold_key, split_key = key.split("|")
            chosen = splits_of_fold.setdefault(int(fold_key.removeprefix("fold")), [])
            chosen += [split for split in SPLITS if split == split_key]
        label_space = load_class_map().label_space(
            label_format, classes=lane.labels.classes, label_classes=lane.labels.label_classes
        )
        for fold, splits in sorted(splits_of_fold.items()):
            findings = check_fold(
                store, lane.name, fold, manifest, splits, persisted=lane.persist, reachable=label_space.reachable
            )
            for finding in findings:
                (errors if finding.severity == "ERROR" else warnings).append(f"fold {fold}: {finding.message}")
        warnings += _left_out(context.instance, keys, context.partition_keys)
        return _result(errors, warnings, n_folds=len(splits_of_fold))

    return label_sanity


def _left_out(instance: dg.DagsterInstance, keys: LaneKeys, partitions: Sequence[str]) -> list[str]:
    """Images that the newest labels leave out: label files that cannot be believed, images without tiles."""
    lines: dict[str, None] = {}
    for partition in partitions:
        newest = dg.AssetRecordsFilter(keys.coco_labels, asset_partitions=[partition])
        for record in instance.fetch_materializations(newest, limit=1).records:
            metadata = record.asset_materialization.metadata if record.asset_materialization else {}
            bad_labels = metadata.get(BAD_LABELS_METADATA)
            if isinstance(bad_labels, dg.JsonMetadataValue) and isinstance(bad_labels.data, dict):
                lines |= {f"{image_id}: {detail}": None for image_id, detail in bad_labels.data.items()}
            waiting = metadata.get("n_not_preprocessed")
            if waiting is not None and waiting.value:
                lines[f"{partition}: {waiting.value} labelled images have no tiles of their registered content"] = None
    return list(lines)


def _stage_rows(lane: LaneConfiguration, stage: PreprocessStage, batches: Iterable[str]) -> Iterable[dict[str, Any]]:
    from uveitis_assets.fundus.stage_index import read_stage_index

    store = ArtefactStore.from_environment()
    for batch in batches:
        yield from read_stage_index(store.stage_index(lane.name, stage, batch)).values()


def _result(errors: list[str], warnings: list[str], **numbers: float) -> dg.AssetCheckResult:
    """Failed with ERROR for errors, failed with WARN for warnings alone."""
    lines = [*(f"ERROR: {line}" for line in errors), *(f"WARN: {line}" for line in warnings)]
    shown = [*lines[:_SHOWN], *([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])]
    return dg.AssetCheckResult(
        passed=not lines,
        severity=dg.AssetCheckSeverity.ERROR if errors or not warnings else dg.AssetCheckSeverity.WARN,
        description=f"{len(errors)} errors, {len(warnings)} warnings" if lines else None,
        metadata={
            **numbers,
            "n_errors": len(errors),
            "n_warnings": len(warnings),
            "findings": dg.MetadataValue.md("\n".join(f"- {line}" for line in shown) or "none"),
        },
    )
