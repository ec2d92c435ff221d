"""Which channels of a photograph hold an image of the retina, and which only the noise of their encoding.

Ultra-widefield instruments scan with a red and a green laser. What stands in blue comes from the file's encoding: the
rounding of colour transform and JPEG coefficients, a few grey levels without any structure.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CHANNELS = ("red", "green", "blue")

# JPEG quantizes blocks of 8 px, and chroma at half resolution blocks of 16 px (ITU-T T.81, units of 2 x 2 blocks),
# each for itself: the noise of two pixels 16 px apart is independent, what they have in common is the image.
_APART_PX = 16
# Share of the variance in common with pixels 16 px apart below which noise has more than twice the signal's standard
# deviation: 1 / (1 + 2**2).
_SMALLEST_SHARE = 0.2
# A channel is weak whose deviation is below this share of the strongest channel's: stretching both to the same range
# would amplify its noise at least three times more.
_WEAK = 1 / 3
# Percentiles that levels are limited to: reflexes and pixels of the rim would hide what most pixels have in common.
_LIMITS = (1, 99)
# The share's standard error without any signal is one over the root of the number of pairs: 0.2 is four of them.
_FEWEST_PAIRS = 400
# Rows are left out of images with more points than this: the share's error is 0.01, and each costs a cache miss.
_GRID_POINTS = 8192


def channels_without_signal(image_rgb: NDArray[np.uint8], mask: NDArray[np.uint8]) -> tuple[str, ...]:
    """Name the channels that hold noise only, judged by the correlation of pixels 16 px apart.

    That correlation estimates the signal's share of a channel's variance, as coding noise is independent there. A
    channel is without signal where the share is below 0.2 while another channel's is not, and its deviation is below a
    third of the strongest channel's: where none has structure, or the mask holds fewer than 400 pairs, nothing can be
    told, and none is named. A constant channel has no signal.

    Args:
        image_rgb: (H, W, 3) uint8 RGB at the resolution of the file; shrunken noise is correlated further.
        mask: (H, W) uint8, 0 or 255: the pixels that count, without pure black.

    Returns:
        Names of channels out of ``CHANNELS``, in their order.
    """
    statistics = signal_shares(image_rgb, mask)
    if statistics is None:
        return ()
    shares, deviations = statistics
    if shares.max() < _SMALLEST_SHARE:
        return ()
    empty = (shares < _SMALLEST_SHARE) & (deviations < _WEAK * deviations.max())
    return tuple(name for name, is_empty in zip(CHANNELS, empty, strict=True) if is_empty)


def signal_shares(
    image_rgb: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Share of each channel's variance in common with pixels 16 px beside, and its deviation; None if too few."""
    row_steps = max(1, mask.size // (_APART_PX**2 * _GRID_POINTS))
    step = row_steps * _APART_PX
    grid = (slice(min(step, len(mask)) // 2, None, step), slice(_APART_PX // 2, None, _APART_PX))
    levels = image_rgb[grid].astype(np.float64)
    inside = (mask[grid] > 0) & levels.any(axis=2)
    if not inside.any():
        return None
    levels = np.clip(levels, *np.percentile(levels[inside], _LIMITS, axis=0))
    counted = levels[inside]
    deviation = levels - counted.mean(axis=0)
    both = inside[:, :-1] & inside[:, 1:]
    products = (deviation[:, :-1] * deviation[:, 1:])[both].sum(axis=0)
    n_pairs = np.count_nonzero(both)
    if n_pairs < _FEWEST_PAIRS:
        return None
    variance = counted.var(axis=0)
    shares = np.divide(products / n_pairs, variance, out=np.zeros(3), where=variance > 0)
    return shares, np.sqrt(variance)
