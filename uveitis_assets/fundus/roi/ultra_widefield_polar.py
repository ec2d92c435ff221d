"""An ultra-widefield photograph resampled on rays from its centre.

Padding is cut off and large haemorrhages are filled first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_WORKING_SIDE = 256  # px; lashes and vessels are about one pixel wide here, lids and rim stay sharp
N_ANGLES = 240
RADIUS_STEP = 0.01
N_RADII = 145  # reaches just past the frame's corner, 1.41
CENTRE_RADIUS = 0.55  # what lies within is taken as fundus when the image's own scales are measured
_ISLAND_RADIUS = 0.8  # a haemorrhage to be filled in ends before it
_ISLAND_BRIGHTNESS = 0.5  # times the fundus (75th percentile) within that radius
DARKEST_CONTENT = 8  # grey levels; below, a row or column of the photograph is padding


@dataclass(frozen=True)
class PolarImage:
    """Log brightness and log red/green ratio on rays from the centre: (angles, radii).

    ``inside`` marks the frame.
    """

    brightness: Floats
    red_green: Floats
    inside: NDArray[np.bool_]
    angles: Floats
    radii: Floats


def content_box(image: NDArray[np.uint8]) -> tuple[int, int, int, int] | None:
    """Rows and columns (top, bottom, left, right) without black padding and banners; ends exclusive."""
    stride = max(1, max(image.shape[:2]) // 1024)  # large originals: a sample of the pixels is enough
    brightest = brightest_channel(image[::stride, ::stride])
    threshold = max(DARKEST_CONTENT, 0.06 * percentile_of_levels(brightest, 90))
    lit = brightest > threshold
    rows = _longest_run(_middle_half(lit).mean(axis=1) > 0.05)
    columns = _longest_run(_middle_half(lit.T).mean(axis=1) > 0.05)
    if min(rows[1] - rows[0], columns[1] - columns[0]) < 8:
        return None
    height, width = image.shape[:2]
    bottom, right = min(height, rows[1] * stride), min(width, columns[1] * stride)
    return rows[0] * stride, bottom, columns[0] * stride, right


def brightest_channel(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Largest of the three channels at each pixel, ten times as fast as a maximum over the last axis."""
    red, green, blue = cv2.split(np.ascontiguousarray(image))
    return np.asarray(cv2.max(cv2.max(red, green), blue), dtype=np.uint8)


def percentile_of_levels(levels: NDArray[np.uint8], percent: float) -> float:
    """What np.percentile gives, from the histogram: five times as fast for the pixels of an image."""
    at_most = np.cumsum(np.bincount(levels.ravel(), minlength=256))
    position = percent / 100 * (levels.size - 1)
    below = int(position)
    low, high = np.searchsorted(at_most, [below, min(below + 1, levels.size - 1)], side="right")
    return float(low + (high - low) * (position - below))


def _middle_half(lines: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The middle half of each line: a banner in a corner does not make a black bar part of the photograph."""
    margin = lines.shape[1] // 4
    return lines[:, margin : lines.shape[1] - margin]


def _longest_run(lit: NDArray[np.bool_]) -> tuple[int, int]:
    """First and last (exclusive) index of the longest stretch of lit rows; others are banners."""
    changes = np.flatnonzero(np.diff(np.concatenate([[False], lit, [False]]).astype(np.int8)))
    if len(changes) == 0:
        return 0, 0
    starts, ends = changes[::2], changes[1::2]
    longest = int(np.argmax(ends - starts))
    return int(starts[longest]), int(ends[longest])


def to_polar(image: NDArray[np.uint8]) -> PolarImage:
    scale = _WORKING_SIDE / max(image.shape[:2])
    height, width = (max(16, round(side * scale)) for side in image.shape[:2])
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(image, (width, height), interpolation=interpolation).astype(np.float32)
    y, x = np.ogrid[:height, :width]
    distance = np.hypot((x + 0.5) / width * 2 - 1, (y + 0.5) / height * 2 - 1)
    small = _fill_dark_islands(small, distance)
    # Blue is left out: the instrument has a red and a green laser, what is in blue comes from the file's encoding.
    red, green = small[..., 0], small[..., 1]
    brightness = (red + green) / 2
    central = distance < CENTRE_RADIUS
    # The offset keeps sensor noise of dark parts out of the logarithms.
    offset = 0.08 * float(np.median(brightness[central])) + 1

    # Half a step, so that a mirrored image is sampled at the mirrored angles.
    angles = ((np.arange(N_ANGLES) + 0.5) * (2 * np.pi / N_ANGLES)).astype(np.float32)
    radii = ((np.arange(N_RADII) + 0.5) * RADIUS_STEP).astype(np.float32)
    map_x = (np.cos(angles)[:, None] * radii + 1) / 2 * width - 0.5
    map_y = (np.sin(angles)[:, None] * radii + 1) / 2 * height - 0.5
    inside = (map_x > -0.5) & (map_x < width - 0.5) & (map_y > -0.5) & (map_y < height - 0.5)

    def sample(plane: Floats) -> Floats:
        return cast(Floats, cv2.remap(plane, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))

    return PolarImage(
        brightness=sample(np.log(brightness + offset)),
        red_green=sample(np.log((red + offset) / (green + offset))),
        inside=inside,
        angles=angles,
        radii=radii,
    )


def _fill_dark_islands(image: Floats, distance: NDArray[np.float64]) -> Floats:
    """Replace large haemorrhages by what surrounds them; their edges would pass for the retina's.

    An island is dark and lies wholly within the field; lash shadows and the rim reach its border.
    """
    brightness = (image[..., 0] + image[..., 1]) / 2
    reference = np.percentile(brightness[distance < _ISLAND_RADIUS], 75)
    dark = (brightness < _ISLAND_BRIGHTNESS * reference).astype(np.uint8)
    # Opened, because vessels and lashes are thinner than the islands meant here.
    n_labels, labels = cv2.connectedComponents(cv2.morphologyEx(dark, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8)))
    if n_labels == 1:
        return image
    reaches_out = np.zeros(n_labels, bool)
    reaches_out[np.unique(labels[distance >= _ISLAND_RADIUS])] = True
    reaches_out[0] = True
    if reaches_out.all():
        return image
    island = cv2.dilate((~reaches_out[labels]).astype(np.uint8), np.ones((9, 9), np.uint8))
    height, width = island.shape
    coarse = (max(1, width // 4), max(1, height // 4))
    coarse_image = cv2.resize(image, coarse, interpolation=cv2.INTER_AREA).astype(np.uint8)
    coarse_island = (cv2.resize(island.astype(np.float32), coarse, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
    filled = cv2.resize(cv2.inpaint(coarse_image, coarse_island, 3, cv2.INPAINT_TELEA), (width, height))
    return np.where(island[..., None] > 0, filled, image).astype(np.float32)
