"""Lesion classes of ultra-widefield images that belong to the optic disc, the macula or a vessel.

Each function draws one lesion and places its patch; sizes follow the real label files.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from uveitis_assets.sample.lesion_drawing import (
    BELOW_VESSELS,
    ON_RETINA,
    PIGMENT,
    YELLOW,
    Drawing,
    LesionScene,
    centred,
    drawing_around,
    lesion_size,
    ring_of,
)
from uveitis_assets.sample.painting import Layer, blur, paste_maximum, ragged_blob, smooth_noise, smoothstep
from uveitis_assets.sample.vessels import FOVEA, draw_polyline


def _epiretinal_membrane(rng: np.random.Generator, scene: LesionScene) -> Drawing:
    """3 membrane_epiretinenne: glistening sheet over the macula, wrinkled."""
    unit = scene.pixels_per_unit
    length = lesion_size(rng, 380, 480, 620, unit)
    sheet = ragged_blob(
        rng, length, length * rng.uniform(0.65, 0.85), rng.uniform(0, np.pi), softness=0.8, raggedness=0.3
    )
    side = sheet.shape[0]
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) - side / 2.0
    angle = rng.uniform(0, np.pi)
    warp = smooth_noise(rng, (side, side), max(80 * unit, 2.0), octaves=2)
    wrinkles = np.sin((x * np.cos(angle) + y * np.sin(angle)) / (13.0 * unit) + 1.6 * warp)
    shine = smoothstep(smooth_noise(rng, (side, side), max(110 * unit, 2.0), octaves=2), -0.4, 1.2)
    alpha = sheet * (0.34 + (0.04 + 0.22 * shine) * smoothstep(wrinkles, 0.0, 0.95))
    centre = scene.placement.to_pixels(FOVEA[None] + rng.normal(0, 0.12, (1, 2)))[0]
    return drawing_around([(ON_RETINA, Layer(alpha.astype(np.float32), (148.0, 176.0, 26.0)))], *centre)


def _sheathed_vessel(rng: np.random.Generator, scene: LesionScene) -> Drawing | None:
    """4 vascularite: pale cuffs on both walls along a piece of vessel."""
    diameter, unit = scene.placement.disc_diameter, scene.pixels_per_unit
    able = [branch for branch in scene.branches if len(branch.points) >= 20 and branch.widths[0] > 0.026]
    if not able:
        return None
    branch = able[int(rng.integers(len(able)))]
    length = lesion_size(rng, 160, 330, 760, 1.0) / (diameter / unit)
    steps = int(np.clip(length / 0.06, 8, len(branch.points) - 4))
    first = int(rng.integers(2, len(branch.points) - steps))
    points = scene.placement.to_pixels(branch.points[first : first + steps])
    widths = branch.widths[first : first + steps] * diameter
    margin = int(np.ceil(widths.max() * 3 + 16 * unit + 4))
    left, top = np.floor(points.min(axis=0)).astype(int) - margin
    right, bottom = np.ceil(points.max(axis=0)).astype(int) + margin
    local = points - np.array([left, top])
    plane = np.zeros((bottom - top, right - left), np.uint8)
    core = plane.copy()
    cuff = widths * rng.uniform(2.0, 2.8) + rng.uniform(6, 13) * unit
    beads = np.repeat(rng.uniform(0.75, 1.2, steps // 4 + 1), 4)[:steps]
    draw_polyline(plane, local, cuff * np.convolve(np.pad(beads, 2, "edge"), np.full(5, 0.2), "valid"), 255.0)
    draw_polyline(core, local, widths, 255.0)
    sheath = blur(plane, max(4.5 * unit, 0.6)).astype(np.float32) / 255.0
    column = blur(core, max(1.5 * unit, 0.4)).astype(np.float32) / 255.0
    patchy = 0.72 + 0.2 * np.clip(smooth_noise(rng, sheath.shape, max(36 * unit, 2.0), octaves=2), -1, 1)
    alpha = 0.92 * sheath * patchy * (1.0 - 0.6 * column)
    return Drawing(((ON_RETINA, Layer(alpha.astype(np.float32), (190.0, 200.0, 44.0))),), int(left), int(top))


def _macular_oedema(rng: np.random.Generator, scene: LesionScene) -> Drawing:
    """6 oedeme_maculaire: pale swelling of the fovea with petal-shaped cysts."""
    unit = scene.pixels_per_unit
    length = lesion_size(rng, 380, 450, 540, unit)
    swelling = ragged_blob(
        rng, length, length * rng.uniform(0.75, 0.95), rng.uniform(0, np.pi), softness=0.6, raggedness=0.15
    )
    side = swelling.shape[0]
    cysts = np.zeros((side, side), np.float32)
    petals = int(rng.integers(6, 10))
    for index in range(petals):
        angle = 2 * np.pi * index / petals + rng.normal(0, 0.12)
        reach = length * rng.uniform(0.14, 0.2)
        petal = ragged_blob(rng, length * 0.24, length * 0.12, angle, softness=0.5, raggedness=0.15)
        paste_maximum(cysts, petal, side / 2 + reach * np.cos(angle), side / 2 + reach * np.sin(angle))
    centre = scene.placement.to_pixels(FOVEA[None])[0]
    return drawing_around(
        [
            (ON_RETINA, Layer(swelling * np.float32(0.5), (166.0, 156.0, 22.0))),
            (ON_RETINA, Layer(cysts * np.float32(0.22), (0.4, 0.55, 0.3), absorbs=True)),
        ],
        *centre,
    )


def _excavated_disc(rng: np.random.Generator, scene: LesionScene) -> Drawing:
    """8 papille_excavee: a disc that is nearly all pale cup, its rim thin."""
    diameter = scene.placement.disc_diameter
    size = diameter * rng.uniform(1.14, 1.22)
    disc = ragged_blob(rng, size * 1.06, size, 1.5, softness=0.14, raggedness=0.05)
    cup = centred(ragged_blob(rng, size * 0.84, size * 0.78, 1.5, softness=0.2, raggedness=0.05), disc.shape[0])
    return drawing_around(
        [
            (BELOW_VESSELS, Layer(disc * np.float32(0.97), (216.0, 166.0, 24.0))),
            (BELOW_VESSELS, Layer(cup * np.float32(0.9), (250.0, 242.0, 70.0))),
        ],
        scene.placement.disc_x,
        scene.placement.disc_y,
    )


def _macroaneurysm(rng: np.random.Generator, scene: LesionScene) -> Drawing | None:
    """11 macroanevrisme_arteriel: round red bulge on an artery inside a ring of exudate."""
    able = [b for b in scene.branches if not b.is_vein and b.widths[0] > 0.035 and len(b.points) > 40]
    if not able:
        return None
    branch = able[int(rng.integers(len(able)))]
    at = scene.placement.to_pixels(branch.points[None, int(rng.integers(15, len(branch.points) - 5))])[0]
    length = lesion_size(rng, 150, 190, 250, scene.pixels_per_unit)
    side = int(np.ceil(length * 1.5 + 6))
    bulge = centred(ragged_blob(rng, length * 0.42, length * 0.38, 0.0, softness=0.35, raggedness=0.08), side)
    exudate = np.zeros((side, side), np.float32)
    for angle in rng.uniform(0, 2 * np.pi, int(rng.integers(16, 30))):
        radius = length * rng.uniform(0.36, 0.46)
        dot = ragged_blob(rng, length * rng.uniform(0.05, 0.13), length * 0.07, angle, softness=0.25, raggedness=0.4)
        paste_maximum(exudate, dot, side / 2 + radius * np.cos(angle), side / 2 + radius * np.sin(angle))
    return drawing_around(
        [
            (ON_RETINA, Layer(exudate * np.float32(0.8), YELLOW)),
            (ON_RETINA, Layer(bulge * np.float32(0.92), (142.0, 26.0, 8.0))),
        ],
        *at,
    )


def _peripapillary_atrophy(rng: np.random.Generator, scene: LesionScene) -> Drawing:
    """12 atrophie_peripapillaire: pale crescent or ring beside the disc, edged with pigment."""
    diameter = scene.placement.disc_diameter
    outer = ragged_blob(
        rng, diameter * rng.uniform(1.5, 1.8), diameter * rng.uniform(1.4, 1.6), 1.5, softness=0.15, raggedness=0.12
    )
    side = outer.shape[0]
    shift = scene.placement.temporal * diameter * 0.14
    inner = np.zeros((side, side), np.float32)
    hole = ragged_blob(rng, diameter * 1.04, diameter * 0.98, 1.5, softness=0.15, raggedness=0.04)
    paste_maximum(inner, hole, side / 2.0 - shift, side / 2.0)
    zone = ring_of(outer, inner)
    pigment = smoothstep(outer, 0.05, 0.4) * smoothstep(outer, 0.98, 0.6)
    return drawing_around(
        [
            (BELOW_VESSELS, Layer(zone * np.float32(0.72), (206.0, 178.0, 32.0))),
            (BELOW_VESSELS, Layer(pigment * np.float32(0.6), PIGMENT, absorbs=True)),
        ],
        scene.placement.disc_x + shift,
        scene.placement.disc_y,
    )


def _papilloedema(rng: np.random.Generator, scene: LesionScene) -> Drawing:
    """16 oedeme_papillaire: disc margin lost in a pale striated swelling."""
    diameter = scene.placement.disc_diameter
    size = diameter * rng.uniform(1.5, 1.85)
    swelling = ragged_blob(
        rng, size * rng.uniform(1.0, 1.25), size, rng.uniform(0, np.pi), softness=0.7, raggedness=0.2
    )
    side = swelling.shape[0]
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) - side / 2.0
    spokes = np.sin(np.arctan2(y, x) * 31 + 4.0 * smooth_noise(rng, (side, side), max(size / 3, 2.0), octaves=2))
    alpha = swelling * (0.74 + 0.08 * spokes * smoothstep(np.hypot(x, y), size * 0.15, size * 0.4))
    return drawing_around(
        [(ON_RETINA, Layer(alpha.astype(np.float32), (204.0, 184.0, 28.0)))],
        scene.placement.disc_x,
        scene.placement.disc_y,
    )


ANCHORED: dict[int, Callable[[np.random.Generator, LesionScene], Drawing | None]] = {
    3: _epiretinal_membrane,
    4: _sheathed_vessel,
    6: _macular_oedema,
    8: _excavated_disc,
    11: _macroaneurysm,
    12: _peripapillary_atrophy,
    16: _papilloedema,
}
"""Classes tied to disc, macula or a vessel; None where the image offers no fitting place this time."""
