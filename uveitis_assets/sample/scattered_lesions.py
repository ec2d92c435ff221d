"""Lesion classes of ultra-widefield images that occur anywhere on the retina or in the vitreous.

Each function draws one lesion on a patch of its own; sizes follow the real label files. Placing and boxes are not
decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import cv2
import numpy as np

from uveitis_assets.sample.lesion_drawing import (
    BELOW_VESSELS,
    BLOOD,
    CREAM,
    IN_VITREOUS,
    ON_RETINA,
    PIGMENT,
    Drawing,
    centred,
    cluster,
    lesion_size,
    ring_of,
)
from uveitis_assets.sample.painting import Field, Layer, blur, paste_maximum, ragged_blob, smooth_noise, smoothstep
from uveitis_assets.sample.vessels import draw_polyline


def _choroidal_focus(rng: np.random.Generator, unit: float) -> Drawing:
    """1 foyer_choroidien: cream foci under the vessels, alone or in a group, older ones with pigment."""
    size = lesion_size(rng, 55, 150, 420, unit)
    count = int(rng.integers(1, 6))
    spot = (size * 0.35, size * 0.6) if count > 1 else (size * 0.8, size)
    plane = cluster(rng, size if count > 1 else size * 0.2, count, spot, softness=0.5, raggedness=0.3)
    layers = [(BELOW_VESSELS, Layer(plane * np.float32(rng.uniform(0.6, 0.85)), CREAM))]
    if rng.random() < 0.45:
        speckle = smoothstep(smooth_noise(rng, plane.shape, max(14 * unit, 1.5), octaves=2), 0.5, 1.3)
        layers.append((BELOW_VESSELS, Layer(speckle * smoothstep(plane, 0.3, 0.8), PIGMENT, absorbs=True)))
    return Drawing(tuple(layers))


def _vitritis(rng: np.random.Generator, unit: float) -> Drawing:
    """2 hyalite: an out-of-focus veil with strands that washes out what lies behind."""
    length = lesion_size(rng, 160, 380, 1100, unit)
    breadth = length * rng.uniform(0.5, 0.9)
    veil = ragged_blob(rng, length, breadth, rng.uniform(0, np.pi), softness=1.1, raggedness=0.5, grain=0.6)
    strands = smoothstep(np.abs(smooth_noise(rng, veil.shape, max(60 * unit, 2.0), octaves=2)), 0.5, 0.0)
    alpha = veil * (0.46 + 0.20 * strands)
    return Drawing(((IN_VITREOUS, Layer(alpha.astype(np.float32), (176.0, 182.0, 40.0))),))


def _haemorrhage(rng: np.random.Generator, unit: float) -> Drawing:
    """5 hemorragie: dark red blot, or a flame drawn out along the nerve fibres."""
    flame = rng.random() < 0.4
    length = lesion_size(rng, 50, 120, 420, unit)
    angle = rng.uniform(0, np.pi)
    if not flame:
        alpha = ragged_blob(rng, length, length * rng.uniform(0.6, 0.95), angle, softness=0.35, raggedness=0.35)
    else:
        side = int(np.ceil(length * 1.6 + 6))
        alpha = np.zeros((side, side), np.float32)
        for _ in range(int(rng.integers(7, 13))):
            streak = ragged_blob(
                rng, length * rng.uniform(0.5, 0.95), length * rng.uniform(0.12, 0.26), angle + rng.normal(0, 0.12),
                softness=0.9, raggedness=0.4,
            )  # fmt: skip
            offset = rng.normal(0, 0.085, 2) * length
            paste_maximum(
                alpha,
                streak,
                side / 2 + offset[0] * np.cos(angle) - 0.9 * offset[1] * np.sin(angle),
                side / 2 + offset[0] * np.sin(angle) + 0.9 * offset[1] * np.cos(angle),
            )
    return Drawing(((ON_RETINA, Layer(alpha * np.float32(rng.uniform(0.7, 0.95)), BLOOD, absorbs=True)),))


def _choroidal_nodule(rng: np.random.Generator, unit: float) -> Drawing:
    """7 nodule_choroidien: round yellow-orange elevation, lit on one side, shaded on the other."""
    length = lesion_size(rng, 66, 120, 330, unit)
    alpha = ragged_blob(
        rng, length, length * rng.uniform(0.7, 0.98), rng.uniform(0, np.pi), softness=0.75, raggedness=0.15
    )
    shift = length * 0.12
    direction = rng.uniform(0, 2 * np.pi)
    move = np.array([[1, 0, shift * np.cos(direction)], [0, 1, shift * np.sin(direction)]])
    moved = cast("Field", cv2.warpAffine(alpha, move, alpha.shape[::-1], flags=cv2.INTER_LINEAR))
    return Drawing(
        (
            (BELOW_VESSELS, Layer(alpha * np.float32(0.7), (200.0, 152.0, 22.0))),
            (BELOW_VESSELS, Layer(np.minimum(alpha, moved) * np.float32(0.35), (232.0, 206.0, 40.0))),
            (BELOW_VESSELS, Layer(ring_of(alpha, moved) * np.float32(0.6), PIGMENT, absorbs=True)),
        )
    )


def _granuloma(rng: np.random.Generator, unit: float) -> Drawing:
    """9 granulome_choroidien: fluffy white-yellow mass in a darker pool of subretinal fluid."""
    length = lesion_size(rng, 60, 130, 300, unit)
    core = ragged_blob(
        rng, length, length * rng.uniform(0.75, 1.0), rng.uniform(0, np.pi), softness=0.75, raggedness=0.3
    )
    pool = ragged_blob(rng, length * 1.7, length * 1.55, 0.0, softness=0.6, raggedness=0.2)
    side = pool.shape[0]
    core = centred(core, side)
    return Drawing(
        (
            (BELOW_VESSELS, Layer(pool * np.float32(0.10), (0.55, 0.75, 0.4), absorbs=True)),
            (BELOW_VESSELS, Layer(core * np.float32(0.8), (200.0, 188.0, 36.0))),
        )
    )


def _laser_scars(rng: np.random.Generator, unit: float) -> Drawing:
    """10 laser_retinien: rows of round scars, pale or greenish with a pigmented centre."""
    columns, rows = int(rng.integers(3, 10)), int(rng.integers(2, 5))
    spot = rng.uniform(34, 52) * unit
    pitch = spot * rng.uniform(1.7, 2.4)
    side = int(np.ceil(max(columns, rows) * pitch + 2 * spot))
    pale, dark = np.zeros((side, side), np.float32), np.zeros((side, side), np.float32)
    angle, curve = rng.uniform(0, np.pi), rng.normal(0, 0.06)
    pigmented = rng.uniform(0.3, 0.9)
    for column in range(columns):
        for row in range(rows):
            if rng.random() < 0.12:
                continue
            a = (column - (columns - 1) / 2 + 0.5 * (row % 2) - 0.25) + rng.normal(0, 0.13)
            b = (row - (rows - 1) / 2) + rng.normal(0, 0.13) + curve * a**2 / 2
            x = side / 2 + pitch * (a * np.cos(angle) - b * np.sin(angle))
            y = side / 2 + pitch * (a * np.sin(angle) + b * np.cos(angle))
            size = spot * rng.uniform(0.8, 1.15)
            paste_maximum(pale, ragged_blob(rng, size, size * 0.92, angle, softness=0.35, raggedness=0.12), x, y)
            if rng.random() < pigmented:
                centre = ragged_blob(rng, size * 0.55, size * 0.5, angle, softness=0.5, raggedness=0.3)
                paste_maximum(dark, centre * np.float32(rng.uniform(0.6, 1.0)), x, y)
    tint = (166.0, 162.0, 24.0) if rng.random() < 0.6 else (124.0, 150.0, 18.0)
    return Drawing(
        (
            (BELOW_VESSELS, Layer(pale * np.float32(rng.uniform(0.5, 0.75)), tint)),
            (BELOW_VESSELS, Layer(dark * np.float32(0.85), PIGMENT, absorbs=True)),
        )
    )


def _operculated_hole(rng: np.random.Generator, unit: float) -> Drawing:
    """13 trou_opercule: round red hole in a grey cuff, its pale lid floating beside it."""
    length = lesion_size(rng, 120, 160, 230, unit)
    cuff = ragged_blob(rng, length * 1.5, length * 1.35, 0.0, softness=0.4, raggedness=0.12)
    side = cuff.shape[0]
    hole = centred(
        ragged_blob(rng, length * 0.85, length * 0.75, rng.uniform(0, np.pi), softness=0.15, raggedness=0.1), side
    )
    lid = np.zeros((side, side), np.float32)
    direction = rng.uniform(0, 2 * np.pi)
    paste_maximum(
        lid,
        ragged_blob(rng, length * 0.42, length * 0.34, rng.uniform(0, np.pi), softness=0.35, raggedness=0.2),
        side / 2 + 0.22 * length * np.cos(direction),
        side / 2 + 0.22 * length * np.sin(direction),
    )
    return Drawing(
        (
            (ON_RETINA, Layer(ring_of(cuff, hole) * np.float32(0.5), (152.0, 162.0, 24.0))),
            (ON_RETINA, Layer(hole * np.float32(0.85), (150.0, 54.0, 8.0))),
            (IN_VITREOUS, Layer(lid * np.float32(0.75), (190.0, 188.0, 40.0))),
        )
    )


def _vitreous_condensation(rng: np.random.Generator, unit: float) -> Drawing:
    """14 condensations_vitre: grey-green floating clump with a few blurred strands."""
    length = lesion_size(rng, 130, 220, 460, unit)
    side = int(np.ceil(length * 1.5 + 6))
    plane = np.zeros((side, side), np.uint8)
    base = rng.uniform(0, 2 * np.pi)
    for _ in range(int(rng.integers(3, 7))):
        t = np.linspace(0, 1, 14)
        heading = base + rng.normal(0, 0.5) + rng.normal(0, 1.6) * t
        step = length * rng.uniform(0.5, 0.85) / 13
        path = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1) * step, axis=0)
        path += np.array([side / 2, side / 2]) - path.mean(axis=0) + rng.normal(0, 0.06, 2) * length
        draw_polyline(plane, path, rng.uniform(8, 20) * unit * (1.1 - t), 255.0)
    strands = blur(plane, max(14.0 * unit, 0.6)).astype(np.float32) / 255.0
    clump = centred(ragged_blob(rng, length * 0.45, length * 0.3, base, softness=0.8, raggedness=0.5), side)
    alpha = np.clip(np.maximum(strands * 1.2, clump * 0.7), 0, 1).astype(np.float32)
    if rng.random() < 0.5:
        return Drawing(((IN_VITREOUS, Layer(alpha * np.float32(0.75), (0.55, 0.55, 0.4), absorbs=True)),))
    return Drawing(((IN_VITREOUS, Layer(alpha * np.float32(0.6), (166.0, 182.0, 36.0))),))


def _hard_exudates(rng: np.random.Generator, unit: float) -> Drawing:
    """15 exudats: crisp yellow dots, clustered or in part of a ring."""
    extent = lesion_size(rng, 75, 115, 330, unit)
    plane = cluster(
        rng, extent, int(rng.integers(9, 26)), (max(extent * 0.08, 2.2), max(extent * 0.24, 3.5)),
        flatten=rng.uniform(0.5, 0.9), softness=0.15, raggedness=0.4,
    )  # fmt: skip
    return Drawing(((ON_RETINA, Layer(plane * np.float32(0.9), (226.0, 216.0, 34.0))),))


def _ischaemia(rng: np.random.Generator, unit: float) -> Drawing:
    """17 ischemie_retine: a dull, featureless dark sector."""
    length = lesion_size(rng, 520, 760, 1150, unit)
    alpha = ragged_blob(
        rng, length, length * rng.uniform(0.45, 0.65), rng.uniform(0, np.pi), softness=0.9, raggedness=0.35
    )
    return Drawing(
        (
            (ON_RETINA, Layer(alpha * np.float32(0.5), (86.0, 70.0, 14.0))),
            (ON_RETINA, Layer(alpha * np.float32(0.35), (0.5, 0.6, 0.4), absorbs=True)),
        )
    )


def _cotton_wool_spot(rng: np.random.Generator, unit: float) -> Drawing:
    """18 nodule_cotonneux: white feathered patch across the nerve fibres."""
    length = lesion_size(rng, 85, 150, 380, unit)
    angle = rng.uniform(0, np.pi)
    alpha = ragged_blob(rng, length, length * rng.uniform(0.5, 0.75), angle, softness=0.7, raggedness=0.5, grain=0.35)
    return Drawing(((ON_RETINA, Layer(alpha * np.float32(rng.uniform(0.65, 0.85)), (186.0, 198.0, 44.0))),))


def _weiss_ring(rng: np.random.Generator, unit: float) -> Drawing:
    """19 anneau_weiss: blurred incomplete ring floating before the disc's surroundings."""
    length = lesion_size(rng, 220, 270, 320, unit)
    side = int(np.ceil(length * 1.3 + 6))
    plane = np.zeros((side, side), np.uint8)
    angles = np.linspace(0, rng.uniform(1.6, 2.0) * np.pi, 50) + rng.uniform(0, 2 * np.pi)
    radii = length / 2.25 * (1 + 0.07 * np.sin(3 * angles + rng.uniform(0, 6)))
    path = np.stack([side / 2 + radii * np.cos(angles), side / 2 + 0.88 * radii * np.sin(angles)], axis=1)
    draw_polyline(plane, path, np.full(50, rng.uniform(14, 24) * unit), 255.0)
    alpha = blur(plane, max(7.0 * unit, 0.6)).astype(np.float32) / 255.0
    return Drawing(((IN_VITREOUS, Layer(alpha * np.float32(0.85), (0.62, 0.6, 0.4), absorbs=True)),))


