"""Visible retina in ultra-widefield (Optos) photographs, by classical image processing, without a learned model.

For: the one mask that separates the retina from eyelids, lashes, skin, the mirror's rim and the black corners.
Not for: regular fundus photographs (their field of view is a disc on black, a threshold finds it), nor for judging
whether the mask is plausible: the caller does that, this module returns the best outline it can.

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

A second pass learns colour and texture of both sides from the first outline and adds that evidence. Every scale is
relative to the image's own centre, so exposure, gamma and the laser balance hardly matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class UwfRetinaParameters:
    """Weights of the outline's cost; likelihood ratios are in nats, radii in half-frames (1 = the middle of a side).

    Set by hand and a coarse search on eight outlined photographs and altered copies of them; the two that concern
    texture and soft edges also on generated images. Moving one by 30 % changes the mean IoU (0.966) by at most 0.006,
    frame_exit_reward by 0.013; choosing those two without the photograph they are measured on gives 0.966 too
    (benchmarks/roi_accuracy.py --sensitivity prints the table). A texture_weight near 1 takes the arcades of some
    regular fundus photographs for the border.
    """

    frame_exit_reward: float = 3.0  # evidence granted to an outline that the frame cuts, in nats
    largest_evidence: float = 3.5  # what one change point may say, in nats
    corner_discount: float = 0.5  # share of that reward lost at the frame's corners
    crossing_cost: float = 17.0  # per nat of crossed change point and per half-frame
    darkening_weight: float = 0.5  # crossing cost of edges that darken outwards: lash shadows and vignetting do
    reddening_weight: float = 0.6  # change points towards red: anterior tissue is greener than the fundus beside it
    skin_cost: float = 10.0  # per area (half-frame squared) brighter than skin_brightness
    skin_brightness: float = 1.2  # times the 95th percentile of the central fundus
    appearance_weight: float = 8.0  # second pass: per nat and area (half-frame squared)
    bend_cost: float = 0.25  # per squared radial step between neighbouring directions
    brightness_floor: float = 0.06  # standard deviation below which log brightness is called constant
    red_green_floor: float = 0.02  # the same for the log red/green ratio
    soft_edge_floor: float = 7.0  # times these floors in the wide windows: there the fundus' own shading must not count
    texture_weight: float = 0.65  # of a loss of texture, against changes of brightness and colour


_WORKING_SIDE = 256  # px; lashes and vessels are about one pixel wide here, lids and rim stay sharp
_N_ANGLES = 240
_RADIUS_STEP = 0.01
_N_RADII = 145  # reaches just past the frame's corner, 1.41
_SMALLEST_RADIUS = 0.45  # nearer outlines are refused: the optic disc and haemorrhages have sharp edges too
_CENTRE_RADIUS = 0.55  # what lies within is taken as fundus when the image's own scales are measured
_ISLAND_RADIUS = 0.8  # a haemorrhage to be filled in ends before it
_ISLAND_BRIGHTNESS = 0.5  # times the fundus (75th percentile) within that radius
_WINDOW = 3  # radial samples on either side of a change point
_GAP = 1  # samples left out in between: the border itself is blurred
_SOFT_EDGE_WINDOW = 8  # the same where the border is out of focus
_SOFT_EDGE_GAP = 3
_SOFT_EDGE_REACH = 4  # samples; nearer than this to a stronger sharp change, a soft one is only its echo
_TEXTURE_WINDOW = 10  # texture is told from few pixels only with a wide window
_TEXTURE_GAP = 2
_TEXTURE_FLOOR = 0.3  # standard deviation below which log texture is called constant
_TANGENTIAL_WINDOW = 5  # directions pooled; suppresses lashes and vessels, which run across the outline
_MAX_STEP = 4  # radial samples between neighbouring directions: 57 degrees at radius 1
_APPEARANCE_BINS = (20, 20, 8)  # log brightness, log red/green, texture
_APPEARANCE_CLIP = 1.5  # nats one pixel may say
_PENUMBRA = 0.035  # half-frames; the widest strip between the outline and black that is taken for retina
_RIM = 0.05  # half-frames; a dark band up to twice as wide is the rim or a shadow, not the black around a field
_BLACK = 0.1  # times the 90th percentile of the whole image; darker is black
_LIT = 0.2  # the same; brighter may be retina at a border
_DARKEST_CONTENT = 8  # grey levels; below, a row or column of the photograph is padding


@dataclass(frozen=True)
class _PolarImage:
    """Log brightness and log red/green ratio on rays from the centre, (angles, radii); `inside` marks the frame."""

    brightness: Floats
    red_green: Floats
    inside: NDArray[np.bool_]
    angles: Floats
    radii: Floats


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
    box = _content_box(image_rgb)
    if box is None:
        return mask
    top, bottom, left, right = box
    polar = _to_polar(image_rgb[top:bottom, left:right])

    evidence = _change_points(polar, weights)
    crossing = _crossing_cost(polar, evidence, weights)
    outline = _cheapest_outline(evidence.total, crossing, polar, weights)
    appearance = _appearance_cost(polar, outline, weights)
    outline = _cheapest_outline(evidence.total, crossing + appearance, polar, weights)

    radius = _smooth_circular(polar.radii[outline])
    unit = np.stack([np.cos(polar.angles) * radius, np.sin(polar.angles) * radius], axis=1)
    polygon = (unit + 1) / 2 * (right - left, bottom - top)
    region = mask[top:bottom, left:right]
    cv2.fillPoly(region, [np.round((polygon - 0.5) * 16).astype(np.int32)], 255, shift=4)
    return _largest_without_holes(_extended_to_black(mask, image_rgb))


def _extended_to_black(mask: NDArray[np.uint8], image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Add the lit strip between the outline and the black around the field where there is but a narrow one.

    The windows of the change points lay the outline a sample or two inside the border of a field on black. Lids and
    skin are wider than the strip; the mirror's rim, whose inner shadow is no retina, is narrower than such black.
    """
    brightest = image.max(axis=2)
    level = float(np.percentile(brightest, 90))
    half_frame = max(mask.shape) / 2
    black = (brightest <= max(_DARKEST_CONTENT, _BLACK * level)).astype(np.uint8)
    margin = max(1, round(_RIM * half_frame))
    beyond = cv2.copyMakeBorder(black, margin, margin, margin, margin, cv2.BORDER_REPLICATE)
    square = np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)
    wide = cv2.morphologyEx(beyond, cv2.MORPH_OPEN, square)[margin:-margin, margin:-margin]
    if not wide.any():
        return mask
    width = cv2.distanceTransform((mask == 0).astype(np.uint8), cv2.DIST_L2, 3)
    width += cv2.distanceTransform((wide == 0).astype(np.uint8), cv2.DIST_L2, 3)
    lit = brightest > max(_DARKEST_CONTENT, _LIT * level)
    # Between two pixels side by side both distances are 1.
    return np.where(lit & (width <= _PENUMBRA * half_frame + 1), np.uint8(255), mask)


