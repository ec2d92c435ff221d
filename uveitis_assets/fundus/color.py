"""Photometric normalization of a crop, with statistics from the eroded retina mask.

Pixels are mapped in bands of rows that stay in the core's cache. The mask is given; the reference colours of
``reinhard_lab_ref`` come from ``reference_color``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.fundus.channel_signal import CHANNELS, channels_without_signal
from uveitis_assets.fundus.channel_statistics import ChannelStatistics, ChannelSummation, ChannelSums, median_level
from uveitis_assets.fundus.configuration import NormalizationConfiguration
from uveitis_assets.imaging.lab import copy_luminance, lab_converter
from uveitis_assets.imaging.reusable_buffers import thread_buffer

# A band and its temporary arrays (up to eight bytes a pixel) stay in the core's second cache. Smaller ones cost two
# threads a tenth of their speed: each call takes the interpreter lock again (measured).
BAND_PIXELS = 1 << 17
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


def erode_mask(mask: Pixels, radius_px: int) -> Pixels:
    """Erode a mask (H, W), 0 or 255, by an ellipse; unchanged where that would empty it.

    The ellipse is ``2 * radius_px + 1`` px wide.

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
    band_pixels: int = BAND_PIXELS,
) -> tuple[Pixels, dict[str, Any]]:
    """Normalize the colours of a crop inside its mask; outside it becomes black.

    ``none`` keeps the colours; ``zscore_rgb`` maps mean -/+ ``zscore_clip`` standard deviations to 0 .. 255;
    ``grayworld`` scales each channel so that its mean becomes the mean of the three; ``clahe_luminance`` equalizes L
    of LAB locally; ``reinhard_lab_ref`` gives LAB the reference's mean and deviation (Reinhard et al. 2001, "Color
    Transfer between Images", in 8-bit OpenCV LAB as the earlier scripts did).

    A channel that holds only noise of its encoding (``channels_without_signal``) is not stretched: ``zscore_rgb`` moves
    its mean to the middle as of any other and leaves its scale, so that the noise stays as small as it is in the file
    and the channel says "no deviation"; ``grayworld`` leaves it alone, and out of the mean.

    Args:
        crop_rgb: (H, W, 3) uint8 RGB; a view is fine.
        mask: (H, W) uint8, 0 or 255.
        configuration: method and its numbers.
        reference: needed by ``reinhard_lab_ref``.
        out: (H, W, 3) uint8 to render into; a view into a larger image is fine.
        band_pixels: pixels mapped at a time; the result does not depend on it.

    Returns:
        The normalized crop and the content of norm_meta: method, mean and std (RGB, of the input); where there are
        any, channels_without_signal (names); and for ``reinhard_lab_ref`` ref_lab_mean and ref_lab_std.

    Raises:
        ValueError: ``reinhard_lab_ref`` without a reference, or an empty mask.
    """
    if cv2.countNonZero(mask) == 0:
        raise ValueError("expected a mask with at least one pixel set, found an empty one")
    if out is None:
        out = np.empty(crop_rgb.shape, dtype=np.uint8)
    inner = erode_mask(mask, configuration.stats_erode_px)
    boxes = list(_boxes(mask, band_pixels))
    sums = _sums_of_boxes(crop_rgb, inner, boxes)
    # An ROI without any light keeps its black pixels: there is nothing else to take statistics from.
    n_excluded = sums.n_black if sums.n_black < sums.n_pixels else 0
    rgb = sums.without(n_excluded, (0, 0, 0)).statistics()
    metadata: dict[str, Any] = {"method": configuration.method, "mean": list(rgb.mean), "std": list(rgb.std)}
    empty = channels_without_signal(crop_rgb, inner)
    if empty:
        metadata["channels_without_signal"] = list(empty)
    has_signal = np.array([name not in empty for name in CHANNELS])
    match configuration.method:
        case "none":
            band_map: BandMap = _copy(crop_rgb)
        case "zscore_rgb":
            band_map = _scaled(crop_rgb, _zscore_scaling(rgb, configuration.zscore_clip, has_signal))
        case "grayworld":
            band_map = _scaled(crop_rgb, _grayworld_scaling(rgb, has_signal))
        case "clahe_luminance":
            band_map = _equalize_luminance(crop_rgb, mask, boxes, inner, configuration, band_pixels=band_pixels)
        case "reinhard_lab_ref":
            if reference is None:
                raise ValueError("reinhard_lab_ref needs reference colours: materialize reference_color first")
            metadata |= {"ref_lab_mean": list(reference.lab_mean), "ref_lab_std": list(reference.lab_std)}
            band_map = _match_lab(crop_rgb, boxes, inner, n_excluded, reference)
    _render(mask, boxes, out, band_map)
    return out, metadata


def _bands(shape: tuple[int, ...], band_pixels: int) -> Iterator[slice]:
    rows = max(1, band_pixels // shape[1])
    for start in range(0, shape[0], rows):
        yield slice(start, min(shape[0], start + rows))


def _boxes(mask: Pixels, band_pixels: int) -> Iterator[Box]:
    """Rows and columns of the mask's bounding box in each band that it reaches."""
    for rows in _bands(mask.shape, band_pixels):
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

    A lookup table in float64 is the reference; cv2.transform, which computes the same in float32 at twice the
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


def _zscore_scaling(statistics: ChannelStatistics, clip: float, has_signal: NDArray[np.bool_]) -> Scaling:
    gain = 255.0 / (2.0 * clip * np.maximum(np.asarray(statistics.std), _SMALLEST_STD))
    gain = np.where(has_signal, gain, 1.0)
    return Scaling(gain, 127.5 - gain * np.asarray(statistics.mean))


def _grayworld_scaling(statistics: ChannelStatistics, has_signal: NDArray[np.bool_]) -> Scaling:
    mean = np.asarray(statistics.mean)
    gain = np.divide(mean[has_signal].mean(), mean, out=np.ones(3), where=has_signal & (mean > 0))
    return Scaling(gain, np.zeros(3))


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
    *,
    band_pixels: int,
) -> BandMap:
    """CLAHE of L inside the mask's bounding box, with L's median outside the mask.

    The dark surround would pull the outer cells' histograms.
    """
    lab = thread_buffer("color.lab", (*mask.shape, 4))
    luminance = thread_buffer("color.luminance", mask.shape)
    for box in _lab_boxes(image_rgb, boxes, lab):
        copy_luminance(lab[box], luminance[box])
    median = median_level(luminance, inner)
    x, y, width, height = cv2.boundingRect(mask)
    box = (slice(y, y + height), slice(x, x + width))
    filled, inside = luminance[box], mask[box]
    for rows in _bands(filled.shape, band_pixels):
        outside = cv2.bitwise_not(inside[rows])
        cv2.copyTo(np.full_like(outside, median), outside, filled[rows])
    grid = (configuration.clahe_grid, configuration.clahe_grid)
    cv2.createCLAHE(configuration.clahe_clip_limit, grid).apply(filled, dst=filled)

    def band_map(rows: slice, columns: slice, band: Pixels) -> None:
        lab_converter.to_rgb(lab[rows, columns], band, luminance[rows, columns])

    return band_map
