"""SAM 2 for a batch of images: loaded once, or a reason why every image has to do without.

torch and sam2 are imported only when a batch asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.fundus.configuration import Sam2Configuration
from uveitis_assets.stages.index import Row
from uveitis_assets.storage.store import ArtefactStore

if TYPE_CHECKING:
    from uveitis_assets.fundus.roi.sam2 import Sam2Segmenter

# Begins the reason of images that SAM 2 never saw, to tell them from those whose mask it got wrong.
UNAVAILABLE = "unavailable: "


@dataclass(slots=True)
class Sam2Batches:
    """A loaded segmenter, or ``failure`` and whether a chain has no other method (``required``)."""

    segmenter: Sam2Segmenter | None
    failure: str
    required: bool

    @classmethod
    def load(cls, configuration: Sam2Configuration, checkpoint: Path, *, required: bool) -> Sam2Batches:
        """Load SAM 2; where it is not ``required``, a failure becomes every image's reason to fall back.

        Raises:
            Sam2UnavailableError: it cannot be loaded and is required.
        """
        from uveitis_assets.fundus.roi.sam2 import load_sam2_segmenter
        from uveitis_assets.fundus.roi.sam2_model import Sam2UnavailableError

        try:
            return cls(load_sam2_segmenter(configuration, checkpoint), "", required)
        except Sam2UnavailableError as error:
            if required:
                raise
            return cls(None, f"{UNAVAILABLE}{error}", required)

    def segment(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8] | str]:
        """Masks (H, W) of RGB images (H, W, 3), or the reason why there is none, in the images' order.

        Raises:
            Sam2UnavailableError: it stopped working, e.g. for want of memory, and is required.
        """
        from uveitis_assets.fundus.roi.sam2_model import Sam2UnavailableError

        if self.segmenter is None:
            return [self.failure] * len(images)
        try:
            return self.segmenter.segment(images)
        except Sam2UnavailableError as error:
            if self.required:
                raise
            return [f"{UNAVAILABLE}{error}"] * len(images)

    def segment_one(self, image: NDArray[np.uint8]) -> NDArray[np.uint8] | str:
        """Mask of one image, for chains where SAM 2 comes after another method."""
        return self.segment([image])[0]


def lacked_sam2(mask_row: Row | None) -> bool:
    """Whether an image's ROI fell back, or was quarantined, because SAM 2 was not available."""
    if mask_row is None:
        return False
    reason = f"sam2_prompted: {UNAVAILABLE}"
    if mask_row["quarantine_reason"] == "roi_not_found":
        return reason in (mask_row["quarantine_detail"] or "")
    return any(fallback.startswith(reason) for fallback in mask_row.get("fallbacks") or ())


def sam2_checkpoint_file(store: ArtefactStore, configuration: Sam2Configuration) -> Path:
    """The checkpoint's place: relative paths start at the store's root."""
    return store.root / configuration.checkpoint
