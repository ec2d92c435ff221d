"""Photometric normalization of a crop: statistics from the eroded retina mask, a lookup table per channel, black
outside the mask. It finds no mask and writes no files; the reference colours come from reference_color.py.

All statistics are exact (integer sums or float64): float32 sums over ten million pixels are off by several levels.
Pixels are mapped in bands of rows that stay in the core's cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.fundus.configuration import NormalizationConfiguration
from uveitis_assets.imaging.lab import copy_luminance, lab_converter
from uveitis_assets.imaging.reusable_buffers import thread_buffer

# A band and its temporary arrays (up to eight bytes a pixel) stay in the core's second cache. Smaller ones cost two
# threads a tenth of their speed: each call takes the interpreter lock again (measured).
_BAND_PIXELS = 1 << 17
# 8-bit LAB of (0, 0, 0).
_BLACK_LAB = (0, 128, 128)
# Reinhard's scale grows without bound on a flat channel; 8-bit LAB has no contrast below one level.
_SMALLEST_LAB_STD = 1.0
# A flat channel has no z-score; any small number keeps it grey.
_SMALLEST_STD = 1e-6
_PROBE_PIXELS = 67
_ERODED_BLOCK_PX = 256

Pixels = NDArray[np.uint8]
# Rows and columns.
Box = tuple[slice, slice]
# Writes the normalized pixels of rows and columns inside the mask's bounding box into an array of their size.
BandMap = Callable[[slice, slice, Pixels], object]


@dataclass(frozen=True, slots=True)
class ReferenceColor:
    """Mean and standard deviation of 8-bit OpenCV LAB of regular fundus photographs, per channel L, a, b."""

    lab_mean: tuple[float, float, float]
    lab_std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """Mean and standard deviation (of the population) of three channels, grey levels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def erode_mask(mask: Pixels, radius_px: int) -> Pixels:
    """Erode a (H, W) mask, 0 or 255, by an ellipse of (2 * radius_px + 1) px; unchanged where that would empty it.

    What lies outside the array does not erode.
    """
    if radius_px == 0:
        return mask
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1, 2 * radius_px + 1))
    eroded = np.empty(mask.shape, dtype=np.uint8)
    # Only blocks that the outline runs through take work; they are large beside what they need of their neighbours.
    side = _ERODED_BLOCK_PX + 8 * radius_px
    for y, x in itertools.product(range(0, mask.shape[0], side), range(0, mask.shape[1], side)):
        top, left = max(0, y - radius_px), max(0, x - radius_px)
        block = eroded[y : y + side, x : x + side]
        surrounded = mask[top : y + side + radius_px, left : x + side + radius_px]
        n_set = cv2.countNonZero(surrounded)
        if n_set == 0:
            block[:] = 0
        elif n_set == surrounded.size:
            block[:] = 255
        else:
            block[:] = cv2.erode(surrounded, kernel)[y - top :, x - left :][: block.shape[0], : block.shape[1]]
    return eroded if cv2.countNonZero(eroded) else mask


@dataclass(frozen=True, slots=True)
class ChannelSums:
    """Exact sums and sums of squares of three channels over ``n_pixels``, ``n_black`` of which are zero in all."""

    n_pixels: int
    n_black: int
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]

    def without(self, n_pixels: int, color: tuple[int, int, int]) -> ChannelSums:
        """The sums with ``n_pixels`` of one colour taken out."""
        levels = np.asarray(color, dtype=np.float64)
        return ChannelSums(
            self.n_pixels - n_pixels, 0, self.sums - n_pixels * levels, self.squares - n_pixels * levels**2
        )

    def statistics(self) -> ChannelStatistics:
        mean = self.sums / self.n_pixels
        std = np.sqrt(np.maximum(self.squares / self.n_pixels - mean**2, 0.0))
        return ChannelStatistics(tuple(mean.tolist()), tuple(std.tolist()))


class ChannelSummation:
    """Sums the first three channels of uint8 bands (H, W, 3 or 4) inside masks (H, W), 0 or 255.

    Exact: all numbers are integers below 2**53. Planes of a few rows are twice as fast as cv2.meanStdDev.
    """

    def __init__(self) -> None:
        self._n_pixels = self._n_lit = 0
        self._sums, self._squares = np.zeros(3), np.zeros(3)
        self._buffers: list[Pixels] = []

    def add(self, band: Pixels, mask: Pixels) -> None:
        n_inside = cv2.countNonZero(mask)
        if n_inside == 0:
            return
        if not self._buffers or self._buffers[0].shape != mask.shape:
            self._buffers = [np.empty(mask.shape, dtype=np.uint8) for _ in range(band.shape[2])]
        planes = cv2.split(band, self._buffers)[:3]
        if n_inside < mask.size:
            planes = [cv2.bitwise_and(plane, mask, dst=plane) for plane in planes]
        self._n_pixels += n_inside
        # One channel without a zero tells that no pixel is black.
        if any(cv2.countNonZero(plane) == n_inside for plane in planes):
            self._n_lit += n_inside
        else:
            self._n_lit += cv2.countNonZero(cv2.max(cv2.max(planes[0], planes[1]), planes[2]))
        self._sums += [cv2.sumElems(plane)[0] for plane in planes]
        # Some builds of OpenCV square a rounded root: the nearest integer is the sum.
        self._squares += [round(cv2.norm(plane, cv2.NORM_L2SQR)) for plane in planes]

    def total(self) -> ChannelSums:
        return ChannelSums(self._n_pixels, self._n_pixels - self._n_lit, self._sums, self._squares)


