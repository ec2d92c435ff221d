"""Structures between an ultra-widefield camera and the retina: aperture, lids, lashes, rim, fall-off.

Works on a coarse grid in reference pixels (the image is 3900 of them wide) and returns what a renderer needs to
composite: how much of the retina's light passes, what light is added, and where the retina really is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.sample.painting import Field, blur, enlarge, smooth_noise, smoothstep
from uveitis_assets.sample.vessels import draw_polyline

REFERENCE_WIDTH = 3900
"""Width in reference pixels; lengths in this module and in the lesion catalogue are given in them."""


@dataclass(frozen=True, slots=True)
class EyeFrame:
    """Coarse planes, all (h, w): the image is ``retina * transmission + light`` inside ``hull_level`` > 0.

    ``retina_level`` is positive on the retina, about the distance to its edge in reference pixels;
    ``hull_level`` is positive inside the recorded frame, beyond it the image is black.
    """

    transmission: Field
    light: Field
    retina_level: Field
    hull_level: Field


@dataclass(frozen=True, slots=True)
class _View:
    """The coarse grid: pixel centres, cells per reference pixel, and height, in reference pixels.

    ``corrected`` distinguishes the projection-corrected look (black corners) from the raw one.
    """

    x: Field
    y: Field
    scale: float
    full_height: float
    corrected: bool

    @property
    def shape(self) -> tuple[int, int]:
        return self.x.shape[0], self.x.shape[1]


def draw_eye_frame(rng: np.random.Generator, height: int, width: int) -> EyeFrame:
    """Draw one eye's surroundings on a (height, width) grid, raw or projection-corrected."""
    scale = width / REFERENCE_WIDTH
    y, x = (np.mgrid[0:height, 0:width].astype(np.float32) + 0.5) / np.float32(scale)
    view = _View(x, y, scale, height / scale, bool(rng.random() < 0.5))
    aperture = _aperture_level(rng, view)
    upper, lower, upper_blur, lower_blur = _lid_levels(rng, view)
    retina_level = np.minimum(aperture, np.minimum(-upper, -lower)).astype(np.float32)

    transmission = _illumination(rng, view, retina_level)
    light = np.zeros((height, width, 3), np.float32)
    _reflections(rng, view, light)
    transmission *= _lash_shadows(rng, view)

    hue = _lid_hue(rng, float(rng.uniform(0.55, 1.0)) * (0.62 if view.corrected else 1.0))
    for level, edge_blur, gain in ((upper, upper_blur, 1.0), (lower, lower_blur, float(rng.uniform(0.35, 0.75)))):
        # The lid shades the strip of retina beside it.
        transmission *= 1.0 - 0.45 * np.exp(-np.square(np.minimum(level, 0.0) / rng.uniform(60, 160)))
        alpha = smoothstep(level, -edge_blur / 2.0, edge_blur / 2.0)
        skin = _skin(rng, view, level, hue * np.float32(gain))
        light = light * (1.0 - alpha[..., None]) + skin * alpha[..., None]
        transmission *= 1.0 - alpha
    light *= 1.0 - _skin_lashes(rng, view, upper)[..., None]

    rim_alpha, rim_colour = _rim(rng, view, -aperture, _lid_hue(rng, float(rng.uniform(0.45, 1.0))))
    light = light * (1.0 - rim_alpha[..., None]) + rim_colour * rim_alpha[..., None]
    transmission *= 1.0 - rim_alpha
    hull = _hull_level(rng, view) if view.corrected else np.full((height, width), 100.0, np.float32)
    retina_level = np.minimum(retina_level, hull)
    return EyeFrame(np.clip(transmission, 0.0, 1.0).astype(np.float32), light, retina_level, hull)


def _superellipse_level(
    view: _View, centre: tuple[float, float], radii: tuple[float, float], *, power: float, skew: float
) -> Field:
    """Positive inside; about the distance to the outline near it. ``skew`` > 0 makes the top narrower."""
    x, y = view.x, view.y
    radius_x = radii[0] * (1.0 + skew * (y - centre[1]) / radii[1])
    dx, dy = np.abs(x - centre[0]) / radius_x, np.abs(y - centre[1]) / radii[1]
    norm = np.power(np.power(dx, power) + np.power(dy, power), 1.0 / power)
    return np.asarray((1.0 - norm) * min(radii), np.float32)


