"""Visible retina in ultra-widefield (Optos) photographs, by classical image processing.

One mask separates the retina from eyelids, lashes, skin, the mirror's rim and the black corners. Whether it is
plausible is checked by the caller.

The visible retina is star-shaped around the middle of the photograph, so its outline is one radius per direction. The
image is resampled to polar coordinates and the outline is the cheapest closed path through them (dynamic programming),
where a path is cheap if

- it lies on a change point: along the ray the pixels inside and outside of it have different means or variances in log
  brightness or in the red/green ratio (Gaussian likelihood ratio: a sharp retina beside an out-of-focus lid counts as
  well as a dark retina beside a bright one), in a narrow window or, for lids with a soft edge, in a wide one;
- fine texture is lost outwards there: lids and skin lie out of focus and show neither vessels nor choroid;
- few change points were crossed on the way from the centre: the lid's edge comes before the rim's, which is stronger;
- no pixels inside are far brighter than this image's fundus: skin reflects directly;
- where it leaves the frame, the frame cut the retina there; corners are less credible, because the field is elliptic.

A second pass learns colour and texture of both sides from the first outline and adds that evidence. Brightness is
relative to the retina's shading (``ultra_widefield_shading``), so that a dim periphery is no border, and every scale to
the image's own centre, so exposure, gamma and the laser balance hardly matter.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from uveitis_assets.fundus.roi.mask_shapes import largest_without_holes
from uveitis_assets.fundus.roi.ultra_widefield_changes import ChangePoints, change_points, log_texture, shifted_outward
from uveitis_assets.fundus.roi.ultra_widefield_parameters import UwfRetinaParameters
from uveitis_assets.fundus.roi.ultra_widefield_polar import (
    CENTRE_RADIUS,
    DARKEST_CONTENT,
    N_ANGLES,
    N_RADII,
    RADIUS_STEP,
    Floats,
    PolarImage,
    brightest_channel,
    content_box,
    percentile_of_levels,
    to_polar,
)
from uveitis_assets.fundus.roi.ultra_widefield_shading import shading_of_the_middle, shading_within

_SMALLEST_RADIUS = 0.45  # nearer outlines are refused: the optic disc and haemorrhages have sharp edges too
_MAX_STEP = 4  # radial samples between neighbouring directions: 57 degrees at radius 1
_SLANTED_STEP = 2  # from this step on the outline may follow an edge that crosses the rays at a slant
_APPEARANCE_BINS = (20, 20, 8)  # log brightness, log red/green, texture
_APPEARANCE_CLIP = 1.5  # largest evidence of one pixel, in nats
_PENUMBRA = 0.035  # half-frames; the widest strip between the outline and black that is taken for retina
_RIM = 0.05  # half-frames; a dark band up to twice as wide is the rim or a shadow, not the black around a field
_BLACK = 0.1  # times the 90th percentile of the whole image; darker is black
_SPUR = 0.012  # half-frames; spurs and notches narrower than twice this are no outline of a retina
_BRIGHTER_THAN_RETINA = 1.15  # times the mean of the mask beside it; a strip that is brighter is a lid
_LIT = 0.2  # the same; brighter may be retina at a border


def uwf_retina_mask(image_rgb: NDArray[np.uint8], parameters: UwfRetinaParameters | None = None) -> NDArray[np.uint8]:
    """Find the visible retina of an ultra-widefield photograph.

    image_rgb: (H, W, 3) uint8, RGB, any size from 32 px; the work is done at 256 px, so downscaling first
    (INTER_AREA) costs no accuracy. Returns (H, W) uint8, 0 or 255, one connected component without holes; all 0 where
    the image holds nothing but black. Raises ValueError on another shape or dtype, never on content. Deterministic.
    """
    if image_rgb.ndim != 3 or image_rgb.shape[2] != 3 or image_rgb.dtype != np.uint8:
        raise ValueError(
            f"uwf_retina_mask: expected an RGB image (H, W, 3) uint8, found {image_rgb.shape} {image_rgb.dtype}"
        )
    weights = parameters or UwfRetinaParameters()
    mask = np.zeros(image_rgb.shape[:2], np.uint8)
    box = content_box(image_rgb)
    if box is None:
        return mask
    top, bottom, left, right = box
    polar = to_polar(image_rgb[top:bottom, left:right])
    outline = _outline(polar, weights)

    radius = _smooth_circular(polar.radii[outline])
    unit = np.stack([np.cos(polar.angles) * radius, np.sin(polar.angles) * radius], axis=1)
    polygon = (unit + 1) / 2 * (right - left, bottom - top)
    region = mask[top:bottom, left:right]
    cv2.fillPoly(region, [np.round((polygon - 0.5) * 16).astype(np.int32)], 255, shift=4)
    return largest_without_holes(_without_spurs(extend_to_black(mask, image_rgb)))


def _outline(polar: PolarImage, weights: UwfRetinaParameters) -> NDArray[np.intp]:
    """Index of the retina's radius in each direction, in two passes."""
    even = replace(polar, brightness=polar.brightness - shading_of_the_middle(polar))
    evidence = change_points(even, weights)
    crossing = _crossing_cost(even, polar.brightness, evidence, weights)
    outline = _cheapest_outline(evidence, crossing, even, weights)

    even = replace(polar, brightness=polar.brightness - shading_within(polar, outline))
    evidence = change_points(even, weights)
    crossing = _crossing_cost(even, polar.brightness, evidence, weights)
    crossing += _appearance_cost(even, polar.brightness, outline, weights)
    return _cheapest_outline(evidence, crossing, even, weights)


