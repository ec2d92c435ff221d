"""Which channels of a photograph hold an image of the retina, and which only the noise of their encoding.

Ultra-widefield instruments scan with a red and a green laser. What stands in blue comes from the file's encoding: the
rounding of colour transform and JPEG coefficients, a few grey levels without any structure.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

CHANNELS = ("red", "green", "blue")

# JPEG quantizes blocks of 8 px, and chroma at half resolution blocks of 16 px (ITU-T T.81, units of 2 x 2 blocks),
# each for itself: the noise of two pixels 16 px apart is independent, what they have in common is the image.
_APART_PX = 16
# Share of the variance in common with pixels 16 px apart below which noise has more than twice the signal's standard
# deviation: 1 / (1 + 2**2).
_SMALLEST_SHARE = 0.2
# The share's standard error without any signal is one over the root of the number of pairs: 0.2 is four of them.
_FEWEST_PAIRS = 400


def channels_without_signal(image_rgb: NDArray[np.uint8], mask: NDArray[np.uint8]) -> tuple[str, ...]:
    """Name the channels that hold noise only, judged by the correlation of pixels 16 px apart.

    That correlation estimates the signal's share of a channel's variance, as coding noise is independent there. A
    channel is without signal where the share is below 0.2 while another channel's is not: where none has structure, or
    the mask holds fewer than 400 pairs, nothing can be told, and none is named. A constant channel has no signal.

    Args:
        image_rgb: (H, W, 3) uint8 RGB at the resolution of the file; shrunken noise is correlated further.
        mask: (H, W) uint8, 0 or 255: the pixels that count, without pure black.

    Returns:
        Names of channels out of ``CHANNELS``, in their order.
    """
    shares = signal_shares(image_rgb, mask)
    if shares is None or shares.max() < _SMALLEST_SHARE:
        return ()
    return tuple(name for name, share in zip(CHANNELS, shares, strict=True) if share < _SMALLEST_SHARE)


def signal_shares(image_rgb: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.float64] | None:
    """Share of each channel's variance in common with the pixels 16 px below and beside it; None if too few."""
    grid = (slice(_APART_PX // 2, None, _APART_PX),) * 2
    levels = image_rgb[grid].astype(np.float64)
    inside = (mask[grid] > 0) & levels.any(axis=2)
    if not inside.any():
        return None
    counted = levels[inside]
    deviation = levels - counted.mean(axis=0)
    across = inside[:, :-1] & inside[:, 1:]
    down = inside[:-1] & inside[1:]
    products = (deviation[:, :-1] * deviation[:, 1:])[across].sum(axis=0)
    products += (deviation[:-1] * deviation[1:])[down].sum(axis=0)
    n_pairs = np.count_nonzero(across) + np.count_nonzero(down)
    if n_pairs < _FEWEST_PAIRS:
        return None
    variance = counted.var(axis=0)
    return cast(NDArray[np.float64], np.divide(products / n_pairs, variance, out=np.zeros(3), where=variance > 0))
