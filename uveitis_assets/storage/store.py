"""Folder and file names of all artefacts.

Every write goes to a temporary file beside its target and is renamed over it, so that a reader sees the old
bytes or the new ones and a killed process leaves no half-file under a final name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from unicodedata import normalize

from uveitis_assets.storage.files import TEMPORARY_SUFFIX, is_abandoned, resolve_inside
from uveitis_assets.storage.key_files import key_file
from uveitis_assets.storage.locks import hold_lock


@dataclass(frozen=True, slots=True)
class ArtefactStore:
    """Folders of one installation: ``root`` holds everything made, ``raw`` what landed (assets read only).

    Folder and file names below ``root`` are those of the earlier scripts (manifests/, splits/, preproc/,
    labels_coco/, labels_debug/); ledger/, index/ and locks/ are additions. The class is closed: a new family of lanes
    brings its own ``<family>/paths.py`` of plain functions that take a store.
    """

    root: Path
    raw: Path

    @classmethod
    def from_environment(cls) -> Self:
        """Read ``UVEITIS_DATA`` (default ./data) and ``UVEITIS_RAW`` (default $UVEITIS_DATA/raw)."""
        root = Path(os.environ.get("UVEITIS_DATA") or "data").resolve()
        raw = Path(os.environ.get("UVEITIS_RAW") or root / "raw").resolve()
        return cls(root=root, raw=raw)

    # Inputs and their records -------------------------------------------------------------------------------

    def raw_folder(self, dataset_folder: str) -> Path:
        """Folder of one dataset's landed images."""
        return resolve_inside(self.raw, dataset_folder)

    def ledger_file(self, lane: str) -> Path:
        """The lane's ledger: content hash, path, size, batch and raw patient id of every registered image."""
        return self.root / "ledger" / f"{lane}.parquet"

    def landing_problems_file(self, lane: str) -> Path:
        """What the last registration could not take from the landing folder, with raw file names."""
        return self.root / "ledger" / f"{lane}.problems.json"

    def patient_key_file(self) -> Path:
        """Secret key of the patient pseudonyms; ``UVEITIS_PATIENT_KEY_FILE`` overrides the place.

        Raises:
            ValueError: the variable names a secret of another purpose (``key_files``).
        """
        return key_file("UVEITIS_PATIENT_KEY_FILE") or self.root / "ledger" / "patient_key"

    def manifest_part(self, lane: str, batch: str) -> Path:
        """Manifest rows of one batch."""
        return self.root / "index" / lane / "manifest" / f"{batch}.parquet"

    def manifest_parts(self, lane: str) -> list[Path]:
        """Manifest parts that exist, sorted by batch."""
        return sorted((self.root / "index" / lane / "manifest").glob("*.parquet"))

    def lanes_with_manifests(self) -> list[str]:
        """Lanes that have at least one manifest part, sorted."""
        return sorted({part.parts[-3] for part in self.root.glob("index/*/manifest/*.parquet")})

    def lane_limits_file(self, lane: str) -> Path:
        """Limits that the lane's last run compared its images with, for figures over several lanes."""
        return self.root / "index" / lane / "limits.json"

    def manifest_export(self, lane: str, extension: str) -> Path:
        """Manifest of the whole lane: extension ``jsonl``, ``csv`` or ``parquet``."""
        return self.root / "manifests" / f"{lane}.{extension}"

    def splits_file(self, name: str, fold: int) -> Path:
        """Image ids of train, val and test over all lanes that share the split name."""
        return self.root / "splits" / f"{name}_{fold}.json"

    def splits_files(self, name: str) -> dict[int, Path]:
        """Splits files of the name that exist, by fold, sorted."""
        pattern = re.compile(re.escape(name) + r"_(0|[1-9][0-9]*)\.json")
        matches = {path: pattern.fullmatch(path.name) for path in (self.root / "splits").glob("*.json")}
        return dict(sorted((int(match[1]), path) for path, match in matches.items() if match))

    # Preprocessing ----------------------------------------------------------------------------------------

    def stage_index(self, lane: str, stage: str, batch: str) -> Path:
        """Parquet index of one batch of ``roi_masks``, ``normalized_crops`` or ``tiles``."""
        return self.root / "index" / lane / stage / f"{batch}.parquet"

    def indexed_batches(self, lane: str, stage: str) -> list[str]:
        """Batches that have an index of the stage, sorted."""
        return sorted(path.stem for path in self.stage_index(lane, stage, "any").parent.glob("[!.]*.parquet"))

    def stage_journal(self, lane: str, stage: str, batch: str) -> Path:
        """Lines of finished images of a batch that is being materialized; removed when its index is written."""
        return self.root / "index" / lane / stage / f"{batch}.journal"

    def roi_mask(self, key: str) -> Path:
        """Single-channel PNG mask, 0 or 255, in raw pixels."""
        return self.root / "preproc" / "roi_masks" / f"{key}.png"

    def crop(self, key: str) -> Path:
        """RGB crop of the ROI's padded bounding box."""
        return self.root / "preproc" / "crops" / f"{key}.png"

    def crop_metadata(self, key: str) -> Path:
        return self.root / "preproc" / "crop_meta" / f"{key}.json"

    def normalized_crop(self, key: str) -> Path:
        return self.root / "preproc" / "norm" / f"{key}.png"

    def normalization_metadata(self, key: str) -> Path:
        return self.root / "preproc" / "norm_meta" / f"{key}.json"

    def global_image(self, key: str, size: int) -> Path:
        """Square image of the whole normalized crop, e.g. global_1024."""
        return self.root / "preproc" / f"global_{size}" / f"{key}.png"

    def tile(self, key: str, tile_id: str) -> Path:
        return self.root / "preproc" / "tiles" / key / f"{tile_id}.png"

    def tiles_metadata(self, key: str) -> Path:
        return self.root / "preproc" / "tiles_meta" / f"{key}.json"

    def reference_color_file(self) -> Path:
        """Colour statistics of regular fundus images for Reinhard normalization."""
        return self.root / "preproc" / "ref" / "regular_fundus_color_stats.json"

    def verify_folder(self) -> Path:
        return self.root / "preproc" / "verify"

    # Labels -----------------------------------------------------------------------------------------------

    def coco_file(self, lane: str, split: str, fold: int, *, tiles: bool) -> Path:
        """COCO file of one split; fold 0 has the earlier scripts' name, other folds a folder of their own."""
        folder = self.root / "labels_coco"
        if fold > 0:
            folder = folder / f"fold{fold}"
        return folder / f"{lane}_{split}{'_tiles' if tiles else ''}.json"

    def coco_summary_file(self, fold: int = 0) -> Path:
        """Counts per lane and split beside the COCO files of the fold."""
        return self.coco_file("any", "any", fold, tiles=False).with_name("summary.json")

    def labelled_folds(self) -> list[int]:
        """Folds after 0 that have a folder of labels or overlays, sorted."""
        folders = [path.name for name in ("labels_coco", "labels_debug") for path in (self.root / name).glob("fold*")]
        return sorted({int(name[4:]) for name in folders if re.fullmatch(r"fold[1-9][0-9]*", name)})

    def labels_lock(self, lane: str, split: str, fold: int) -> AbstractContextManager[None]:
        """Held by who writes or removes the labels and overlays of one fold and split of a lane."""
        return self.lock(f"{lane}.labels.fold{fold}.{split}")

    def label_overlay_folder(self, lane: str, split: str, fold: int) -> Path:
        folder = self.root / "labels_debug"
        if fold > 0:
            folder = folder / f"fold{fold}"
        return folder / f"{lane}_{split}"

    # Detectors --------------------------------------------------------------------------------------------

    def run_folder(self, experiment: str, fold: int) -> Path:
        """Folder of one training: configuration, metrics, checkpoints, report; fold 0 has the earlier name."""
        folder = self.root / "runs" / experiment
        return folder / f"fold{fold}" if fold > 0 else folder

    def pretraining_folder(self, name: str) -> Path:
        """Folder of an encoder's pretraining without labels."""
        return self.root / "pretrain_runs" / name

    def prediction_file(self, experiment: str, key: str) -> Path:
        """Detections of one image as JSON."""
        return self.root / "preds" / experiment / f"{key}.json"

    def prediction_overlay(self, experiment: str, key: str) -> Path:
        """Detections drawn on the global image."""
        return self.root / "preds_vis" / experiment / f"{key}.png"

    def prediction_heat_map(self, experiment: str, key: str) -> Path:
        """Lesion heat map over the global image."""
        return self.root / "preds_vis" / experiment / "heat_maps" / f"{key}.png"

    def pseudo_coco_file(self, experiment: str, lane: str, fold: int, *, tiles: bool) -> Path:
        """Training labels of a fold expanded with a detector's pseudo-labels."""
        folder = self.root / "labels_coco" / "pseudo" / experiment
        if fold > 0:
            folder = folder / f"fold{fold}"
        return folder / f"{lane}_train{'_tiles' if tiles else ''}.json"

    def prediction_index(self, experiment: str, lane: str, batch: str) -> Path:
        """Parquet index of the predictions of one batch: image, fingerprint, counts."""
        return self.root / "index" / lane / f"predictions_{experiment}" / f"{batch}.parquet"

    def tile_cache_folder(self) -> Path:
        """Decoded tiles that trainings share; may be deleted while nothing trains."""
        return self.root / "cache" / "tiles"

    # Names in artefacts -----------------------------------------------------------------------------------

    def name_of(self, path: Path) -> str:
        """Path as written into artefacts: relative to ``root`` where it lies below it, else absolute; POSIX."""
        if path.is_relative_to(self.root):
            return path.relative_to(self.root).as_posix()
        return path.as_posix()

    def remove_dead_partial_files(self) -> None:
        """Remove partial files of killed processes beside indexes, records, labels and predictions.

        Only files whose writer is known to be dead, or that are a day old: other processes may be writing now. The
        artefacts of single images are cleaned up with their batch's journal.
        """
        folders = (
            "ledger",
            "manifests",
            "splits",
            "labels_coco",
            "labels_coco/*",
            "labels_debug/*",
            "labels_debug/*/*",
            "preds/*",
            "preds_vis/*",
            "preds_vis/*/heat_maps",
        )
        for pattern in (*folders, "index/*", "index/*/*", "index_copies/*/*", "preproc/verify", "preproc/ref"):
            for path in self.root.glob(f"{pattern}/.*{TEMPORARY_SUFFIX}"):
                if is_abandoned(path):
                    path.unlink(missing_ok=True)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the installation-wide exclusive lock ``name``; a second process waits, a killed one lets go."""
        with hold_lock(self.root / "locks" / f"{name}.lock"):
            yield


def artefact_key(image_id: str) -> str:
    """File name stem of an image's artefacts: ``uwf700::Uveitis-001`` -> ``uwf700__Uveitis-001``."""
    return image_id.replace("::", "__")


def artefact_identity(image_id: str) -> str:
    """Equal for two ids whose artefacts would be the same file, also on file systems that ignore case."""
    return normalize("NFC", artefact_key(image_id)).casefold()