def _aperture_level(rng: np.random.Generator, view: _View) -> Field:
    centre = (REFERENCE_WIDTH * rng.uniform(0.485, 0.515), view.full_height * rng.uniform(0.50, 0.55))
    if view.corrected:
        radii = (REFERENCE_WIDTH * rng.uniform(0.432, 0.458), view.full_height * rng.uniform(0.62, 0.75))
        return _superellipse_level(view, centre, radii, power=rng.uniform(3.0, 3.8), skew=rng.uniform(0.13, 0.20))
    radii = (REFERENCE_WIDTH * rng.uniform(0.475, 0.5), view.full_height * rng.uniform(0.62, 0.80))
    return _superellipse_level(view, centre, radii, power=rng.uniform(2.2, 2.8), skew=rng.uniform(0.0, 0.06))


def _hull_level(rng: np.random.Generator, view: _View) -> Field:
    centre = (REFERENCE_WIDTH * 0.5, view.full_height * 0.5)
    radii = (REFERENCE_WIDTH * rng.uniform(0.455, 0.475), view.full_height * rng.uniform(0.495, 0.51))
    return _superellipse_level(view, centre, radii, power=rng.uniform(7.0, 10.0), skew=rng.uniform(0.06, 0.09))


def _lid_levels(rng: np.random.Generator, view: _View) -> tuple[Field, Field, float, float]:
    """Signed distance into the upper and the lower lid (positive on the lid), and the blur of each edge."""
    width = view.shape[1]
    u = (view.x - REFERENCE_WIDTH * rng.uniform(0.44, 0.56)) / (REFERENCE_WIDTH / 2.0)
    wide_open = rng.random() < 0.5
    top = view.full_height * (rng.uniform(-0.30, -0.08) if wide_open else rng.uniform(-0.04, 0.15))
    bottom = view.full_height * (rng.uniform(1.03, 1.22) if rng.random() < 0.65 else rng.uniform(0.90, 1.0))
    if view.corrected:
        top -= view.full_height * 0.08
        bottom += view.full_height * 0.02
    wave = [blur(smooth_noise(rng, (1, width), max(width / 7.0, 2.0), octaves=3), 1.0) for _ in range(2)]
    droop = rng.uniform(0.12, 0.35) if view.corrected else rng.uniform(0.22, 0.62)
    slope_upper, slope_lower = rng.normal(0, 0.05, 2) * view.full_height
    upper_edge = top + slope_upper * u + view.full_height * rng.uniform(0.10, 0.30) * u**2 + 16.0 * wave[0]
    lower_edge = bottom + slope_lower * u - view.full_height * droop * u**2 + 18.0 * wave[1]
    upper, lower = (upper_edge - view.y).astype(np.float32), (view.y - lower_edge).astype(np.float32)
    return upper, lower, float(rng.uniform(15, 70)), float(rng.uniform(40, 130))


def _illumination(rng: np.random.Generator, view: _View, retina_level: Field) -> Field:
    dx = (view.x - REFERENCE_WIDTH * rng.uniform(0.46, 0.54)) / (REFERENCE_WIDTH / 2.0)
    dy = (view.y - view.full_height * rng.uniform(0.42, 0.55)) / (view.full_height / 2.0)
    fall_off = 1.0 - rng.uniform(0.12, 0.32) * np.power(dx**2 + dy**2, 1.3)
    edge = 1.0 - rng.uniform(0.25, 0.55) * np.exp(-np.maximum(retina_level, 0.0) / rng.uniform(60, 190))
    if view.corrected:
        edge = 0.5 + 0.5 * edge
    patches = 1.0 + 0.10 * smooth_noise(rng, view.shape, view.shape[1] / 4.0, octaves=2)
    return np.clip(fall_off * edge * patches, 0.06, 1.0).astype(np.float32)