def _chorioretinal_scar(rng: np.random.Generator, unit: float) -> Drawing:
    """20 lesion_retine: large atrophic patch with sharp scalloped edge and clumped pigment."""
    length = lesion_size(rng, 320, 520, 760, unit)
    angle = rng.uniform(0, np.pi)
    alpha = ragged_blob(rng, length, length * rng.uniform(0.45, 0.7), angle, softness=0.25, raggedness=0.4, grain=0.4)
    speckle = smoothstep(smooth_noise(rng, alpha.shape, max(38 * unit, 1.5), octaves=3), 0.35, 1.5)
    edge = smoothstep(alpha, 0.05, 0.5) * (1.0 - 0.75 * blur(alpha, max(26 * unit, 0.8)))
    return Drawing(
        (
            (BELOW_VESSELS, Layer(alpha * np.float32(0.7), (200.0, 178.0, 32.0))),
            (BELOW_VESSELS, Layer((alpha * speckle * 0.85).astype(np.float32), (0.72, 0.72, 0.6), absorbs=True)),
            (BELOW_VESSELS, Layer((edge * alpha * 0.5).astype(np.float32), PIGMENT, absorbs=True)),
        )
    )


SCATTERED: dict[int, Callable[[np.random.Generator, float], Drawing]] = {
    1: _choroidal_focus,
    2: _vitritis,
    5: _haemorrhage,
    7: _choroidal_nodule,
    9: _granuloma,
    10: _laser_scars,
    13: _operculated_hole,
    14: _vitreous_condensation,
    15: _hard_exudates,
    17: _ischaemia,
    18: _cotton_wool_spot,
    19: _weiss_ring,
    20: _chorioretinal_scar,
}
"""Classes drawn on a free patch: (generator, pixels per reference pixel) -> drawing."""
