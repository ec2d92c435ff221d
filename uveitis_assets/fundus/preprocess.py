"""Batch runner of the preprocessing stages: which images need work, in threads, resumable after any kill.

An image's stage is done when its row (content hash and fingerprint) stands in the stage's index or journal and its
files exist. Rows go to the journal after their files are in place; the index is written at the end of the batch. How
an image is computed is image_stages.py's business.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import fmean

import cv2
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from uveitis_assets.fundus.color import ReferenceColor
from uveitis_assets.fundus.configuration import STAGES, PreprocessConfiguration, PreprocessStage, RoiMethod
from uveitis_assets.fundus.image_stages import (
    ImageStages,
    StageSettings,
    read_registered_image,
    remove_artefacts,
    remove_partial_files,
    required_files,
)
from uveitis_assets.fundus.reference_color import read_reference_color, reference_color_digest
from uveitis_assets.fundus.roi.choice import downscale_for_roi
from uveitis_assets.fundus.roi.sam2_batches import Sam2Batches, lacked_sam2, sam2_checkpoint_file
from uveitis_assets.fundus.stage_fingerprint import stage_fingerprints
from uveitis_assets.fundus.stage_schemas import REFERENCE_COLOR_METADATA, STAGE_SCHEMAS, complete_row
from uveitis_assets.imaging.reusable_buffers import reused_buffers
from uveitis_assets.landing.configuration import DatasetConfiguration
from uveitis_assets.landing.ledger import registered_images
from uveitis_assets.landing.quarantine import TRANSIENT_REASONS, QuarantineError
from uveitis_assets.landing.samples import RegisteredImage
from uveitis_assets.stages.batch_ownership import hold_batch
from uveitis_assets.stages.index import Row, read_index_metadata, read_stage_index, write_stage_index
from uveitis_assets.stages.journal import StageJournal, read_stage_journal
from uveitis_assets.storage.files import TEMPORARY_SUFFIX
from uveitis_assets.storage.store import ArtefactStore, artefact_key

_FAILURES_SHOWN = 20

Pixels = NDArray[np.uint8]


@dataclass(slots=True)
class StageOutcome:
    """What a batch's run did for one stage.

    ``n_images`` = ``n_done`` (made now) + ``n_skipped`` (were done) + all of ``n_quarantined`` + ``n_failed``.
    ``n_fallback`` counts, of all usable images, those whose ROI came from another than the first method, by method.
    ``duration_s`` is the time spent in the stage, summed over workers. ``statistics`` are over all usable images.
    """

    n_images: int = 0
    n_done: int = 0
    n_skipped: int = 0
    n_failed: int = 0
    n_quarantined: dict[str, int] = field(default_factory=dict)
    n_fallback: dict[str, int] = field(default_factory=dict)
    duration_s: float = 0.0
    bytes_written: int = 0
    statistics: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class BatchOutcome:
    """Outcome of each requested stage and the batch's wall time."""

    stages: dict[PreprocessStage, StageOutcome]
    duration_s: float = 0.0


class BatchFailedError(RuntimeError):
    """Some images failed unexpectedly; all others are done and recorded. ``failures`` holds image id and error."""

    def __init__(self, place: str, failures: Sequence[tuple[str, Exception]], outcome: BatchOutcome) -> None:
        lines = [f"{image_id}: {type(error).__name__}: {error}" for image_id, error in failures[:_FAILURES_SHOWN]]
        if len(failures) > _FAILURES_SHOWN:
            lines.append(f"and {len(failures) - _FAILURES_SHOWN} more")
        super().__init__(
            f"{place}: {len(failures)} of {max(stage.n_images for stage in outcome.stages.values())} images failed, "
            "the others are done; mend the cause and materialize the batch again:\n" + "\n".join(lines)
        )
        self.failures = tuple(failures)
        self.outcome = outcome