def _reflections(rng: np.random.Generator, view: _View, light: Field) -> None:
    """Faint green crescents that the cornea and the mirror leave near the centre."""
    if rng.random() > 0.45:
        return
    plane = np.zeros(light.shape[:2], np.uint8)
    x, y = REFERENCE_WIDTH * rng.uniform(0.44, 0.58), view.full_height * rng.uniform(0.40, 0.56)
    for _ in range(int(rng.integers(1, 4))):
        start, span, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 2.2), rng.uniform(35, 110)
        angles = np.linspace(start, start + span, 14)
        centre = np.array([x, y]) + rng.normal(0, 45, 2)
        points = (centre + radius * np.stack([np.cos(angles), 1.3 * np.sin(angles)], axis=1)) * view.scale
        widths = np.sin(np.linspace(0.1, np.pi - 0.1, 14)) * rng.uniform(8, 20) * view.scale
        draw_polyline(plane, points, widths, float(rng.uniform(70, 170)))
    blurred = blur(plane, max(9.0 * view.scale, 0.5)).astype(np.float32) / 255.0
    light += blurred[..., None] * np.array([25.0, 95.0, 8.0], np.float32)


def _streaks(
    rng: np.random.Generator,
    view: _View,
    roots: NDArray[np.float64],
    *,
    headings: NDArray[np.float64],
    lengths: NDArray[np.float64],
    thickness: NDArray[np.float64],
) -> Field:
    """Curved hairs that taper to their tips: (height, width) float32 darkness in 0..1, not yet blurred."""
    plane = np.zeros(view.shape, np.uint8)
    t = np.linspace(0.0, 1.0, 16)
    for root, heading, length, thick in zip(roots, headings, lengths, thickness, strict=True):
        angles = heading + rng.normal(0, 0.45) * t + rng.normal(0, 0.12) * t**2
        steps = length / 15 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points = (root + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)[:-1]])) * view.scale
        draw_polyline(plane, points, thick * (1.0 - 0.85 * t) * view.scale, float(rng.uniform(120, 255)))
    return plane.astype(np.float32) / 255.0


def _lash_shadows(rng: np.random.Generator, view: _View) -> Field:
    """Transmission left by out-of-focus lashes that stand in front of the lower periphery."""
    passed = np.ones(view.shape, np.float32)
    for left in (True, False):
        for _ in range(2):
            count = int(rng.integers(0, 18))
            if not count:
                continue
            along = rng.uniform(0, 1, count)
            inset = rng.uniform(-150, 60, count)
            # Lashes rise from the outer lower rim: some from the side, some from below.
            side_x, side_y = inset, view.full_height * (0.62 + 0.36 * along)
            roots = np.stack([side_x if left else REFERENCE_WIDTH - side_x, side_y], axis=1)
            fan = rng.uniform(-0.15, 0.25, count) - 0.55 * (along - 0.45)
            headings = -fan if left else np.pi + fan
            lengths = rng.uniform(250, 900, count) * rng.uniform(0.5, 1.0)
            spread = float(rng.uniform(9, 30))
            thickness = rng.uniform(20, 60, count) + 1.1 * spread
            shadow = _streaks(rng, view, roots, headings=headings, lengths=lengths, thickness=thickness)
            shadow = blur(shadow, max(spread * view.scale, 0.4))
            passed *= 1.0 - float(rng.uniform(0.55, 0.92)) * shadow
    return passed


def _lid_hue(rng: np.random.Generator, brightness: float) -> Field:
    """Colour of lit skin: mostly yellow-green, sometimes orange or pinkish."""
    palette = np.array([[205, 235, 8], [165, 225, 6], [235, 165, 12], [230, 190, 20], [225, 150, 34]], np.float32)
    choice = palette[int(rng.choice(5, p=[0.4, 0.25, 0.15, 0.12, 0.08]))]
    return np.asarray(choice * rng.uniform(0.93, 1.07, 3) * brightness, np.float32)


