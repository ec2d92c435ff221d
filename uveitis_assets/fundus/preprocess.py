"""Preprocesses one batch of fundus images: ROI masks, normalized crops and tiles in one pass.

``stages.batch_run`` runs what is not done; ``preprocess_task`` has the fingerprints and files of preprocessing;
``image_stages`` computes one image.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from uveitis_assets.fundus.configuration import STAGES, PreprocessConfiguration, PreprocessStage
from uveitis_assets.fundus.preprocess_task import PreprocessTask
from uveitis_assets.landing.samples import RegisteredImage
from uveitis_assets.stages.batch_outcome import BatchOutcome
from uveitis_assets.stages.batch_run import run_batch
from uveitis_assets.storage.store import ArtefactStore


def preprocess_batch(  # noqa: PLR0917 - the batch, then what to do with it
    store: ArtefactStore,
    lane: str,
    batch: str,
    read_images: Callable[[], Sequence[RegisteredImage]],
    configuration: PreprocessConfiguration,
    stages: Collection[PreprocessStage],
    *,
    workers: int,
    code_version: str,
    progress: Callable[[int, int], None] | None = None,
) -> BatchOutcome[PreprocessStage]:
    """Brings the requested stages of all images of a batch up to date, in one pass over each image.

    Stages that were not requested are neither made nor repaired: where a requested one needs them, they are read
    back. A second process that runs the same batch waits and then finds it done.

    Args:
        store: where all artefacts are.
        lane: the lane's name.
        batch: the batch's key.
        read_images: returns all images of the batch, as they are registered then; called once no other run can touch
            their artefacts.
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
    if not stages or not set(stages) <= set(STAGES):
        raise ValueError(f"expected stages out of {STAGES}, found {sorted(stages)}")
    return run_batch(
        store,
        lane,
        batch,
        lambda: PreprocessTask(store, lane, batch, read_images(), configuration, stages, code_version=code_version),
        lock_name=lambda name: f"{lane}.{name}.preprocess",
        workers=workers,
        progress=progress,
    )
