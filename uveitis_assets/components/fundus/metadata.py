"""Metadata of a fundus lane's materializations: manifest, preprocessing stages and labels."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from uveitis_assets.components.fundus.keys import label_partition
from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.fundus.configuration import PreprocessStage
from uveitis_assets.orchestration.partition_runs import MetadataEntry
from uveitis_assets.orchestration.previews import format_counts, format_listing, picture
from uveitis_assets.storage.files import read_json
from uveitis_assets.storage.store import ArtefactStore

if TYPE_CHECKING:
    from uveitis_assets.components.fundus.split_labels import SplitLabels
    from uveitis_assets.landing.manifest import ManifestSummary
    from uveitis_assets.landing.samples import RegisteredImage
    from uveitis_assets.stages.batch_outcome import BatchOutcome, StageOutcome

BAD_LABELS_METADATA = "bad_labels"
MISSING_MASKS_METADATA = "missing_masks"
LABEL_FINDINGS_METADATA = "label_findings"


def manifest_metadata(
    store: ArtefactStore, lane: LaneConfiguration, batch: str, summary: "ManifestSummary"
) -> dict[str, MetadataEntry]:
    """Metadata of one batch's manifest."""
    return {
        "n_images": summary.n_images,
        "n_usable": summary.n_usable,
        "n_quarantined": summary.n_quarantined,
        "n_duplicates": summary.n_duplicates,
        "n_patients": summary.n_patients,
        "quarantine_reasons": format_counts(summary.quarantine_reasons),
        "quarantined": quarantined_images(store.manifest_part(lane.name, batch)),
        "landing_problems": format_listing(landing_problems(store, lane)),
        "splits_fold0": format_counts(summary.splits),
        "label_formats": format_counts(summary.label_formats),
        "eyes": format_counts(summary.eyes),
        "path": dg.MetadataValue.path(str(store.manifest_part(lane.name, batch))),
    }


def stage_metadata(
    store: ArtefactStore,
    lane: LaneConfiguration,
    stage: PreprocessStage,
    batch: str,
    outcome: "BatchOutcome[PreprocessStage]",
    *,
    previewed: "list[RegisteredImage] | None",
) -> dict[str, MetadataEntry]:
    """Metadata of one batch's preprocessing stage; ``previewed`` images are shown on a contact sheet."""
    return {
        **_stage_numbers(stage, outcome.stages[stage]),
        "quarantined": quarantined_images(store.stage_index(lane.name, stage, batch)),
        "duration_s": round(outcome.duration_s, 3),
        **({} if previewed is None else _stage_preview(store, lane, stage, batch, previewed)),
    }


def label_metadata(
    store: ArtefactStore, lane: LaneConfiguration, labels: "SplitLabels", class_names: dict[int, str]
) -> dict[str, MetadataEntry]:
    """Metadata of the label files of one fold and split."""
    summary = labels.summary
    metadata: dict[str, MetadataEntry] = {
        **summary.counts(),
        "class_counts": format_counts(
            {class_names[key]: count for key, count in summary.class_counts.items() if count}
        ),
        "missing_classes": ", ".join(summary.missing_classes) or "none",
        MISSING_MASKS_METADATA: format_counts(summary.missing_masks),
        BAD_LABELS_METADATA: dg.MetadataValue.json({bad.image_id: bad.detail for bad in summary.bad_labels}),
        LABEL_FINDINGS_METADATA: dg.MetadataValue.json(
            {image_id: [one.detail for one in found] for image_id, found in sorted(summary.label_findings.items())}
        ),
        "not_preprocessed": format_listing(summary.not_preprocessed),
        "avg_box_area_px2": round(summary.avg_box_area, 1),
        "path": dg.MetadataValue.path(str(store.coco_file(lane.name, summary.split, summary.fold, tiles=False))),
    }
    if labels.contact_sheet is not None:
        title = f"{lane.name} {label_partition(summary.fold, summary.split)}: boxes on tiles"
        metadata["preview"] = picture(labels.contact_sheet, title)
    return metadata


def landing_problems(store: ArtefactStore, lane: LaneConfiguration) -> list[str]:
    """What the last registration could not take from the landing folder.

    With ``identify_by_content`` only counts by reason: paths may hold patients' names, and stay in the file.
    """
    path = store.landing_problems_file(lane.name)
    problems = read_json(path)["problems"] if path.exists() else []
    if lane.image_folder.identify_by_content and problems:
        reasons = Counter(problem["reason"] for problem in problems)
        return [f"{count} of {reason}, see {store.name_of(path)}" for reason, count in sorted(reasons.items())]
    return [f"{problem['path']}: {problem['reason']}: {problem['detail']}" for problem in problems]


def quarantined_images(table: Path) -> dg.MarkdownMetadataValue:
    """Quarantined images of a manifest part or a stage index, each with its reason and remedy."""
    import polars as pl

    columns = ["image_id", "quarantine_reason", "quarantine_detail"]
    rows = pl.read_parquet(table, columns=columns).drop_nulls("quarantine_reason").sort("image_id")
    return format_listing([f"{image_id}: {reason}: {detail}" for image_id, reason, detail in rows.iter_rows()])


def _stage_numbers(stage: PreprocessStage, outcome: "StageOutcome") -> dict[str, MetadataEntry]:
    fallbacks: dict[str, MetadataEntry] = {
        "n_fallback": sum(outcome.n_fallback.values()),
        "fallback_methods": format_counts(outcome.n_fallback),
    }
    return {
        "n_images": outcome.n_images,
        "n_done": outcome.n_done,
        "n_skipped": outcome.n_skipped,
        "n_repaired": outcome.n_repaired,
        "repaired": format_listing([f"{image_id}: {found}" for image_id, found in sorted(outcome.repaired.items())]),
        **({} if outcome.index_finding is None else {"index_finding": outcome.index_finding}),
        "n_quarantined": sum(outcome.n_quarantined.values()),
        "quarantine_reasons": format_counts(outcome.n_quarantined),
        **(fallbacks if stage == "roi_masks" else {}),
        "worker_duration_s": round(outcome.duration_s, 3),
        "written_bytes": outcome.bytes_written,
        **{name: round(value, 4) for name, value in outcome.statistics.items()},
    }


def _stage_preview(
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
