"""Photometric normalization of a crop: statistics from the eroded retina mask, a lookup table per channel, black
outside the mask. It finds no mask and writes no files; the reference colours come from reference_color.py.

All statistics are exact (integer sums or float64): float32 sums over ten million pixels are off by several levels.
Pixels are mapped in bands of rows that stay in the core's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.fundus.configuration import NormalizationConfiguration

_BAND_BYTES = 1 << 19
# Reinhard's scale grows without bound on a flat channel; 8-bit LAB has no contrast below one level.
_SMALLEST_LAB_STD = 1.0

Pixels = NDArray[np.uint8]
# Rows and columns inside the mask's bounding box to their normalized pixels.
BandMap = Callable[[slice, slice], Pixels]


@dataclass(frozen=True, slots=True)
class ReferenceColor:
    """Mean and standard deviation of 8-bit OpenCV LAB of regular fundus photographs, per channel L, a, b."""

    lab_mean: tuple[float, float, float]
    lab_std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """Mean and standard deviation (of the population) of three channels, grey levels, over ``n_pixels``."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    n_pixels: int


def statistics_mask(image_rgb: Pixels, mask: Pixels, erode_px: int) -> Pixels:
    """Pixels that statistics are taken from: the mask eroded by a disc, without pure black.

    An erosion that would empty the mask is left out; so is the exclusion of black where all is black.

    Args:
        image_rgb: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8, 0 or 255.
        erode_px: radius k of the (2k+1) x (2k+1) ellipse; what lies outside the arrays does not erode.

    Returns:
        (H, W) uint8, 0 or 255.
    """
    eroded = mask
    if erode_px > 0:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * erode_px + 1, 2 * erode_px + 1))
        eroded = np.asarray(cv2.erode(mask, kernel), dtype=np.uint8)
        if cv2.countNonZero(eroded) == 0:
            eroded = mask
    black = np.empty_like(eroded)
    for rows in _bands(image_rgb.shape):
        cv2.inRange(image_rgb[rows], (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), dst=black[rows])
    lit = np.asarray(cv2.bitwise_and(eroded, cv2.bitwise_not(black, dst=black), dst=black), dtype=np.uint8)
    return lit if cv2.countNonZero(lit) else eroded


def channel_statistics(image: Pixels, mask: Pixels) -> ChannelStatistics:
    """Exact mean and standard deviation of a (H, W, 3) uint8 image inside a (H, W) mask."""
    mean, std = cv2.meanStdDev(image, mask=mask)
    first, second, third = (float(value) for value in mean.ravel())
    std_first, std_second, std_third = (float(value) for value in std.ravel())
    return ChannelStatistics((first, second, third), (std_first, std_second, std_third), cv2.countNonZero(mask))


def normalize_crop(
    crop_rgb: Pixels,
    mask: Pixels,
    configuration: NormalizationConfiguration,
    reference: ReferenceColor | None = None,
    *,
    statistics_from: Pixels | None = None,
    out: Pixels | None = None,
) -> tuple[Pixels, dict[str, Any]]:
    """Normalize the colours of a crop inside its mask; outside it becomes black.

    ``none`` keeps the colours; ``zscore_rgb`` maps mean -/+ ``zscore_clip`` standard deviations to 0 .. 255;
    ``grayworld`` scales each channel so that its mean becomes the mean of the three; ``clahe_luminance`` equalizes L
    of LAB locally; ``reinhard_lab_ref`` gives LAB the reference's mean and deviation (Reinhard et al. 2001, "Color
    Transfer between Images", in 8-bit OpenCV LAB as the earlier scripts did).

    Args:
        crop_rgb: (H, W, 3) uint8 RGB; a view is fine.
        mask: (H, W) uint8, 0 or 255.
        configuration: method and its numbers.
        reference: needed by ``reinhard_lab_ref``.
        statistics_from: result of statistics_mask, where the caller has it already.
        out: (H, W, 3) uint8, all zero, to render into.

    Returns:
        The normalized crop and the content of norm_meta: method, mean and std (RGB, of the input) and, for
        ``reinhard_lab_ref``, ref_lab_mean and ref_lab_std.

    Raises:
        ValueError: ``reinhard_lab_ref`` without a reference, or an empty mask.
    """
    if cv2.countNonZero(mask) == 0:
        raise ValueError("expected a mask with at least one pixel set, found an empty one")
    if statistics_from is None:
        statistics_from = statistics_mask(crop_rgb, mask, configuration.stats_erode_px)
    if out is None:
        out = np.zeros_like(crop_rgb, order="C")
    rgb = channel_statistics(crop_rgb, statistics_from)
    metadata: dict[str, Any] = {"method": configuration.method, "mean": list(rgb.mean), "std": list(rgb.std)}
    if configuration.method == "none":
        _render(mask, out, lambda rows, columns: crop_rgb[rows, columns])
    elif configuration.method == "zscore_rgb":
        _render(mask, out, _lookup(crop_rgb, _zscore_table(rgb, configuration.zscore_clip)))
    elif configuration.method == "grayworld":
        _render(mask, out, _lookup(crop_rgb, _grayworld_table(rgb)))
    elif configuration.method == "clahe_luminance":
        _render(mask, out, _equalize_luminance(crop_rgb, mask, statistics_from, configuration))
    else:
        if reference is None:
            raise ValueError("reinhard_lab_ref needs reference colours: materialize reference_color first")
        metadata |= {"ref_lab_mean": list(reference.lab_mean), "ref_lab_std": list(reference.lab_std)}
        _render(mask, out, _match_lab(crop_rgb, statistics_from, reference))
    return out, metadata


