"""Preprocessing as a task of the batch engine: fingerprints, files, SAM 2 in batches and its retries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from uveitis_assets.fundus.color import ReferenceColor
from uveitis_assets.fundus.configuration import STAGES, PreprocessConfiguration, PreprocessStage, RoiMethod
from uveitis_assets.fundus.image_stages import ImageStages, StageSettings, read_registered_image
from uveitis_assets.fundus.reference_color import read_reference_color, reference_color_digest
from uveitis_assets.fundus.roi.choice import downscale_for_roi
from uveitis_assets.fundus.roi.sam2_batches import Sam2Batches, lacked_sam2, sam2_checkpoint_file
from uveitis_assets.fundus.stage_files import remove_artefacts, remove_partial_files, required_files
from uveitis_assets.fundus.stage_fingerprint import stage_fingerprints
from uveitis_assets.fundus.stage_schemas import REFERENCE_COLOR_METADATA, STAGE_SCHEMAS
from uveitis_assets.fundus.stage_statistics import stage_statistics
from uveitis_assets.imaging.reusable_buffers import reused_buffers
from uveitis_assets.landing.quarantine import QuarantineError
from uveitis_assets.landing.samples import RegisteredImage
from uveitis_assets.stages.batch_outcome import StageOutcome
from uveitis_assets.stages.batch_task import BatchItem, BatchTask, Job, StageRecords
from uveitis_assets.stages.index import Row
from uveitis_assets.storage.store import ArtefactStore

Pixels = NDArray[np.uint8]
PreprocessJob = Job[RegisteredImage, PreprocessStage]


class PreprocessTask(BatchTask[RegisteredImage, PreprocessStage]):
    """The images of one batch; reads the reference colours, and loads SAM 2 where it is needed."""

    def __init__(  # noqa: PLR0917 - as preprocess_batch
        self,
        store: ArtefactStore,
        lane: str,
        batch: str,
        images: Sequence[RegisteredImage],
        configuration: PreprocessConfiguration,
        requested: Collection[PreprocessStage],
        *,
        code_version: str,
    ) -> None:
        self._store = store
        self._configuration = configuration
        self._reference = _reference_color(store, configuration)
        self._sam2: Sam2Batches | None = None
        self._settings = StageSettings(store, configuration, self._reference)
        checkpoint = self._checkpoint_digest(images)
        self._fingerprints = {
            dataset: stage_fingerprints(
                configuration,
                dataset,
                code_version,
                sam2_checkpoint=checkpoint,
                reference_color=None if self._reference is None else repr(self._reference),
            )
            for dataset in sorted({image.dataset for image in images})
        }
        chosen = [stage for stage in STAGES if stage in requested]
        super().__init__(
            f"{lane}/{'+'.join(chosen)}[{batch}]",
            [_item(image) for image in images],
            {stage: self._records(lane, stage, batch) for stage in STAGES},
            chosen,
        )

    def _records(self, lane: str, stage: PreprocessStage, batch: str) -> StageRecords:
        # Masks do not depend on colours.
        reference = self._reference if stage != "roi_masks" else None
        return StageRecords(
            schema=STAGE_SCHEMAS[stage],
            index=self._store.stage_index(lane, stage, batch),
            journal=self._store.stage_journal(lane, stage, batch),
            metadata={REFERENCE_COLOR_METADATA: None if reference is None else reference_color_digest(reference)},
        )

    def _checkpoint_digest(self, images: Sequence[RegisteredImage]) -> str | None:
        """Digest of SAM 2's weights; None where no image's chain names SAM 2, or there are no weights."""
        roi = self._configuration.roi
        if all("sam2_prompted" not in roi.methods_for(image.dataset) for image in images):
            return None
        checkpoint = sam2_checkpoint_file(self._store, roi.sam2)
        return blake3().update_mmap(checkpoint).hexdigest() if checkpoint.is_file() else None

    # What is done -----------------------------------------------------------------------------------------

    def fingerprint(
        self, item: BatchItem[RegisteredImage], stage: PreprocessStage, rows: Mapping[PreprocessStage, Row]
    ) -> str:
        """As ``stage_fingerprints``; crops and tiles of a mask that was made without SAM 2 have another one."""
        fingerprint = self._fingerprints[item.source.dataset][stage]
        if stage != "roi_masks" and lacked_sam2(rows.get("roi_masks")):
            return f"{fingerprint}-without-sam2"
        return fingerprint

    def required_files(self, item: BatchItem[RegisteredImage], stage: PreprocessStage, row: Row) -> list[Path]:
        return required_files(self._store, item.key, stage, self._configuration, row)

    def must_remake(
        self,
        item: BatchItem[RegisteredImage],
        stage: PreprocessStage,
        to_do: Collection[PreprocessStage],
        rows: Mapping[PreprocessStage, Row],
    ) -> bool:
        """Whether SAM 2 can now replace a mask made without it, or an earlier stage is made again."""
        if stage == "roi_masks":
            return lacked_sam2(rows["roi_masks"]) and self._can_ask_sam2(item.source)
        if "roi_masks" in to_do and "sam2_prompted" in self._roi_methods(item.source):
            # SAM 2 may have been missing then or now: the mask may become another one.
            return True
        # The crop's first row removes the metadata of any tiles: see discard_former.
        return "normalized_crops" in to_do and "normalized_crops" not in rows

    def _can_ask_sam2(self, image: RegisteredImage) -> bool:
        sam2 = self._load_sam2([image])
        return sam2 is not None and sam2.segmenter is not None

    def _roi_methods(self, image: RegisteredImage) -> tuple[RoiMethod, ...]:
        return self._configuration.roi.methods_for(image.dataset)

    # Computing --------------------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        with reused_buffers(), _single_threaded_opencv():
            yield

    def start(
        self,
        item: BatchItem[RegisteredImage],
        rows: Mapping[PreprocessStage, Row],
        prepared: Pixels | str | None,
    ) -> ImageStages:
        return ImageStages(item.source, self._settings, rows, prepared)

    def prepare(
        self, jobs: Sequence[PreprocessJob], pool: Executor
    ) -> Iterator[tuple[PreprocessJob, Pixels | str | None]] | None:
        """Jobs with SAM 2's result where the ROI chain begins with it; None where no chain names SAM 2."""
        sam2 = self._load_sam2([job.item.source for job in jobs if "roi_masks" in job.stages])
        if sam2 is None:
            return None
        self._settings = StageSettings(self._store, self._configuration, self._reference, sam2.segment_one)
        return self._with_sam2_results(jobs, sam2, pool)

    def _with_sam2_results(
        self, jobs: Sequence[PreprocessJob], sam2: Sam2Batches, pool: Executor
    ) -> Iterator[tuple[PreprocessJob, Pixels | str | None]]:
        """Yields jobs without SAM 2 first; then those with it, segmented in batches while the pool works.

        Images for SAM 2 are decoded twice: keeping a batch of decoded images would cost more memory than SAM 2's
        forward pass leaves time to save.
        """
        with_sam2 = []
        for job in jobs:
            if "roi_masks" in job.stages and self._roi_methods(job.item.source)[0] == "sam2_prompted":
                with_sam2.append(job)
            else:
                yield job, None
        batch_size = self._configuration.roi.sam2.batch_size
        for start in range(0, len(with_sam2), batch_size):
            chunk = with_sam2[start : start + batch_size]
            small = list(pool.map(self._small_image, chunk))
            results = iter(sam2.segment([image for image in small if image is not None]))
            for job, image in zip(chunk, small, strict=True):
                yield job, None if image is None else next(results)

    def _small_image(self, job: PreprocessJob) -> Pixels | None:
        """The image at the ROI scale; None for an image that cannot be used, which its stages will report."""
        try:
            raw = read_registered_image(self._store, job.item.source)
        except (QuarantineError, OSError):
            return None
        return downscale_for_roi(raw, self._configuration.roi.downsample_max_side).copy()

    def _load_sam2(self, images: Sequence[RegisteredImage]) -> Sam2Batches | None:
        """SAM 2, loaded once, where one of these images' chains names it."""
        roi = self._configuration.roi
        chains = {chain for image in images if "sam2_prompted" in (chain := self._roi_methods(image))}
        if not chains:
            return None
        if self._sam2 is None:
            self._sam2 = Sam2Batches.load(
                roi.sam2, sam2_checkpoint_file(self._store, roi.sam2), required=("sam2_prompted",) in chains
            )
        return self._sam2

    # Removing ---------------------------------------------------------------------------------------------

    def remove(self, key: str, stage: PreprocessStage, former: Row | None) -> None:
        present = self._configuration.tiling.global_size
        remove_artefacts(self._store, key, stage, {present, _global_size(former) or present})

    def discard_former(
        self, item: BatchItem[RegisteredImage], stage: PreprocessStage, former: Row | None, fingerprint: str
    ) -> None:
        if stage == "normalized_crops" and (former is None or former["fingerprint"] != fingerprint):
            # Tiles of the former crop, or of one that no record knows, must not meet the new crop's place: without
            # metadata they count as not made.
            self._store.tiles_metadata(item.key).unlink(missing_ok=True)
        size = _global_size(former)
        if size is not None and size != self._configuration.tiling.global_size:
            self._store.global_image(item.key, size).unlink(missing_ok=True)

    def remove_partial_files(self) -> None:
        keys = [item.key for item in self.items]
        remove_partial_files(self._store, keys, self._configuration.tiling.global_size)

    # Reporting --------------------------------------------------------------------------------------------

    def summarize(self, stage: PreprocessStage, rows: Sequence[Row], outcome: StageOutcome) -> None:
        if stage == "roi_masks":
            methods = Counter(row["method"] for row in rows if row["fallbacks"])
            outcome.n_fallback = dict(sorted(methods.items()))
        outcome.statistics = stage_statistics(stage, rows)


def _item(image: RegisteredImage) -> BatchItem[RegisteredImage]:
    return BatchItem(
        item_id=image.image_id,
        content_hash=image.content_hash,
        source=image,
        columns={"dataset": image.dataset},
        quarantine_reason=image.quarantine_reason,
        quarantine_detail=image.quarantine_detail,
    )


def _reference_color(store: ArtefactStore, configuration: PreprocessConfiguration) -> ReferenceColor | None:
    if configuration.normalize.method != "reinhard_lab_ref":
        return None
    return read_reference_color(store.reference_color_file())


def _global_size(row: Row | None) -> int | None:
    """Side of the image's global image, px, from a row of the tiles' index."""
    return None if row is None else row.get("global_size")


@contextmanager
def _single_threaded_opencv() -> Iterator[None]:
    """Keep OpenCV from starting threads of its own beside ours."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