def _skin(rng: np.random.Generator, view: _View, level: Field, hue: Field) -> Field:
    """Lit skin, darker towards the lid margin, with creases that run along it: (height, width, 3)."""
    depth = 0.5 + 0.5 * smoothstep(level, 0.0, float(rng.uniform(140, 420)))
    folds = smooth_noise(rng, view.shape, max(260 * view.scale, 2.0), octaves=3)
    # Skin lines run across the lid: noise drawn out sideways.
    narrow = (view.shape[0], max(view.shape[1] // 6, 2))
    creases = enlarge(smooth_noise(rng, narrow, max(26 * view.scale, 1.5), octaves=3), view.shape)
    crease_band = np.sin(level / float(rng.uniform(60, 110)) + 1.8 * folds)
    brightness = depth * (1.0 + 0.05 * folds + 0.022 * creases + 0.03 * crease_band)
    colour = brightness[..., None] * hue
    # Shaded skin turns olive, overexposed skin yellow-green.
    colour[..., 0] *= 0.86 + 0.14 * depth
    return np.asarray(np.clip(colour, 0.0, 255.0), np.float32)


def _skin_lashes(rng: np.random.Generator, view: _View, upper: Field) -> Field:
    """In-focus thin hairs lying on the upper lid: darkness (height, width) in 0..1."""
    visible = np.argwhere((upper > 40) & (upper < 500))
    count = int(rng.integers(8, 45))
    if len(visible) < 50:
        return np.zeros(view.shape, np.float32)
    picked = visible[rng.integers(0, len(visible), count)]
    roots = picked[:, ::-1] / view.scale
    across = (roots[:, 0] / REFERENCE_WIDTH - 0.5) * 1.4
    headings = across + rng.normal(rng.uniform(-0.5, 0.1), 0.3, count)
    lengths, thickness = rng.uniform(60, 420, count), rng.uniform(4, 13, count)
    hairs = _streaks(rng, view, roots, headings=headings, lengths=lengths, thickness=thickness)
    hairs = blur(hairs, max(2.5 * view.scale, 0.4))
    return (0.8 * hairs * smoothstep(upper, -30.0, 30.0)).astype(np.float32)


def _rim(rng: np.random.Generator, view: _View, outside: Field, hue: Field) -> tuple[Field, Field]:
    """Device rim around the aperture: alpha (h, w) and colour (h, w, 3).

    ``outside`` is the distance beyond the aperture.
    """
    down = view.y / view.full_height
    warp = 1.0 + 0.08 * smooth_noise(rng, view.shape, view.shape[1] / 3.0)
    distance = outside * warp
    black = np.array([9.0, 13.0, 3.0], np.float32)
    plastic_gain = float(rng.uniform(0.25, 1.0)) * (0.45 if view.corrected else 1.0)
    # The lamp lights the face rest from one upper side.
    lamp = np.where(rng.random() < 0.75, view.x, REFERENCE_WIDTH - view.x) / REFERENCE_WIDTH
    lamp_gain = plastic_gain * (0.12 + 0.88 * smoothstep(lamp + 0.55 * down, 0.75, 0.25))[..., None]
    plastic_shade = smoothstep(distance, float(rng.uniform(320, 520)), 60.0)[..., None]
    plastic = np.array([8.0, 40.0, 4.0], np.float32) + lamp_gain * plastic_shade * np.array(
        [25.0, 205.0, 14.0], np.float32
    )
    colour = np.broadcast_to(black, (*view.shape, 3)).copy()
    # A crescent of lit skin shows between the aperture and the rim, on one or both sides.
    tall = np.clip(np.sin(np.pi * np.clip((down - rng.uniform(-0.05, 0.1)) / rng.uniform(0.75, 1.0), 0, 1)), 0, 1)
    left_width, right_width = rng.uniform(0, 190, 2)
    band = np.where(view.x < REFERENCE_WIDTH / 2, left_width, right_width) * tall * (1.0 if view.corrected else 0.9)
    gap = 8.0 if view.corrected else float(rng.uniform(25, 80))
    stripe = 0.85 + 0.15 * np.sin(distance / rng.uniform(9, 16))
    crescent = smoothstep(distance, gap, gap + 14.0) * smoothstep(distance, gap + band + 14.0, gap + band)
    lit = np.clip(hue * np.float32(rng.uniform(0.8, 1.05)), 0, 255)
    grain = 1.0 + 0.06 * smooth_noise(rng, view.shape, 3.0, octaves=2)
    colour += crescent[..., None] * (lit * (stripe * grain * (0.65 + 0.35 * tall))[..., None] - colour)
    # Beyond the dark ring with its thin reflection line lies the green plastic of the face rest.
    ring = gap + band + float(rng.uniform(50, 100))
    line = np.exp(-np.square((distance - (ring - 28.0)) / 6.0)) * (0.35 + 0.3 * np.sin(down * 160.0))
    colour += np.clip(line, 0, 1)[..., None] * np.array([38.0, 95.0, 16.0], np.float32)
    edge = smoothstep(distance, ring, ring + 22.0)[..., None]
    colour = colour * (1.0 - edge) + plastic * edge
    return smoothstep(distance, -5.0, 9.0), colour.astype(np.float32)
