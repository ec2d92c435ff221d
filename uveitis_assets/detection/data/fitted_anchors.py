"""Fits anchor sides to the boxes that a training shows, by k-means within each pyramid level."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.detection.configuration import DetectorConfiguration
from uveitis_assets.detection.data.labelled_split import LabelledImage
from uveitis_assets.detection.models.anchors import default_anchor_sizes

_DECIMALS = 2
_MOST_ROUNDS = 1000

Sizes = tuple[tuple[float, ...], ...]


def with_fitted_anchors(configuration: DetectorConfiguration, images: Iterable[LabelledImage]) -> DetectorConfiguration:
    """The configuration with anchor sizes of the images' boxes, unchanged without ``fit_anchors``."""
    model = configuration.model
    if not model.fit_anchors:
        return configuration
    start = model.anchor_sizes or default_anchor_sizes((model.finest_stride,))
    sizes = fitted_anchor_sizes(input_sides(images, model.input_size), start)
    return configuration.model_copy(update={"model": model.model_copy(update={"anchor_sizes": sizes})})


def input_sides(images: Iterable[LabelledImage], input_size: int) -> NDArray[np.float64]:
    """Square roots (N,) of the areas of all boxes in all tiles, px of the network's input."""
    parts = [np.zeros(0)]
    for image in images:
        for tile in image.tiles:
            boxes = tile.truth.boxes.astype(np.float64) * (input_size / max(tile.width, tile.height))
            parts.append(np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])))
    return np.concatenate(parts)


def fitted_anchor_sizes(sides: NDArray[np.float64], start: Sequence[Sequence[float]]) -> Sizes:
    """As many sides per level as ``start`` has, fitted to the boxes that are the level's own.

    A level's own are the boxes closer, as a ratio, to its sides in ``start`` than to those of its neighbours: small
    boxes need the finest map's density whatever their number. Levels with fewer distinct sides than anchors keep
    theirs.

    Args:
        sides: sides of the boxes (N,), input px, positive.
        start: sides per level, ascending, finest level first.
    """
    limits = [np.sqrt(low[-1] * high[0]) for low, high in pairwise(start)]
    level_of = np.searchsorted(limits, sides, side="right")
    fitted = []
    for level, sizes in enumerate(start):
        own = sides[level_of == level]
        if len(np.unique(own)) < len(sizes):
            fitted.append(tuple(float(size) for size in sizes))
            continue
        centres = np.exp(k_means(np.log(own), len(sizes)))
        fitted.append(tuple(np.round(centres, _DECIMALS).tolist()))
    return tuple(fitted)


def k_means(values: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Centres (k,) of Lloyd's algorithm on numbers, ascending, begun at their quantiles.

    Raises:
        ValueError: fewer distinct values than centres.
    """
    # Sums in another order differ in the last bits.
    values = np.sort(values)
    distinct = np.unique(values)
    if len(distinct) < k:
        raise ValueError(f"expected at least {k} distinct values, found {len(distinct)}")
    centres = np.quantile(values, (np.arange(k) + 0.5) / k)
    if len(np.unique(centres)) < k:
        centres = np.quantile(distinct, (np.arange(k) + 0.5) / k)
    for _ in range(_MOST_ROUNDS):
        nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, values)
        counts = np.bincount(nearest, minlength=k)
        sums = np.bincount(nearest, weights=values, minlength=k)
        moved = np.where(counts > 0, sums / np.maximum(counts, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres
