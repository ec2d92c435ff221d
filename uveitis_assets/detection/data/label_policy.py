"""A labelled split with the lesions of chosen categories only; category ids stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from uveitis_assets.detection.data.labelled_split import LabelledSplit
from uveitis_assets.detection.inference.detections import GroundTruth
from uveitis_assets.storage.digests import short_digest


def with_classes(split: LabelledSplit, categories: Mapping[int, str]) -> LabelledSplit:
    """The split with the lesions of these categories only, every image and tile kept.

    An image that has only lesions of other classes becomes one without lesions: for this detector it is one. The
    fingerprint says which classes were kept.
    """
    if set(categories) >= set(split.categories):
        return split
    kept = sorted(set(categories) & set(split.categories))
    images = tuple(
        replace(
            image,
            truth=_of_classes(image.truth, kept),
            tiles=tuple(replace(tile, truth=_of_classes(tile.truth, kept)) for tile in image.tiles),
        )
        for image in split.images
    )
    text = f"{split.fingerprint} {kept}"
    return replace(
        split,
        images=images,
        categories={category: split.categories[category] for category in kept},
        fingerprint=short_digest(text),
    )


def _of_classes(truth: GroundTruth, kept: list[int]) -> GroundTruth:
    rows = np.isin(truth.labels, kept)
    return GroundTruth(truth.boxes[rows], truth.labels[rows], truth.corners[rows], truth.scores[rows])
