"""Asset checks of a fundus lane: manifest integrity, ROI plausibility, tiles, label sanity.

They read the tables that the assets wrote, and the pixels of some images. Every partition has a result of its own.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg

from uveitis_assets.components.fundus.keys import LaneKeys, fold_and_split
from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.components.fundus.manifest_check import manifest_integrity
from uveitis_assets.components.fundus.metadata import (
    BAD_LABELS_METADATA,
    LABEL_FINDINGS_METADATA,
    MISSING_MASKS_METADATA,
)
from uveitis_assets.fundus.configuration import PreprocessStage
from uveitis_assets.messages import count_of, enumeration
from uveitis_assets.orchestration.check_results import check_result, not_materialized
from uveitis_assets.orchestration.partitioned_check import Evaluate, partitioned_check
from uveitis_assets.storage.store import ArtefactStore, artefact_key


def lane_checks(lane: LaneConfiguration) -> list[dg.AssetChecksDefinition]:
    """All checks of the lane."""
    checks = [manifest_integrity(lane), _roi_plausibility(lane), _channel_signal(lane), _tile_reconstruction(lane)]
    return [*checks, _label_sanity(lane)] if LaneKeys.of(lane).has_lesion_labels else checks


def _roi_plausibility(lane: LaneConfiguration) -> dg.AssetChecksDefinition:
    keys = LaneKeys.of(lane)
    limits = lane.verify
    return partitioned_check(
        "roi_plausibility",
        keys.stage("roi_masks"),
        keys.batches,
        f"Masks cover at least {limits.min_roi_area_ratio:.0%} of the image, and their files are as they were written; "
        "a sample is opened. Border touch, fallbacks and quarantined images are listed.",
        lambda: partial(_evaluate_masks, lane),
    )


def _evaluate_masks(lane: LaneConfiguration, _instance: dg.DagsterInstance, batch: str) -> dg.AssetCheckResult:
    from uveitis_assets.fundus.file_checks import StageFiles, sampled_rows

    limits = lane.verify
    rows, index_finding = _stage_rows(lane, "roi_masks", batch)
    if rows is None:
        return _no_rows(lane, "roi_masks", batch, index_finding)
    files = StageFiles(ArtefactStore.from_environment(), lane.name, "roi_masks", batch, lane.preprocess)
    opened = {row["image_id"] for row in sampled_rows(rows, limits.sampled_images, f"{lane.name} {batch}")}
    errors: list[str] = []
    warnings = [index_finding] if index_finding else []
    n_images = n_fallback = 0
    for row in rows:
        if row["quarantine_reason"] is not None:
            warnings.append(f"{row['image_id']}: {row['quarantine_reason']}: {row['quarantine_detail']}")
            continue
        n_images += 1
        if row["image_id"] in opened:
            errors += files.mask_findings(row, limits.min_roi_area_ratio)
        else:
            errors += files.damage(row, contents=False)
        if row["area_ratio"] < limits.min_roi_area_ratio:
            errors.append(
                f"{row['image_id']}: area ratio {row['area_ratio']:.3f}, expected at least {limits.min_roi_area_ratio}"
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
    return check_result(errors, warnings, n_images=n_images, n_opened=len(opened), n_fallback=n_fallback)


def _channel_signal(lane: LaneConfiguration) -> dg.AssetChecksDefinition:
    keys = LaneKeys.of(lane)

    def evaluate(_instance: dg.DagsterInstance, batch: str) -> dg.AssetCheckResult:
        rows, index_finding = _stage_rows(lane, "normalized_crops", batch)
        if rows is None:
            return _no_rows(lane, "normalized_crops", batch, index_finding)
        usable = [row for row in rows if row["quarantine_reason"] is None]
        images_of: dict[str, list[str]] = {}
        for row in usable:
            for channel in row["channels_without_signal"]:
                images_of.setdefault(channel, []).append(row["image_id"])
        warnings = [index_finding] if index_finding else []
        warnings += [
            f"{channel}: {len(images)} of {count_of(usable, 'image')} hold noise of the encoding in place of a "
            f"picture, which is not stretched: {enumeration(images, 10)}"
            for channel, images in sorted(images_of.items())
        ]
        return check_result([], warnings, n_images=len(usable), n_channels=sum(map(len, images_of.values())))

    return partitioned_check(
        "channel_signal",
        keys.stage("normalized_crops"),
        keys.batches,
        "All three channels hold a picture of the retina; those that hold noise of the file's encoding only, as blue "
        "of two-laser ultra-widefield photographs does, are named and left unscaled.",
        lambda: evaluate,
    )


def _tile_reconstruction(lane: LaneConfiguration) -> dg.AssetChecksDefinition:
    keys = LaneKeys.of(lane)
    return partitioned_check(
        "tile_reconstruction",
        keys.stage("tiles"),
        keys.batches,
        "Tiles put together give the image they were cut from, and their files are as they were written; a sample is "
        "opened.",
        lambda: partial(_evaluate_tiles, lane),
    )


def _evaluate_tiles(lane: LaneConfiguration, _instance: dg.DagsterInstance, batch: str) -> dg.AssetCheckResult:
    from uveitis_assets.fundus.file_checks import StageFiles, sampled_rows

    limit = lane.verify.max_reconstruction_abs_error
    rows, index_finding = _stage_rows(lane, "tiles", batch)
    if rows is None:
        return _no_rows(lane, "tiles", batch, index_finding)
    store = ArtefactStore.from_environment()
    files = StageFiles(store, lane.name, "tiles", batch, lane.preprocess)
    opened = {row["image_id"] for row in sampled_rows(rows, lane.verify.sampled_images, f"{lane.name} {batch}")}
    errors: list[str] = []
    n_images = 0
    largest_error = 0.0
    for row in rows:
        if row["quarantine_reason"] is not None:
            continue
        n_images += 1
        largest_error = max(largest_error, row["reconstruction_abs_error"])
        if row["reconstruction_abs_error"] > limit:
            errors.append(
                f"{row['image_id']}: mean absolute error {row['reconstruction_abs_error']:.3g} grey levels, "
                f"expected at most {limit}"
            )
        missing: list[Path] = []
        if "tiles" in lane.persist:
            key = artefact_key(row["image_id"])
            tiles = [store.tile(key, f"tile_{number:03d}") for number in range(row["n_tiles"])]
            missing = [path for path in tiles if not path.is_file()]
            errors += [f"{row['image_id']}: {path.stem} has no file" for path in missing]
        is_opened = row["image_id"] in opened
        damaged = files.damage(row, contents=is_opened, ignored=missing)
        errors += damaged
        if is_opened and not missing and not damaged:
            error, findings = files.reconstruction(row)
            errors += findings
            largest_error = max(largest_error, error)
            if error > limit:
                errors.append(
                    f"{row['image_id']}: the tile files differ by {error:.3g} grey levels in the mean from the "
                    f"image they were cut from, expected at most {limit}"
                )
    return check_result(
        errors,
        [index_finding] if index_finding else [],
        n_images=n_images,
        n_opened=len(opened),
        max_reconstruction_abs_error=largest_error,
    )


def _label_sanity(lane: LaneConfiguration) -> dg.AssetChecksDefinition:
    keys = LaneKeys.of(lane)
    label_format = lane.labels.format
    assert label_format != "none", "lane_checks leaves lanes without lesion labels out"

    def begin() -> Evaluate:
        from uveitis_assets.labels.class_map import load_class_map
        from uveitis_assets.labels.sanity import check_split
        from uveitis_assets.landing.manifest_table import read_manifest

        store = ArtefactStore.from_environment()
        manifest = read_manifest(store, lane.name)
        label_space = load_class_map().label_space(
            label_format, classes=lane.labels.classes, label_classes=lane.labels.label_classes
        )

        def evaluate(instance: dg.DagsterInstance, partition: str) -> dg.AssetCheckResult:
            fold, split = fold_and_split(partition)
            if not store.coco_file(lane.name, split, fold, tiles=True).exists():
                return not_materialized(keys.coco_labels, partition)
            findings = check_split(
                store, lane.name, fold, split, manifest, persisted=lane.persist, reachable=label_space.reachable
            )
            errors = [finding.message for finding in findings if finding.severity == "ERROR"]
            warnings = [finding.message for finding in findings if finding.severity == "WARN"]
            metadata = _newest_metadata(instance, keys, partition)
            warnings += _left_out(metadata)
            warnings += _doubtful_labels(metadata)
            if lane.labels.missing_masks == "warn":
                warnings += _without_masks(metadata)
            return check_result(errors, warnings)

        return evaluate

    return partitioned_check(
        "label_sanity",
        keys.coco_labels,
        keys.fold_splits,
        "Boxes lie inside their images, classes are known, patients are disjoint across splits; classes that a split "
        "lacks, label files that were set aside or are doubtful (grey masks, repeated lines, corners outside the "
        "image) and missing mask files are warnings.",
        begin,
    )


def _newest_metadata(
    instance: dg.DagsterInstance, keys: LaneKeys, partition: str
) -> Mapping[str, dg.MetadataValue[Any]]:
    newest = dg.AssetRecordsFilter(keys.coco_labels, asset_partitions=[partition])
    for record in instance.fetch_materializations(newest, limit=1).records:
        if record.asset_materialization:
            return record.asset_materialization.metadata
    return {}


def _left_out(metadata: Mapping[str, dg.MetadataValue[Any]]) -> list[str]:
    """Images that the newest labels leave out: implausible label files, images without tiles."""
    lines: list[str] = []
    bad_labels = metadata.get(BAD_LABELS_METADATA)
    if isinstance(bad_labels, dg.JsonMetadataValue) and isinstance(bad_labels.data, dict):
        lines += [f"{image_id}: {detail}" for image_id, detail in bad_labels.data.items()]
    waiting = metadata.get("n_not_preprocessed")
    if waiting is not None and waiting.value:
        lines.append(f"{waiting.value} labelled images have no tiles of their registered content")
    return lines


def _doubtful_labels(metadata: Mapping[str, dg.MetadataValue[Any]]) -> list[str]:
    """Label files that the newest labels read although something in them is doubtful."""
    findings = metadata.get(LABEL_FINDINGS_METADATA)
    if not isinstance(findings, dg.JsonMetadataValue) or not isinstance(findings.data, dict):
        return []
    return [f"{image_id}: {detail}" for image_id, details in findings.data.items() for detail in details]


def _without_masks(metadata: Mapping[str, dg.MetadataValue[Any]]) -> list[str]:
    """Images that the newest labels list as free of a lesion because there is no mask file of it."""
    missing = metadata.get(MISSING_MASKS_METADATA)
    if not isinstance(missing, dg.JsonMetadataValue) or not isinstance(missing.data, dict) or not missing.data:
        return []
    folders = ", ".join(f"{folder} {count}" for folder, count in missing.data.items())
    return [
        f"{metadata['n_partial_labels'].value} images lack mask files and are listed as free of these lesions "
        f"({folders}); add the masks, or set `labels.missing_masks` to no_lesion if the dataset publishes no empty "
        "masks, to leave_out if nobody looked for these lesions"
    ]


def _stage_rows(
    lane: LaneConfiguration, stage: PreprocessStage, batch: str
) -> tuple[list[dict[str, Any]] | None, str | None]:
    """Rows of a stage's index, None without an index or a copy of it, and what is wrong with the index."""
    from uveitis_assets.stages.index import DamagedIndexError, index_finding, read_stage_index

    path = ArtefactStore.from_environment().stage_index(lane.name, stage, batch)
    if not path.exists():
        return None, None
    try:
        return list(read_stage_index(path).values()), index_finding(path)
    except DamagedIndexError as error:
        return None, str(error)


def _no_rows(
    lane: LaneConfiguration, stage: PreprocessStage, batch: str, index_finding: str | None
) -> dg.AssetCheckResult:
    if index_finding is not None:
        return check_result([index_finding], [])
    return not_materialized(LaneKeys.of(lane).stage(stage), batch)