def channel_sums(image: Pixels, mask: Pixels) -> ChannelSums:
    """Exact sums of a (H, W, 3) uint8 image inside a (H, W) mask, 0 or 255."""
    return _sums_of_boxes(image, mask, _boxes(mask))


def _sums_of_boxes(image: Pixels, mask: Pixels, boxes: Iterable[Box]) -> ChannelSums:
    summation = ChannelSummation()
    for box in boxes:
        summation.add(image[box], mask[box])
    return summation.total()


def normalize_crop(
    crop_rgb: Pixels,
    mask: Pixels,
    configuration: NormalizationConfiguration,
    reference: ReferenceColor | None = None,
    *,
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
        out: (H, W, 3) uint8 to render into; a view into a larger image is fine.

    Returns:
        The normalized crop and the content of norm_meta: method, mean and std (RGB, of the input) and, for
        ``reinhard_lab_ref``, ref_lab_mean and ref_lab_std.

    Raises:
        ValueError: ``reinhard_lab_ref`` without a reference, or an empty mask.
    """
    if cv2.countNonZero(mask) == 0:
        raise ValueError("expected a mask with at least one pixel set, found an empty one")
    if out is None:
        out = np.empty(crop_rgb.shape, dtype=np.uint8)
    inner = erode_mask(mask, configuration.stats_erode_px)
    boxes = list(_boxes(mask))
    sums = _sums_of_boxes(crop_rgb, inner, boxes)
    # An ROI without any light keeps its black pixels: there is nothing else to take statistics from.
    n_excluded = sums.n_black if sums.n_black < sums.n_pixels else 0
    rgb = sums.without(n_excluded, (0, 0, 0)).statistics()
    metadata: dict[str, Any] = {"method": configuration.method, "mean": list(rgb.mean), "std": list(rgb.std)}
    match configuration.method:
        case "none":
            band_map: BandMap = _copy(crop_rgb)
        case "zscore_rgb":
            band_map = _scaled(crop_rgb, _zscore_scaling(rgb, configuration.zscore_clip))
        case "grayworld":
            band_map = _scaled(crop_rgb, _grayworld_scaling(rgb))
        case "clahe_luminance":
            band_map = _equalize_luminance(crop_rgb, mask, boxes, inner, configuration)
        case "reinhard_lab_ref":
            if reference is None:
                raise ValueError("reinhard_lab_ref needs reference colours: materialize reference_color first")
            metadata |= {"ref_lab_mean": list(reference.lab_mean), "ref_lab_std": list(reference.lab_std)}
            band_map = _match_lab(crop_rgb, boxes, inner, n_excluded, reference)
    _render(mask, boxes, out, band_map)
    return out, metadata


def _bands(shape: tuple[int, ...]) -> Iterator[slice]:
    rows = max(1, _BAND_PIXELS // shape[1])
    for start in range(0, shape[0], rows):
        yield slice(start, min(shape[0], start + rows))


def _boxes(mask: Pixels) -> Iterator[Box]:
    """Rows and columns of the mask's bounding box in each band that it reaches."""
    for rows in _bands(mask.shape):
        x, y, width, height = cv2.boundingRect(mask[rows])
        if width:
            yield slice(rows.start + y, rows.start + y + height), slice(x, x + width)


def _render(mask: Pixels, boxes: Iterable[Box], out: Pixels, band_map: BandMap) -> None:
    """Fill ``out`` with ``band_map`` of every band where the mask is set and with black elsewhere."""
    black_from = 0
    for rows, columns in boxes:
        out[black_from : rows.start] = 0
        out[rows, : columns.start] = 0
        out[rows, columns.stop :] = 0
        black_from = rows.stop
        band, inside = out[rows, columns], mask[rows, columns]
        band_map(rows, columns, band)
        if cv2.countNonZero(inside) < inside.size:
            cv2.copyTo(np.zeros_like(band), cv2.bitwise_not(inside), band)
    out[black_from:] = 0


def _copy(image: Pixels) -> BandMap:
    return lambda rows, columns, band: np.copyto(band, image[rows, columns])


def _scaled(image: Pixels, scaling: Scaling) -> BandMap:
    return lambda rows, columns, band: scaling.apply(image[rows, columns], band)


def _levels() -> NDArray[np.float64]:
    return np.arange(256, dtype=np.float64)[:, None]


class Scaling:
    """``round(gain * level + offset)`` of each channel, half to even, clipped to 0 .. 255.

    A lookup table in float64 says what is right; cv2.transform, which computes the same in float32 at twice the
    speed, is used when it agrees with the table for all levels, as it nearly always does.
    """

    def __init__(self, gain: NDArray[np.float64], offset: NDArray[np.float64]) -> None:
        table = np.clip(np.rint(_levels() * gain + offset), 0, 255).astype(np.uint8)
        self._table = table.reshape(1, 256, len(gain))
        self._matrix = np.column_stack([np.diag(gain), offset]).astype(np.float32)
        # One level a row, and rows apart in memory: each goes through OpenCV's vector loop and its scalar remainder.
        probe = np.empty((256, _PROBE_PIXELS + 1, len(gain)), dtype=np.uint8)[:, :_PROBE_PIXELS]
        probe[:] = np.arange(256, dtype=np.uint8)[:, None, None]
        self._float32_agrees = np.array_equal(
            cv2.transform(probe, self._matrix), np.broadcast_to(table[:, None], probe.shape)
        )

    def apply(self, image: Pixels, out: Pixels) -> None:
        """Scale (H, W, C) uint8 into ``out``."""
        if self._float32_agrees:
            cv2.transform(image, self._matrix, dst=out)
        else:
            cv2.LUT(image, self._table, dst=out)


def _zscore_scaling(statistics: ChannelStatistics, clip: float) -> Scaling:
    gain = 255.0 / (2.0 * clip * np.maximum(np.asarray(statistics.std), _SMALLEST_STD))
    return Scaling(gain, 127.5 - gain * np.asarray(statistics.mean))


def _grayworld_scaling(statistics: ChannelStatistics) -> Scaling:
    mean = np.asarray(statistics.mean)
    return Scaling(np.divide(mean.mean(), mean, out=np.ones(3), where=mean > 0), np.zeros(3))


def _lab_boxes(image_rgb: Pixels, boxes: Iterable[Box], lab: Pixels) -> Iterator[Box]:
    """Convert to LAB in four channels (see lab.py) box by box; each box comes while it is in the cache."""
    lab_converter.announce(lab.size // 4)
    for box in boxes:
        lab_converter.to_lab(image_rgb[box], lab[box])
        yield box


def _match_lab(
    image_rgb: Pixels, boxes: Iterable[Box], inner: Pixels, n_black: int, reference: ReferenceColor
) -> BandMap:
    lab = thread_buffer("color.lab", (*inner.shape, 4))
    summation = ChannelSummation()
    for box in _lab_boxes(image_rgb, boxes, lab):
        summation.add(lab[box], inner[box])
    source = summation.total().without(n_black, _BLACK_LAB).statistics()
    gain = np.asarray(reference.lab_std) / np.maximum(np.asarray(source.std), _SMALLEST_LAB_STD)
    offset = np.asarray(reference.lab_mean) - gain * np.asarray(source.mean)
    scaling = Scaling(np.append(gain, 0.0), np.append(offset, 0.0))

    def band_map(rows: slice, columns: slice, band: Pixels) -> None:
        matched = np.empty((*band.shape[:2], 4), dtype=np.uint8)
        scaling.apply(lab[rows, columns], matched)
        lab_converter.to_rgb(matched, band)

    return band_map


def _equalize_luminance(
    image_rgb: Pixels,
    mask: Pixels,
    boxes: Iterable[Box],
    inner: Pixels,
    configuration: NormalizationConfiguration,
) -> BandMap:
    """CLAHE of L inside the mask's bounding box; outside the mask L is its median, so that the dark surround does not
    pull the outer cells' histograms."""
    lab = thread_buffer("color.lab", (*mask.shape, 4))
    luminance = thread_buffer("color.luminance", mask.shape)
    for box in _lab_boxes(image_rgb, boxes, lab):
        copy_luminance(lab[box], luminance[box])
    median = _median_level(luminance, inner)
    x, y, width, height = cv2.boundingRect(mask)
    box = (slice(y, y + height), slice(x, x + width))
    filled, inside = luminance[box], mask[box]
    for rows in _bands(filled.shape):
        outside = cv2.bitwise_not(inside[rows])
        cv2.copyTo(np.full_like(outside, median), outside, filled[rows])
    grid = (configuration.clahe_grid, configuration.clahe_grid)
    cv2.createCLAHE(configuration.clahe_clip_limit, grid).apply(filled, dst=filled)

    def band_map(rows: slice, columns: slice, band: Pixels) -> None:
        lab_converter.to_rgb(lab[rows, columns], band, luminance[rows, columns])

    return band_map


def _median_level(plane: Pixels, mask: Pixels) -> int:
    """Median of the levels above 0 inside a mask, of every fourth row: exact enough to fill with, and much sooner.

    All rows count where those hold no such level.
    """
    counts = _counts_of_levels_above_0(plane[::4], mask[::4])
    if not counts.any():
        counts = _counts_of_levels_above_0(plane, mask)
    cumulated = np.cumsum(counts)
    return 1 + int(np.searchsorted(cumulated, cumulated[-1] / 2.0))


def _counts_of_levels_above_0(plane: Pixels, mask: Pixels) -> NDArray[np.float64]:
    return cv2.calcHist([plane], [0], mask, [256], [0, 256])[1:].ravel().astype(np.float64)