def preprocess_batch(  # noqa: PLR0917 - the batch, then what to do with it
    store: ArtefactStore,
    lane: str,
    batch: str,
    images: Sequence[RegisteredImage],
    configuration: PreprocessConfiguration,
    stages: Collection[PreprocessStage],
    *,
    workers: int,
    code_version: str,
    progress: Callable[[int, int], None] | None = None,
) -> BatchOutcome:
    """Bring the requested stages of all images of a batch up to date, in one pass over each image.

    Stages that were not requested are neither made nor repaired: where a requested one needs them, they are read
    back. A second process that runs the same batch waits and then finds it done.

    Args:
        store: where everything lies.
        lane: the lane's name.
        batch: the batch's key.
        images: all images of the batch.
        configuration: the lane's configuration.
        stages: which of roi_masks, normalized_crops and tiles.
        workers: threads over images; 1 is the calling thread, unless SAM 2 works beside it.
        code_version: part of every fingerprint.
        progress: called with images done and images to do, from this thread.

    Raises:
        BatchFailedError: images failed for other reasons than quarantine; all others are finished and recorded.
        ReferenceColorMissingError: reinhard_lab_ref without reference colours.
        Sam2UnavailableError: SAM 2 cannot be used and a chain names no other method.
        ValueError: unknown stage, two images with the same key, or workers < 1.
    """
    with store.lock(_batch_lock(lane, batch)):
        return _preprocess_locked(
            store, lane, batch, images, (), configuration, stages,
            workers=workers, code_version=code_version, progress=progress,
        )  # fmt: skip


def preprocess_registered_batch(
    store: ArtefactStore,
    dataset: DatasetConfiguration,
    batch: str,
    configuration: PreprocessConfiguration,
    stages: Collection[PreprocessStage],
    *,
    workers: int,
    code_version: str,
    progress: Callable[[int, int], None] | None = None,
) -> BatchOutcome:
    """preprocess_batch for the batch's images as they are registered once no other run can touch their artefacts.

    Waits for runs of this batch and of those that held an id of its images before: a run that began before the image
    was replaced must not write the former content's artefacts over the new ones. Artefacts of images that left the
    batch are removed, those of the requested stages, unless another live image bears their id.

    Args and raises as preprocess_batch.
    """
    lane = dataset.name
    with hold_batch(store, lane, batch, functools.partial(_batch_lock, lane)) as ownership:
        images = registered_images(store, dataset, batch)
        return _preprocess_locked(
            store, lane, batch, images, ownership.released_keys, configuration, stages,
            workers=workers, code_version=code_version, progress=progress,
        )  # fmt: skip


def _batch_lock(lane: str, batch: str) -> str:
    return f"{lane}.{batch}.preprocess"


def _preprocess_locked(  # noqa: PLR0917 - as preprocess_batch
    store: ArtefactStore,
    lane: str,
    batch: str,
    images: Sequence[RegisteredImage],
    released_keys: Sequence[str],
    configuration: PreprocessConfiguration,
    stages: Collection[PreprocessStage],
    *,
    workers: int,
    code_version: str,
    progress: Callable[[int, int], None] | None,
) -> BatchOutcome:
    requested = tuple(stage for stage in STAGES if stage in stages)
    _check_arguments(images, stages, workers)
    started = time.perf_counter()
    with (
        reused_buffers(),
        _single_threaded_opencv(),
        ExitStack() as stack,
    ):
        run = _BatchRun(
            store,
            lane=lane,
            batch=batch,
            images=images,
            configuration=configuration,
            requested=requested,
            code_version=code_version,
        )
        run.remove_partial_files()
        run.remove_released(released_keys)
        jobs = run.jobs()
        if jobs:
            run.open_journals(stack)
            run.execute(jobs, workers, progress)
        run.write_indexes()
        outcome = run.outcome(time.perf_counter() - started)
    if run.failures:
        failures = sorted(run.failures, key=lambda failure: failure[0])
        place = f"{lane}/{'+'.join(requested)}[{batch}]"
        raise BatchFailedError(place, failures, outcome) from ExceptionGroup(
            "failed images", [error for _, error in failures[:_FAILURES_SHOWN]]
        )
    return outcome


@dataclass(frozen=True, slots=True)
class _Job:
    image: RegisteredImage
    stages: tuple[PreprocessStage, ...]


