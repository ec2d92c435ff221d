"""Reads the ``segmentation`` of a COCO annotation, whichever of its two forms it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.labels.masks.pixel_regions import decode_run_lengths


def rings_of_segmentation(segmentation: Sequence[Sequence[float]] | Mapping[str, Any]) -> list[NDArray[np.float64]]:
    """Outlines of an annotation, (n, 2) each in px at pixel edges; of run lengths, borders of holes too.

    Raises:
        ValueError: run lengths that are compressed or do not add up to their size.
    """
    if isinstance(segmentation, Mapping):
        return rings_of_mask(decode_run_lengths(segmentation))
    return [np.reshape(polygon, (-1, 2)).astype(np.float64) for polygon in segmentation]


def rings_of_mask(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Borders of a mask through the centres of its outermost pixels, px at pixel edges; for drawing."""
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return [np.asarray(contour, np.float64).reshape(-1, 2) + 0.5 for contour in contours]