def extend_to_black(mask: NDArray[np.uint8], image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Add a narrow lit strip between the outline and the black around the field.

    The windows of the change points lay the outline a sample or two inside the border of a field on black. Lids and
    skin are wider than the strip, or brighter than the retina beside it; the mirror's rim, whose inner shadow is no
    retina, is narrower than such black.
    """
    brightest = brightest_channel(image)
    level = percentile_of_levels(brightest, 90)
    half_frame = max(mask.shape) / 2
    black = (brightest <= max(DARKEST_CONTENT, _BLACK * level)).astype(np.uint8)
    margin = max(1, round(_RIM * half_frame))
    beyond = cv2.copyMakeBorder(black, margin, margin, margin, margin, cv2.BORDER_REPLICATE)
    square = np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)
    wide = cv2.morphologyEx(beyond, cv2.MORPH_OPEN, square)[margin:-margin, margin:-margin]
    if not wide.any():
        return mask
    width = cv2.distanceTransform((mask == 0).astype(np.uint8), cv2.DIST_L2, 3)
    width += cv2.distanceTransform((wide == 0).astype(np.uint8), cv2.DIST_L2, 3)
    lit = brightest > max(DARKEST_CONTENT, _LIT * level)
    lit &= brightest <= _BRIGHTER_THAN_RETINA * _mean_nearby(brightest, mask, margin)
    # Between two pixels side by side both distances are 1.
    return np.where(lit & (width <= _PENUMBRA * half_frame + 1), np.uint8(255), mask)


def _without_spurs(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Close notches and take off spurs, which the extension leaves; a small mask stays whole."""
    radius = round(_SPUR * max(mask.shape) / 2)
    if radius == 0:
        return mask
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    beyond = cv2.copyMakeBorder(mask, radius, radius, radius, radius, cv2.BORDER_REPLICATE)
    rounded = cv2.morphologyEx(cv2.morphologyEx(beyond, cv2.MORPH_CLOSE, disc), cv2.MORPH_OPEN, disc)
    inner = np.asarray(rounded[radius:-radius, radius:-radius], dtype=np.uint8)
    return inner if inner.any() else mask


def _mean_nearby(values: NDArray[np.uint8], mask: NDArray[np.uint8], margin: int) -> Floats:
    """Mean of the values inside a mask in the square around each pixel; 0 where the mask is further away."""
    inside = (mask > 0).astype(np.float32)
    side = 2 * margin + 1
    total, share = (cv2.blur(plane, (side, side)) for plane in (values * inside, inside))
    return cast(Floats, np.divide(total, share, out=np.zeros_like(total), where=share > 0.5 / side**2))


def _crossing_cost(
    polar: PolarImage, unshaded_brightness: Floats, evidence: ChangePoints, weights: UwfRetinaParameters
) -> Floats:
    """What an outline pays for the change points and the skin between the centre and itself."""
    interior = (polar.radii > 0.15) & (polar.radii < CENTRE_RADIUS)
    # What the retina itself shows in its centre (vessels, lesions) is no border: only the excess over it counts, and
    # its mean is taken off, so that an ordinary retina pushes the outline neither in nor out.
    excess = np.maximum(evidence.total - np.median(evidence.total[:, interior]), 0)
    excess *= np.where(evidence.brightens, 1, np.float32(weights.darkening_weight))
    crossed = np.where((polar.radii > _SMALLEST_RADIUS) & polar.inside, excess - excess[:, interior].mean(), 0)
    # Three samples late: the outline does not pay for the change point that it lies on.
    crossing = shifted_outward(np.cumsum(crossed, axis=1) * np.float32(RADIUS_STEP * weights.crossing_cost), 3)
    crossing[:, :3] = 0

    brightness = np.exp(unshaded_brightness)
    central = polar.inside & (polar.radii < 0.7)
    limit = np.percentile(brightness[central], 95) * weights.skin_brightness
    skin = np.cumsum(np.where(polar.inside & (brightness > limit), polar.radii, 0), axis=1)
    return cast(Floats, crossing + shifted_outward(skin * np.float32(RADIUS_STEP * weights.skin_cost), 1))


def _appearance_cost(
    polar: PolarImage, unshaded_brightness: Floats, outline: NDArray[np.intp], weights: UwfRetinaParameters
) -> Floats | float:
    """Evidence from colour and texture, learned from the two sides of a first outline.

    0 if one side is missing.
    """
    texture = log_texture(replace(polar, brightness=unshaded_brightness))
    central = polar.inside & (polar.radii < 0.7)
    code = np.zeros(polar.inside.shape, np.int64)
    features = ((polar.brightness, 0.15), (polar.red_green, 0.06), (texture, 0.3))
    for (feature, smallest_scale), n_bins in zip(features, _APPEARANCE_BINS, strict=True):
        middle = np.median(feature[central])
        scale = max(1.4826 * float(np.median(np.abs(feature[central] - middle))), smallest_scale)
        level = np.clip((feature - middle) / scale / 10 + 0.5, 0, 0.999)
        code = code * n_bins + (level * n_bins).astype(np.int64)

    area = polar.inside * polar.radii
    position = np.arange(N_RADII)
    retina = area * (position < outline[:, None] - 2)
    surround = area * (position > outline[:, None] + 2)
    if min(retina.sum(), surround.sum()) < 0.01 * area.sum():
        return 0.0
    ratio = np.log(_density(code, retina) / _density(code, surround))
    ratio = np.clip(ratio, -_APPEARANCE_CLIP, _APPEARANCE_CLIP)[code] * area
    cost = -np.cumsum(ratio, axis=1) * (RADIUS_STEP * weights.appearance_weight)
    return shifted_outward(cost.astype(np.float32), 1)


def _density(code: NDArray[np.int64], area: Floats) -> Floats:
    """Smoothed histogram of the feature codes, as a flat array that sums to about 1 and is nowhere 0."""
    n_codes = int(np.prod(_APPEARANCE_BINS))
    counts = np.bincount(code.ravel(), area.ravel(), n_codes).astype(np.float32).reshape(_APPEARANCE_BINS)
    by_colour = cv2.GaussianBlur(counts, (5, 5), 1.0)  # over the first two axes, texture as channels
    smooth = cv2.GaussianBlur(by_colour.reshape(-1, _APPEARANCE_BINS[2]), (3, 1), 0.8).ravel()
    return cast(Floats, smooth / smooth.sum() + np.float32(0.2 / n_codes))


def _cheapest_outline(
    evidence: ChangePoints, crossing: Floats, polar: PolarImage, weights: UwfRetinaParameters
) -> NDArray[np.intp]:
    """Index of the outline's radius in each direction."""
    rays = np.arange(N_ANGLES)
    exit_index = polar.inside.sum(axis=1) - 1
    beyond_ellipse = np.maximum(polar.radii[exit_index] - 1.08, 0) / 0.33
    reward = weights.frame_exit_reward * (1 - weights.corner_discount * beyond_ellipse)
    exit_cost = crossing[rays, exit_index] - reward
    # Beyond the frame every radius costs the same: the outline may run as it likes there, only the frame is drawn.
    costs = np.where(polar.inside, crossing - np.stack(evidence.along), exit_cost[:, None]).astype(np.float32)
    costs[..., polar.radii < _SMALLEST_RADIUS] = 50
    return _shortest_closed_path(costs, weights.bend_cost)


def _shortest_closed_path(costs: Floats, bend_cost: float) -> NDArray[np.intp]:
    """Column per row of the cheapest path down the rows, which close on themselves.

    costs: (3, rows, columns), for a path that comes to the place by a step inwards, straight, or outwards. Two turns
    are run and the middle one is kept: by then the path has forgotten where it began.
    """
    _, n_rows, n_columns = costs.shape
    steps = np.arange(-_MAX_STEP, _MAX_STEP + 1)  # from a place to the one before it
    way = np.where(np.abs(steps) < _SLANTED_STEP, 1, 1 - np.sign(steps))
    step_costs = np.moveaxis(costs, 0, -1)[..., way] + (bend_cost * steps**2).astype(np.float32)
    padded = np.full(n_columns + 2 * _MAX_STEP, 1e9, np.float32)
    best = padded[_MAX_STEP:-_MAX_STEP]
    windows = sliding_window_view(padded, len(steps))
    columns = np.arange(n_columns)
    came_from = np.empty((2 * n_rows, n_columns), np.intp)
    best[:] = costs[1, 0]
    for turn_row in range(1, 2 * n_rows):
        reached = windows + step_costs[turn_row % n_rows]
        step = reached.argmin(axis=1)
        came_from[turn_row] = columns + step - _MAX_STEP
        best[:] = reached[columns, step]
    path = np.empty(2 * n_rows, np.intp)
    path[-1] = best.argmin()
    for turn_row in range(2 * n_rows - 1, 0, -1):
        path[turn_row - 1] = came_from[turn_row, path[turn_row]]
    half = n_rows // 2
    return np.roll(path[half : half + n_rows], half)


def _smooth_circular(radius: Floats) -> Floats:
    """Take the staircase of the radial samples out of the outline: a binomial mean of 13 directions."""
    for _ in range(6):
        radius = 0.25 * np.roll(radius, 1) + 0.5 * radius + 0.25 * np.roll(radius, -1)
    return radius