class _BatchRun:
    """State of one call of preprocess_batch."""

    def __init__(
        self,
        store: ArtefactStore,
        *,
        lane: str,
        batch: str,
        images: Sequence[RegisteredImage],
        configuration: PreprocessConfiguration,
        requested: tuple[PreprocessStage, ...],
        code_version: str,
    ) -> None:
        self.store = store
        self.lane = lane
        self.batch = batch
        self.images = sorted(images, key=lambda image: image.image_id)
        self.configuration = configuration
        self.requested = requested
        self.failures: list[tuple[str, Exception]] = []
        self._journals: dict[PreprocessStage, StageJournal] = {}
        self._outcomes = {stage: StageOutcome(n_images=len(images)) for stage in requested}
        self._outcome_lock = threading.Lock()
        self._reference, reference_digest = self._read_reference()
        checkpoint = self._sam2_checkpoint_digest()
        self._fingerprints = {
            dataset: stage_fingerprints(
                configuration,
                dataset,
                code_version,
                sam2_checkpoint=checkpoint,
                reference_color=reference_digest,
            )
            for dataset in sorted({image.dataset for image in images})
        }
        self._earlier = {stage: self._earlier_rows(stage) for stage in STAGES}
        self._rows: dict[PreprocessStage, dict[str, Row]] = {stage: {} for stage in requested}
        self._sam2: Sam2Batches | None = None
        # Stages with a journal: one that a killed run left, or ours.
        self._touched = {stage: store.stage_journal(lane, stage, batch).exists() for stage in requested}

    # What has to be done ----------------------------------------------------------------------------------

    def jobs(self) -> list[_Job]:
        """Images and their stages that are not done; rows of the others are taken over."""
        jobs = []
        without_sam2 = self._images_to_ask_sam2_again()
        for image in self.images:
            todo: list[PreprocessStage] = []
            for stage in self.requested:
                if image.quarantine_reason is not None:
                    set_aside = self._quarantine_row(image, stage, image.quarantine_reason, image.quarantine_detail)
                    if self._earlier[stage].get(image.image_id) != set_aside:
                        self._remove_artefacts(image, stage, image.quarantine_reason)
                    self._rows[stage][image.image_id] = set_aside
                    continue
                row = self._valid_row(image, stage)
                # A mask that SAM 2 makes now where it could not before, or the reverse, is another one.
                remade = "roi_masks" in todo and "sam2_prompted" in self._roi_methods(image)
                # The crop's first row takes the metadata of any tiles away: see _invalidate.
                remade |= "normalized_crops" in todo and image.image_id not in self._earlier["normalized_crops"]
                if row is None or remade or image.image_id in without_sam2:
                    todo.append(stage)
                else:
                    self._rows[stage][image.image_id] = row
                    if row["quarantine_reason"] is None:
                        self._outcomes[stage].n_skipped += 1
            if todo:
                jobs.append(_Job(image, tuple(todo)))
        return jobs

    def _images_to_ask_sam2_again(self) -> set[str]:
        """Images whose earlier mask SAM 2 was not there to make, if it is there now: what may pass must not last."""
        if "roi_masks" not in self.requested:
            return set()
        waiting = [
            image
            for image in self.images
            if image.quarantine_reason is None
            and lacked_sam2(self._earlier["roi_masks"].get(image.image_id))
            and self._valid_row(image, "roi_masks") is not None
        ]
        sam2 = self._load_sam2(waiting)
        return {image.image_id for image in waiting} if sam2 is not None and sam2.segmenter is not None else set()

    def _roi_methods(self, image: RegisteredImage) -> tuple[RoiMethod, ...]:
        return self.configuration.roi.methods_for(image.dataset)

    def _fingerprint(self, image: RegisteredImage, stage: PreprocessStage) -> str:
        """What a row has to bear to hold. Later stages tell a mask made for want of SAM 2 from its successor."""
        fingerprint = self._fingerprints[image.dataset][stage]
        if stage == "roi_masks":
            return fingerprint
        mask = self._rows.get("roi_masks", {}).get(image.image_id) or self._earlier["roi_masks"].get(image.image_id)
        return f"{fingerprint}-without-sam2" if lacked_sam2(mask) else fingerprint

    def _earlier_rows(self, stage: PreprocessStage) -> dict[str, Row]:
        rows: dict[str, Row | None] = dict(read_stage_index(self.store.stage_index(self.lane, stage, self.batch)))
        rows |= read_stage_journal(self.store.stage_journal(self.lane, stage, self.batch))
        return {image_id: complete_row(stage, row) for image_id, row in rows.items() if row is not None}

    def _valid_row(self, image: RegisteredImage, stage: PreprocessStage, *, passing: bool = False) -> Row | None:
        """The image's earlier row if its inputs are the present ones and its files exist.

        Rows quarantined for a reason that may pass hold only where ``passing`` says so.
        """
        row = self._earlier[stage].get(image.image_id)
        if (
            row is None
            or row["content_hash"] != image.content_hash
            or row["fingerprint"] != self._fingerprint(image, stage)
            or (row["quarantine_reason"] in TRANSIENT_REASONS and not passing)
        ):
            return None
        if row["quarantine_reason"] is None:
            files = required_files(self.store, artefact_key(image.image_id), stage, self.configuration, row)
            if not all(os.path.exists(path) for path in files):  # noqa: PTH110 - half the time of Path.exists
                return None
        return row

    # Doing it ---------------------------------------------------------------------------------------------

    def open_journals(self, stack: ExitStack) -> None:
        for stage in self.requested:
            self._journals[stage] = stack.enter_context(
                StageJournal(self.store.stage_journal(self.lane, stage, self.batch))
            )
            self._touched[stage] = True

    def execute(self, jobs: Sequence[_Job], workers: int, progress: Callable[[int, int], None] | None) -> None:
        """Run the jobs in threads, or in this one where it is the only worker.

        Images whose ROI begins with SAM 2 pass it in batches first.
        """
        sam2 = self._load_sam2([job.image for job in jobs if "roi_masks" in job.stages])
        settings = StageSettings(self.store, self.configuration, self._reference, sam2.segment_one if sam2 else None)

        def report(done: int) -> None:
            if progress is not None:
                progress(done, len(jobs))

        if workers == 1 and sam2 is None:
            # A new thread may be given the heap of one that has ended, whose pages the kernel clears anew for each
            # image, see memory_allocator.
            for done, job in enumerate(jobs, start=1):
                self._process(job, settings, None)
                report(done)
            return
        with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="preprocess") as pool:
            futures: list[Future[None]] = []
            try:
                for job, sam2_result in self._with_sam2_results(jobs, sam2, pool):
                    futures.append(pool.submit(self._process, job, settings, sam2_result))
                for done, future in enumerate(as_completed(futures), start=1):
                    future.result()
                    report(done)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _with_sam2_results(
        self, jobs: Sequence[_Job], sam2: Sam2Batches | None, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[_Job, Pixels | str | None]]:
        """Each job with SAM 2's result where the ROI chain begins with it.

        Those images are decoded twice: keeping a batch of decoded images would cost more memory than SAM 2's forward
        pass leaves time to save. While one batch is segmented, the pool works on the images before it.
        """
        roi = self.configuration.roi
        with_sam2 = [
            job
            for job in jobs
            if sam2 is not None
            and "roi_masks" in job.stages
            and roi.methods_for(job.image.dataset)[0] == "sam2_prompted"
        ]
        chosen = {job.image.image_id for job in with_sam2}
        yield from ((job, None) for job in jobs if job.image.image_id not in chosen)
        if sam2 is None:
            return
        for start in range(0, len(with_sam2), roi.sam2.batch_size):
            chunk = with_sam2[start : start + roi.sam2.batch_size]
            small = list(pool.map(self._small_image, chunk))
            results = iter(sam2.segment([image for image in small if image is not None]))
            for job, image in zip(chunk, small, strict=True):
                yield job, None if image is None else next(results)

    def _small_image(self, job: _Job) -> Pixels | None:
        """The image at the ROI scale; None for an image that cannot be used, which its job will say."""
        try:
            raw = read_registered_image(self.store, job.image)
        except (QuarantineError, OSError):
            return None
        return downscale_for_roi(raw, self.configuration.roi.downsample_max_side).copy()

    def _load_sam2(self, images: Sequence[RegisteredImage]) -> Sam2Batches | None:
        """SAM 2, loaded once, where one of these images' chains asks for it."""
        roi = self.configuration.roi
        chains = {chain for image in images if "sam2_prompted" in (chain := self._roi_methods(image))}
        if not chains:
            return None
        if self._sam2 is None:
            self._sam2 = Sam2Batches.load(
                roi.sam2, sam2_checkpoint_file(self.store, roi.sam2), required=("sam2_prompted",) in chains
            )
        return self._sam2

    def _process(self, job: _Job, settings: StageSettings, sam2_result: Pixels | str | None) -> None:
        image = job.image
        holding = {
            stage: row
            for stage in STAGES
            if stage not in job.stages and (row := self._valid_row(image, stage, passing=True)) is not None
        }
        work = ImageStages(image, settings, holding, sam2_result)
        for position, stage in enumerate(job.stages):
            begun, written = time.perf_counter(), work.bytes_written
            try:
                self._invalidate(image, stage)
                columns = work.run(stage)
            except QuarantineError as error:
                for later in job.stages[position:]:
                    self._invalidate(image, later)
                    self._quarantine(image, later, error)
                return
            except Exception as error:
                with self._outcome_lock:
                    self.failures.append((image.image_id, error))
                    for later in job.stages[position:]:
                        self._outcomes[later].n_failed += 1
                return
            finally:
                with self._outcome_lock:
                    self._outcomes[stage].duration_s += time.perf_counter() - begun
                    self._outcomes[stage].bytes_written += work.bytes_written - written
            row = self._common_columns(image, stage) | columns
            self._journals[stage].finish(image.image_id, row)
            with self._outcome_lock:
                self._rows[stage][image.image_id] = row
                self._outcomes[stage].n_done += 1

    def _invalidate(self, image: RegisteredImage, stage: PreprocessStage) -> None:
        """Take back what the books say about the image's stage, before its files are overwritten."""
        earlier = self._earlier[stage].get(image.image_id)
        former = None if earlier is None else earlier["fingerprint"]
        if stage == "normalized_crops" and former != self._fingerprint(image, stage):
            # Tiles of the former crop, or of one that the books do not know, must not meet the new crop's place:
            # without metadata they count as not made.
            self.store.tiles_metadata(artefact_key(image.image_id)).unlink(missing_ok=True)
        if earlier is None:
            return
        former_size = earlier.get("global_size")
        if former_size is not None and former_size != self.configuration.tiling.global_size:
            self.store.global_image(artefact_key(image.image_id), former_size).unlink(missing_ok=True)
        self._journals[stage].begin(image.image_id)

    def _quarantine(self, image: RegisteredImage, stage: PreprocessStage, error: QuarantineError) -> None:
        row = self._quarantine_row(image, stage, error.reason, error.detail)
        self._remove_artefacts(image, stage, error.reason)
        self._journals[stage].finish(image.image_id, row)
        with self._outcome_lock:
            self._rows[stage][image.image_id] = row

    def _remove_artefacts(self, image: RegisteredImage, stage: PreprocessStage, reason: str) -> None:
        """Remove what an earlier content of the image left, unless the reason may pass."""
        if reason not in TRANSIENT_REASONS:
            remove_artefacts(self.store, artefact_key(image.image_id), stage, self.configuration.tiling.global_size)

    def _quarantine_row(self, image: RegisteredImage, stage: PreprocessStage, reason: str, detail: str | None) -> Row:
        columns = self._common_columns(image, stage) | {"quarantine_reason": reason, "quarantine_detail": detail}
        return complete_row(stage, columns)

    def _common_columns(self, image: RegisteredImage, stage: PreprocessStage) -> Row:
        return {
            "image_id": image.image_id,
            "key": artefact_key(image.image_id),
            "dataset": image.dataset,
            "content_hash": image.content_hash,
            "fingerprint": self._fingerprint(image, stage),
            "quarantine_reason": None,
            "quarantine_detail": None,
        }

    # Inputs besides the images ----------------------------------------------------------------------------

    def _read_reference(self) -> tuple[ReferenceColor | None, str | None]:
        if self.configuration.normalize.method != "reinhard_lab_ref":
            return None, None
        reference = read_reference_color(self.store.reference_color_file())
        return reference, repr(reference)

    def _sam2_checkpoint_digest(self) -> str | None:
        roi = self.configuration.roi
        if all("sam2_prompted" not in roi.methods_for(image.dataset) for image in self.images):
            return None
        checkpoint = sam2_checkpoint_file(self.store, roi.sam2)
        if not checkpoint.is_file():
            return None
        return blake3().update_mmap(checkpoint).hexdigest()

    # Books ------------------------------------------------------------------------------------------------

    def remove_released(self, keys: Sequence[str]) -> None:
        """Remove what images that left the batch have left in the requested stages."""
        size = self.configuration.tiling.global_size
        former_sizes = {row["key"]: row["global_size"] or size for row in self._earlier["tiles"].values()}
        for key in keys:
            for stage in self.requested:
                remove_artefacts(self.store, key, stage, size)
                if stage == "tiles":
                    self.store.global_image(key, former_sizes.get(key, size)).unlink(missing_ok=True)

    def remove_partial_files(self) -> None:
        """Remove what a killed run of this batch left between writing and renaming; its journal tells of it."""
        if not any(self._touched.values()):
            return
        keys = [artefact_key(image.image_id) for image in self.images]
        remove_partial_files(self.store, keys, self.configuration.tiling.global_size)
        for stage in self.requested:
            index = self.store.stage_index(self.lane, stage, self.batch)
            for path in sorted(index.parent.glob(f".{index.name}.*{TEMPORARY_SUFFIX}")):
                path.unlink(missing_ok=True)

    def write_indexes(self) -> None:
        """Write the indexes that changed and remove their journals."""
        for stage in self.requested:
            rows = self._rows[stage]
            index = self.store.stage_index(self.lane, stage, self.batch)
            reference = self._reference if stage != "roi_masks" else None
            digest = None if reference is None else reference_color_digest(reference)
            unchanged = not self._touched[stage] and self._earlier[stage] == rows
            if unchanged and index.exists() and read_index_metadata(index, REFERENCE_COLOR_METADATA) == digest:
                continue
            metadata = None if digest is None else {REFERENCE_COLOR_METADATA: digest}
            write_stage_index(index, STAGE_SCHEMAS[stage], rows.values(), metadata=metadata)
            self.store.stage_journal(self.lane, stage, self.batch).unlink(missing_ok=True)

    def outcome(self, duration_s: float) -> BatchOutcome:
        for stage, outcome in self._outcomes.items():
            rows = self._rows[stage].values()
            reasons = Counter(row["quarantine_reason"] for row in rows if row["quarantine_reason"] is not None)
            outcome.n_quarantined = dict(sorted(reasons.items()))
            usable = [row for row in rows if row["quarantine_reason"] is None]
            if stage == "roi_masks":
                methods = Counter(row["method"] for row in usable if row["fallbacks"])
                outcome.n_fallback = dict(sorted(methods.items()))
            outcome.statistics = _statistics(stage, usable)
        return BatchOutcome(self._outcomes, duration_s)