def _content_box(image: NDArray[np.uint8]) -> tuple[int, int, int, int] | None:
    """Rows and columns (top, bottom, left, right; ends exclusive) left after black padding and banners are cut."""
    stride = max(1, max(image.shape[:2]) // 1024)  # large originals: a sample of the pixels is enough
    brightest = image[::stride, ::stride].max(axis=2)
    threshold = max(_DARKEST_CONTENT, 0.06 * float(np.percentile(brightest, 90)))
    lit = brightest > threshold
    rows = _longest_run(lit.mean(axis=1) > 0.05)
    columns = _longest_run(lit.mean(axis=0) > 0.05)
    if min(rows[1] - rows[0], columns[1] - columns[0]) < 8:
        return None
    height, width = image.shape[:2]
    bottom, right = min(height, rows[1] * stride), min(width, columns[1] * stride)
    return rows[0] * stride, bottom, columns[0] * stride, right


def _longest_run(lit: NDArray[np.bool_]) -> tuple[int, int]:
    """First and last (exclusive) index of the longest stretch; what stands apart from it is a banner, not the photo."""
    changes = np.flatnonzero(np.diff(np.concatenate([[False], lit, [False]]).astype(np.int8)))
    if len(changes) == 0:
        return 0, 0
    starts, ends = changes[::2], changes[1::2]
    longest = int(np.argmax(ends - starts))
    return int(starts[longest]), int(ends[longest])


def _to_polar(image: NDArray[np.uint8]) -> _PolarImage:
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
    central = distance < _CENTRE_RADIUS
    # The offset keeps sensor noise of dark parts out of the logarithms.
    offset = 0.08 * float(np.median(brightness[central])) + 1

    # Half a step, so that a mirrored image is sampled at the mirrored angles.
    angles = ((np.arange(_N_ANGLES) + 0.5) * (2 * np.pi / _N_ANGLES)).astype(np.float32)
    radii = ((np.arange(_N_RADII) + 0.5) * _RADIUS_STEP).astype(np.float32)
    map_x = (np.cos(angles)[:, None] * radii + 1) / 2 * width - 0.5
    map_y = (np.sin(angles)[:, None] * radii + 1) / 2 * height - 0.5
    inside = (map_x > -0.5) & (map_x < width - 0.5) & (map_y > -0.5) & (map_y < height - 0.5)

    def sample(plane: Floats) -> Floats:
        return cast(Floats, cv2.remap(plane, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))

    return _PolarImage(
        brightness=sample(np.log(brightness + offset)),
        red_green=sample(np.log((red + offset) / (green + offset))),
        inside=inside,
        angles=angles,
        radii=radii,
    )


def _fill_dark_islands(image: Floats, distance: NDArray[np.float64]) -> Floats:
    """Replace large haemorrhages by what surrounds them, so that their edges are not taken for the retina's.

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


@dataclass(frozen=True)
class _ChangePoints:
    """Likelihood ratio of a change at each polar sample, and whether the image brightens outwards there."""

    total: Floats
    brightens: NDArray[np.bool_]


def _change_points(polar: _PolarImage, weights: UwfRetinaParameters) -> _ChangePoints:
    sharp, brightness_step = _colour_change(polar, weights, 1.0, _WINDOW, _GAP)
    texture, texture_step = _change_point(_texture(polar), _TEXTURE_FLOOR, _TEXTURE_WINDOW, _TEXTURE_GAP)
    # The cap: the rim's edge is stronger than the lid's, not more credible.
    cap = np.float32(weights.largest_evidence)
    soft, _ = _colour_change(polar, weights, weights.soft_edge_floor, _SOFT_EDGE_WINDOW, _SOFT_EDGE_GAP)
    strongest_near = cv2.dilate(np.minimum(sharp, cap), np.ones((1, 2 * _SOFT_EDGE_REACH + 1), np.uint8))
    total = np.maximum(sharp, np.where(strongest_near < soft, soft, 0))
    total += np.float32(weights.texture_weight) * np.where(texture_step < 0, texture, 0)
    return _ChangePoints(total=np.minimum(total, cap), brightens=brightness_step > 0)


def _colour_change(
    polar: _PolarImage, weights: UwfRetinaParameters, floor_factor: float, window: int, gap: int
) -> tuple[Floats, Floats]:
    """Evidence of brightness and red/green ratio together, and the step of the brightness."""
    brightness, brightness_step = _change_point(polar.brightness, floor_factor * weights.brightness_floor, window, gap)
    red_green, red_green_step = _change_point(polar.red_green, floor_factor * weights.red_green_floor, window, gap)
    red_green = red_green * np.where(red_green_step < 0, 1, np.float32(weights.reddening_weight))
    return cast(Floats, brightness + red_green), brightness_step


def _texture(polar: _PolarImage) -> Floats:
    """Log of the local standard deviation of log brightness around its local mean."""
    residual = polar.brightness - cv2.blur(polar.brightness, (5, 5))
    return cast(Floats, 0.5 * np.log(cv2.blur(residual * residual, (7, 7)) + np.float32(1e-4)))


def _change_point(values: Floats, floor: float, window: int, gap: int) -> tuple[Floats, Floats]:
    """Log likelihood ratio (per sample) of two Gaussians, inner and outer window, against one; and the mean's step."""
    mean = _window_mean(values, window)
    variance = np.maximum(_window_mean(values * values, window) - mean * mean, 0)
    inner_mean, inner_variance = _shift(mean, gap), _shift(variance, gap)
    outward = -(window - 1 + gap)
    outer_mean, outer_variance = _shift(mean, outward), _shift(variance, outward)
    step = outer_mean - inner_mean
    joint_variance = (inner_variance + outer_variance) / 2 + (step / 2) ** 2
    noise = np.float32(floor * floor)
    ratio = np.log(joint_variance + noise) - 0.5 * np.log((inner_variance + noise) * (outer_variance + noise))
    return cast(Floats, ratio), cast(Floats, step)


def _window_mean(values: Floats, window: int) -> Floats:
    """Mean over the samples r - window + 1 .. r and the neighbouring directions, which wrap around."""
    margin = _TANGENTIAL_WINDOW
    wrapped = np.concatenate([values[-margin:], values, values[:margin]])
    mean = cv2.blur(
        wrapped,
        (window, _TANGENTIAL_WINDOW),
        anchor=(window - 1, _TANGENTIAL_WINDOW // 2),
        borderType=cv2.BORDER_REPLICATE,
    )
    return cast(Floats, mean[margin:-margin])


def _shift(values: Floats, outward: int) -> Floats:
    """Move along the rays by whole samples, repeating the end."""
    index = np.clip(np.arange(values.shape[1]) - outward, 0, values.shape[1] - 1)
    return values[:, index]


def _crossing_cost(polar: _PolarImage, evidence: _ChangePoints, weights: UwfRetinaParameters) -> Floats:
    """What an outline pays for the change points and the skin between the centre and itself."""
    interior = (polar.radii > 0.15) & (polar.radii < _CENTRE_RADIUS)
    # What the retina itself shows in its centre (vessels, lesions) is no border: only the excess over it counts, and
    # its mean is taken off, so that an ordinary retina pushes the outline neither in nor out.
    excess = np.maximum(evidence.total - np.median(evidence.total[:, interior]), 0)
    excess *= np.where(evidence.brightens, 1, np.float32(weights.darkening_weight))
    crossed = np.where((polar.radii > _SMALLEST_RADIUS) & polar.inside, excess - excess[:, interior].mean(), 0)
    # Three samples late: the outline does not pay for the change point that it lies on.
    crossing = _shift(np.cumsum(crossed, axis=1) * np.float32(_RADIUS_STEP * weights.crossing_cost), 3)
    crossing[:, :3] = 0

    brightness = np.exp(polar.brightness)
    central = polar.inside & (polar.radii < 0.7)
    limit = np.percentile(brightness[central], 95) * weights.skin_brightness
    skin = np.cumsum(np.where(polar.inside & (brightness > limit), polar.radii, 0), axis=1)
    return cast(Floats, crossing + _shift(skin * np.float32(_RADIUS_STEP * weights.skin_cost), 1))


def _appearance_cost(polar: _PolarImage, outline: NDArray[np.intp], weights: UwfRetinaParameters) -> Floats | float:
    """Evidence from colour and texture, learned from the two sides of a first outline; 0 if one side is missing."""
    texture = _texture(polar)
    central = polar.inside & (polar.radii < 0.7)
    code = np.zeros(polar.inside.shape, np.int64)
    features = ((polar.brightness, 0.15), (polar.red_green, 0.06), (texture, 0.3))
    for (feature, smallest_scale), n_bins in zip(features, _APPEARANCE_BINS, strict=True):
        middle = np.median(feature[central])
        scale = max(1.4826 * float(np.median(np.abs(feature[central] - middle))), smallest_scale)
        level = np.clip((feature - middle) / scale / 10 + 0.5, 0, 0.999)
        code = code * n_bins + (level * n_bins).astype(np.int64)

    area = polar.inside * polar.radii
    position = np.arange(_N_RADII)
    retina = area * (position < outline[:, None] - 2)
    surround = area * (position > outline[:, None] + 2)
    if min(retina.sum(), surround.sum()) < 0.01 * area.sum():
        return 0.0
    ratio = np.log(_density(code, retina) / _density(code, surround))
    ratio = np.clip(ratio, -_APPEARANCE_CLIP, _APPEARANCE_CLIP)[code] * area
    cost = -np.cumsum(ratio, axis=1) * (_RADIUS_STEP * weights.appearance_weight)
    return _shift(cost.astype(np.float32), 1)


def _density(code: NDArray[np.int64], area: Floats) -> Floats:
    """Smoothed histogram of the feature codes, as a flat array that sums to about 1 and is nowhere 0."""
    n_codes = int(np.prod(_APPEARANCE_BINS))
    counts = np.bincount(code.ravel(), area.ravel(), n_codes).astype(np.float32).reshape(_APPEARANCE_BINS)
    by_colour = cv2.GaussianBlur(counts, (5, 5), 1.0)  # over the first two axes, texture as channels
    smooth = cv2.GaussianBlur(by_colour.reshape(-1, _APPEARANCE_BINS[2]), (3, 1), 0.8).ravel()
    return cast(Floats, smooth / smooth.sum() + np.float32(0.2 / n_codes))


def _cheapest_outline(
    evidence: Floats, crossing: Floats, polar: _PolarImage, weights: UwfRetinaParameters
) -> NDArray[np.intp]:
    """Index of the outline's radius in each direction."""
    rays = np.arange(_N_ANGLES)
    exit_index = polar.inside.sum(axis=1) - 1
    beyond_ellipse = np.maximum(polar.radii[exit_index] - 1.08, 0) / 0.33
    reward = weights.frame_exit_reward * (1 - weights.corner_discount * beyond_ellipse)
    exit_cost = crossing[rays, exit_index] - reward
    # Beyond the frame every radius costs the same: the outline may run as it likes there, only the frame is drawn.
    cost = np.where(polar.inside, crossing - evidence, exit_cost[:, None]).astype(np.float32)
    cost[:, polar.radii < _SMALLEST_RADIUS] = 50
    return _shortest_closed_path(cost, weights.bend_cost)


def _shortest_closed_path(cost: Floats, bend_cost: float) -> NDArray[np.intp]:
    """Column per row of the cheapest path down the rows, which close on themselves.

    Two turns are run and the middle one is kept: by then the path has forgotten where it began.
    """
    n_rows, n_columns = cost.shape
    steps = np.arange(-_MAX_STEP, _MAX_STEP + 1)
    penalty = (bend_cost * steps**2).astype(np.float32)
    padded = np.full(n_columns + 2 * _MAX_STEP, 1e9, np.float32)
    best = padded[_MAX_STEP:-_MAX_STEP]
    windows = sliding_window_view(padded, len(steps))
    columns = np.arange(n_columns)
    came_from = np.empty((2 * n_rows, n_columns), np.intp)
    best[:] = cost[0]
    for turn_row in range(1, 2 * n_rows):
        reached = windows + penalty
        step = reached.argmin(axis=1)
        came_from[turn_row] = columns + step - _MAX_STEP
        best[:] = reached[columns, step] + cost[turn_row % n_rows]
    path = np.empty(2 * n_rows, np.intp)
    path[-1] = best.argmin()
    for turn_row in range(2 * n_rows - 1, 0, -1):
        path[turn_row - 1] = came_from[turn_row, path[turn_row]]
    half = n_rows // 2
    return np.roll(path[half : half + n_rows], half)


def _smooth_circular(radius: Floats) -> Floats:
    """Take the staircase of the radial samples out of the outline."""
    return cast(Floats, 0.25 * np.roll(radius, 1) + 0.5 * radius + 0.25 * np.roll(radius, -1))


def _largest_without_holes(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    result = np.zeros_like(mask)
    if contours:
        cv2.drawContours(result, [max(contours, key=cv2.contourArea)], -1, 255, cv2.FILLED)
    return result
