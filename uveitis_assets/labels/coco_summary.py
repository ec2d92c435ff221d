"""What one split's COCO files hold and what was left out, and summary.json beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from uveitis_assets.labels.findings import LabelFinding
from uveitis_assets.landing.samples import Split
from uveitis_assets.storage.files import read_json, write_json
from uveitis_assets.storage.store import ArtefactStore


@dataclass(frozen=True, slots=True)
class BadLabel:
    """An image left out because its label is not valid."""

    image_id: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class CocoSplitSummary:
    """What one split's COCO files hold and what was left out.

    Counts are of images where the name does not name another unit. ``class_counts`` map category ids to annotations,
    zero included; ``missing_classes`` are kept categories that the labels could name but this split has none of.
    ``n_out_of_roi`` are lesions whose box centre lies outside the crop; ``n_outside_image`` are lesions with nothing
    inside the global image (left out); ``n_other_classes`` are lesions outside the label-space policy. ``n_negatives``
    are images without annotations; of these, ``n_negative_by_policy`` have lesions, but none of a kept class.
    ``n_partial_labels`` lack the mask file of some kept lesion folder of the lane, ``missing_masks`` counts them per
    folder; whether they are listed is up to ``labels.missing_masks``. ``n_kept_*`` count tile annotations by the rule
    of ``placement`` that kept them. ``label_findings`` are, per listed image, the label files that were read although
    something in them is doubtful. Areas are in px².
    """

    lane: str
    fold: int
    split: Split
    n_images: int
    n_negatives: int
    n_negative_by_policy: int
    n_partial_labels: int
    n_patients: int
    n_annotations: int
    n_tiles: int
    n_empty_tiles: int
    n_tile_annotations: int
    n_kept_by_ratio: int
    n_kept_large: int
    n_kept_best_tile: int
    n_unlabelled: int
    n_quarantined_images: int
    n_other_classes: int
    n_out_of_roi: int
    n_outside_image: int
    class_counts: Mapping[int, int]
    tile_class_counts: Mapping[int, int]
    avg_box_area: float
    tile_avg_box_area: float
    missing_classes: tuple[str, ...]
    missing_masks: Mapping[str, int]
    bad_labels: tuple[BadLabel, ...]
    not_preprocessed: tuple[str, ...]
    label_findings: Mapping[str, tuple[LabelFinding, ...]]

    @property
    def n_bad_labels(self) -> int:
        """Images left out for their labels."""
        return len(self.bad_labels)

    @property
    def n_not_preprocessed(self) -> int:
        """Images left out because their preprocessing is missing or of other bytes."""
        return len(self.not_preprocessed)

    @property
    def n_label_findings(self) -> int:
        """Label files with something doubtful that were read nevertheless."""
        return sum(len(found) for found in self.label_findings.values())

    def counts(self) -> dict[str, int]:
        """All ``n_*`` numbers by name."""
        names = [field.name for field in fields(self) if field.name.startswith("n_")]
        properties = ("n_bad_labels", "n_not_preprocessed", "n_label_findings")
        return {name: getattr(self, name) for name in (*names, *properties)}


def write_coco_summary(store: ArtefactStore, summary: CocoSplitSummary) -> Path:
    """Put one split into summary.json beside its COCO files and return that file.

    Fold 0's is in labels_coco/, other folds' in their folders. Lanes and splits are written by different
    processes: the file is read, changed and replaced under a lock.
    """
    path = store.coco_summary_file(summary.fold)
    entry = {
        "global": {
            "num_images": summary.n_images,
            "num_annotations": summary.n_annotations,
            "class_counts": {str(key): n for key, n in summary.class_counts.items() if n},
            "avg_box_area": summary.avg_box_area,
        },
        "tiles": {
            "num_images": summary.n_tiles,
            "num_annotations": summary.n_tile_annotations,
            "class_counts": {str(key): n for key, n in summary.tile_class_counts.items() if n},
            "avg_box_area": summary.tile_avg_box_area,
        },
    }
    with store.lock("coco_summary"):
        content = read_json(path) if path.exists() else {}
        content[f"{summary.lane}_{summary.split}"] = entry
        write_json(path, dict(sorted(content.items())))
    return path