_STATISTICS: dict[PreprocessStage, tuple[tuple[str, str, Callable[[list[float]], float]], ...]] = {
    "roi_masks": (
        ("roi_area_ratio_min", "area_ratio", min),
        ("roi_area_ratio_mean", "area_ratio", fmean),
        ("roi_border_touch_ratio_mean", "border_touch_ratio", fmean),
        ("roi_border_touch_ratio_max", "border_touch_ratio", max),
    ),
    "normalized_crops": tuple((f"{column}_mean", column, fmean) for column in ("mean_r", "mean_g", "mean_b")),
    "tiles": (
        ("n_tiles", "n_tiles", sum),
        ("reconstruction_abs_error_max", "reconstruction_abs_error", max),
        ("reconstruction_abs_error_mean", "reconstruction_abs_error", fmean),
        ("black_ratio_mean", "black_ratio", fmean),
    ),
}


def _statistics(stage: PreprocessStage, rows: Sequence[Row]) -> dict[str, float]:
    if not rows:
        return {}
    values = {name: reduce([row[column] for row in rows]) for name, column, reduce in _STATISTICS[stage]}
    # Counts stay whole numbers: 32 tiles would be shown as 32.0.
    return {name: value if isinstance(value, int) else float(value) for name, value in values.items()}


def _check_arguments(images: Sequence[RegisteredImage], stages: Collection[PreprocessStage], workers: int) -> None:
    unknown = set(stages) - set(STAGES)
    if unknown or not stages:
        raise ValueError(f"expected stages out of {STAGES}, found {sorted(stages)}")
    if workers < 1:
        raise ValueError(f"expected at least one worker, found {workers}")
    for key, count in Counter(artefact_key(image.image_id) for image in images).items():
        if count > 1:
            raise ValueError(f"{key}: {count} images of the batch share this artefact name; rename all but one")


@contextmanager
def _single_threaded_opencv() -> Iterator[None]:
    """Keep OpenCV from starting threads of its own beside ours."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
