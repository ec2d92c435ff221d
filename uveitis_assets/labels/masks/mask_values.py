"""Which pixels of a mask are lesion, decided after a look at its values.

A mask is two-valued, or holds several flat levels (class or instance numbers), or is grey: former JPEG files carry
noise around each lesion, interpolated masks soft rims. Taken as lesion wherever it is not black, a grey mask has larger
lesions, some of them merged, and specks that are none; it is cut at half the height between background and lesions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# Brightest level of an 8-bit file that compression noise reaches without any lesion.
NOISE_LEVEL = 32
# Levels nearer to black or to the lesions' own level than this share are noise, whatever their shape.
NOISE_SHARE = 1 / 8
# From this share of flat grey pixels on, grey levels are numbers of classes or lesions.
FLAT_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class MarkedPixels:
    """Lesion pixels of a mask, bool (height, width).

    ``note`` says how a grey mask was read, else it is empty.
    """

    marked: NDArray[np.bool_]
    note: str = ""


def marked_pixels(levels: NDArray[Any], alpha: NDArray[Any] | None, *, lossy: bool = False) -> MarkedPixels:
    """Lesion pixels of a mask: those that are opaque and not black, in grey masks those above half height.

    Args:
        levels: strongest channel, shape (height, width), any number type; 0 is black.
        alpha: opacity, same shape, 0 is transparent; None: opaque.
        lossy: the file is compressed as JPEG, so that its levels are never exact.

    Raises:
        ValueError: values that are not finite, black lesions on transparent, or a mask so dark that lesions cannot be
            told from noise.
    """
    if levels.dtype.kind == "f" and not np.isfinite(levels).all():
        raise ValueError("found values that are not finite, expected numbers; write the mask again")
    if alpha is not None:
        levels = _visible(levels, alpha)
    values = _distinct(levels)
    brightest = float(values[-1])
    dark = levels.dtype == np.uint8 and 0 < brightest < NOISE_LEVEL
    if lossy and dark:
        raise ValueError(_too_dark(brightest))
    if len(values) <= 2:
        return MarkedPixels(levels > 0)
    if not lossy and _is_flat(levels, brightest):
        return MarkedPixels(levels > 0)
    if dark:
        raise ValueError(_too_dark(brightest))
    middle = (float(values[0]) + brightest) / 2
    above = levels > middle
    background, lesion = float(np.median(levels[~above])), float(np.median(levels[above]))
    not_background = levels > background
    n_grey, n_visible = int((not_background & (levels < lesion)).sum()), int(not_background.sum())
    marked: NDArray[np.bool_] = levels > (background + lesion) / 2
    note = (
        f"{n_grey} of {n_visible} pixels that are not background are grey ({n_grey / n_visible:.1%}): compression "
        f"noise or soft rims; cut at half height, {_number((background + lesion) / 2)} of {_number(lesion)}; a mask "
        "that was never compressed or resized is more exact"
    )
    return MarkedPixels(marked, note)


def _visible(levels: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    """Levels, 0 where transparent; where opacity has soft rims, levels weighted by it."""
    if not levels.any() and alpha.any() and not alpha.all():
        raise ValueError("found black on transparent, expected lesions in another colour than black")
    if len(_distinct(alpha)) <= 2:
        return np.where(alpha > 0, levels, 0).astype(levels.dtype)
    shown = levels * (alpha / float(alpha.max()))
    return np.rint(shown).astype(levels.dtype) if levels.dtype.kind != "f" else shown


def _distinct(levels: NDArray[Any]) -> NDArray[Any]:
    """Distinct values in ascending order."""
    if levels.dtype == np.bool_:
        levels = levels.view(np.uint8)
    if levels.dtype.kind == "u" and levels.dtype.itemsize <= 2:
        return np.flatnonzero(np.bincount(levels.ravel()))
    return np.unique(levels)


def _is_flat(levels: NDArray[Any], brightest: float) -> bool:
    """Whether grey levels fill areas of their own, as numbers do.

    Noise and rims change from pixel to pixel.
    """
    shown = levels > 0
    x, y, width, height = cv2.boundingRect(shown.view(np.uint8))
    shown, values = shown[y : y + height, x : x + width], levels[y : y + height, x : x + width]
    grey = shown & (values >= NOISE_SHARE * brightest) & (values <= (1 - NOISE_SHARE) * brightest)
    if not grey.any():
        return False
    exact = values.astype(np.float64)
    square = np.ones((3, 3), np.uint8)
    inside = cv2.dilate(exact, square) == cv2.erode(exact, square)
    # Lesions too small to have an inside: areas of one level on black.
    _, areas = cv2.connectedComponents(shown.view(np.uint8), connectivity=8)
    members = areas[shown]
    order = np.argsort(members, kind="stable")
    starts = np.flatnonzero(np.diff(members[order], prepend=0))
    ordered = exact[shown][order]
    of_one_level = np.minimum.reduceat(ordered, starts) == np.maximum.reduceat(ordered, starts)
    flat = inside | np.concatenate([[False], of_one_level])[areas]
    return float(flat[grey].mean()) >= FLAT_SHARE


def _too_dark(brightest: float) -> str:
    return (
        f"found levels up to {_number(brightest)} of 255 that vary, expected lesions that stand out from compression "
        "noise; write the mask as PNG with 0 and 255"
    )


def _number(value: float) -> str:
    return f"{value:.6g}"