def _bands(shape: tuple[int, ...]) -> Iterator[slice]:
    rows = max(1, _BAND_BYTES // (3 * shape[1]))
    for start in range(0, shape[0], rows):
        yield slice(start, min(shape[0], start + rows))


def _render(mask: Pixels, out: Pixels, band_map: BandMap) -> None:
    """Write ``band_map`` of every band into ``out`` where the mask is set."""
    for rows in _bands(mask.shape):
        x, y, width, height = cv2.boundingRect(mask[rows])
        if width:
            box = slice(rows.start + y, rows.start + y + height), slice(x, x + width)
            cv2.copyTo(band_map(*box), mask[box], out[box])


def _lookup(image: Pixels, table: Pixels) -> BandMap:
    return lambda rows, columns: np.asarray(cv2.LUT(image[rows, columns], table), dtype=np.uint8)


def _table(values: NDArray[np.float64]) -> Pixels:
    """Lookup table of cv2.LUT from (256, 3) values: rounded half to even, clipped to 0 .. 255."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8).reshape(1, 256, 3)


def _levels() -> NDArray[np.float64]:
    return np.arange(256, dtype=np.float64)[:, None]


def _zscore_table(statistics: ChannelStatistics, clip: float) -> Pixels:
    std = np.maximum(np.asarray(statistics.std), 1e-6)
    z = np.clip((_levels() - np.asarray(statistics.mean)) / std, -clip, clip)
    return _table((z + clip) / (2.0 * clip) * 255.0)


def _grayworld_table(statistics: ChannelStatistics) -> Pixels:
    mean = np.asarray(statistics.mean)
    gain = np.divide(mean.mean(), mean, out=np.ones(3), where=mean > 0)
    return _table(_levels() * gain)


def _rgb_to_lab(image_rgb: Pixels) -> Pixels:
    lab = np.empty_like(image_rgb, order="C")
    for rows in _bands(image_rgb.shape):
        cv2.cvtColor(image_rgb[rows], cv2.COLOR_RGB2LAB, dst=lab[rows])
    return lab


def _match_lab(image_rgb: Pixels, statistics_from: Pixels, reference: ReferenceColor) -> BandMap:
    lab = _rgb_to_lab(image_rgb)
    source = channel_statistics(lab, statistics_from)
    scale = np.asarray(reference.lab_std) / np.maximum(np.asarray(source.std), _SMALLEST_LAB_STD)
    table = _table((_levels() - np.asarray(source.mean)) * scale + np.asarray(reference.lab_mean))

    def band_map(rows: slice, columns: slice) -> Pixels:
        return np.asarray(cv2.cvtColor(cv2.LUT(lab[rows, columns], table), cv2.COLOR_LAB2RGB), dtype=np.uint8)

    return band_map


def _equalize_luminance(
    image_rgb: Pixels, mask: Pixels, statistics_from: Pixels, configuration: NormalizationConfiguration
) -> BandMap:
    """CLAHE of L inside the mask's bounding box; outside the mask L is its median, so that the dark surround does not
    pull the outer cells' histograms."""
    lab = _rgb_to_lab(image_rgb)
    x, y, width, height = cv2.boundingRect(mask)
    box = (slice(y, y + height), slice(x, x + width))
    luminance = cv2.extractChannel(lab[box], 0)
    histogram = cv2.calcHist([luminance], [0], np.ascontiguousarray(statistics_from[box]), [256], [0, 256]).ravel()
    cumulated = np.cumsum(histogram, dtype=np.float64)
    median = int(np.searchsorted(cumulated, cumulated[-1] / 2.0))
    filled = np.full((height, width), median, dtype=np.uint8)
    cv2.copyTo(luminance, mask[box], filled)
    grid = (configuration.clahe_grid, configuration.clahe_grid)
    equalized = cv2.createCLAHE(configuration.clahe_clip_limit, grid).apply(filled)

    def band_map(rows: slice, columns: slice) -> Pixels:
        band = lab[rows, columns]
        inside_box = equalized[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
        cv2.insertChannel(inside_box, band, 0)
        return np.asarray(cv2.cvtColor(band, cv2.COLOR_LAB2RGB), dtype=np.uint8)

    return band_map
