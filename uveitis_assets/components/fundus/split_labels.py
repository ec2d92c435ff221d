"""Makes the COCO files and the pictures of one fold and split, without Dagster."""

from dataclasses import dataclass

from uveitis_assets.components.fundus.lane_configuration import LaneConfiguration
from uveitis_assets.labels.class_map import ClassMap
from uveitis_assets.labels.coco import build_coco_split
from uveitis_assets.labels.coco_summary import CocoSplitSummary, write_coco_summary
from uveitis_assets.labels.overlays import label_contact_sheet, write_label_overlays
from uveitis_assets.landing.manifest_table import read_manifest, require_one_split_assignment
from uveitis_assets.landing.samples import Split
from uveitis_assets.storage.store import ArtefactStore


@dataclass(frozen=True, slots=True)
class SplitLabels:
    """Counts of the written COCO files, and a contact sheet (JPEG) of boxes on tiles where one was wanted."""

    summary: CocoSplitSummary
    contact_sheet: bytes | None


def make_split_labels(
    store: ArtefactStore,
    lane: LaneConfiguration,
    class_map: ClassMap,
    fold: int,
    split: Split,
    *,
    workers: int,
    overlays: bool,
) -> SplitLabels:
    """Write the COCO files of a fold's split, their summary and, if wanted, overlays on the global images.

    Call it under ``store.labels_lock``: two runs at once would mix one's images with the other's tiles.

    Raises:
        ValueError: the manifest, or the tiles of its images, have to be materialized first; the message names them.
    """
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
    contact_sheet = None
    if overlays:
        write_label_overlays(store, lane.name, fold, split, lane.labels.debug_max_images)
        if summary.n_tiles and "tiles" in lane.persist:
            contact_sheet = label_contact_sheet(store, lane.name, fold, split)
    return SplitLabels(summary, contact_sheet)
