"""How each of the 20 lesion classes looks on an ultra-widefield image.

Sizes are in reference pixels (the image is 3900 wide) and follow the real label files; ``unit`` is pixels per
reference pixel. Scattered classes draw on a patch of their own that may be put anywhere; anchored classes belong to
the disc, the macula or a vessel. Placing and boxes are not decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.sample.painting import Field, Layer, blur, paste_maximum, ragged_blob, smooth_noise, smoothstep
from uveitis_assets.sample.vessels import FOVEA, Placement, VesselBranch, draw_polyline

BELOW_VESSELS, ON_RETINA, IN_VITREOUS = "below vessels", "on retina", "in vitreous"

BLOOD = (0.34, 0.80, 0.70)
PIGMENT = (0.62, 0.62, 0.55)
CREAM = (208.0, 188.0, 34.0)
YELLOW = (214.0, 196.0, 26.0)


@dataclass(frozen=True, slots=True)
class LesionScene:
    """What a lesion needs to know of the image: size, scale, anatomy, and where retina is visible.

    ``clear`` is a coarse (h, w) bool plane covering the whole image.
    """

    width: int
    height: int
    pixels_per_unit: float
    placement: Placement
    branches: Sequence[VesselBranch]
    clear: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Drawing:
    """Layers (depth, layer) on one patch, all of the same shape; left and top place an anchored patch."""

    layers: tuple[tuple[str, Layer], ...]
    left: int = 0
    top: int = 0


def _size(rng: np.random.Generator, low: float, median: float, high: float, unit: float) -> float:
    """Log-normal length in pixels around ``median`` reference pixels, kept within [low, high] and >= 3 pixels."""
    spread = np.log(high / low) / 4.0
    return max(float(np.clip(median * np.exp(rng.normal(0, spread)), low, high)) * unit, 3.0)


def _around(layers: Sequence[tuple[str, Layer]], x: float, y: float) -> Drawing:
    height, width = layers[0][1].alpha.shape
    return Drawing(tuple(layers), round(x - width / 2.0), round(y - height / 2.0))


def _ring_of(alpha: Field, inner: Field) -> Field:
    return np.asarray(np.clip(alpha - inner, 0.0, 1.0), np.float32)


def _centred(patch: Field, side: int) -> Field:
    plane = np.zeros((side, side), np.float32)
    paste_maximum(plane, patch, side / 2.0, side / 2.0)
    return plane


def _cluster(
    rng: np.random.Generator,
    extent: float,
    count: int,
    size: tuple[float, float],
    *,
    flatten: float = 0.7,
    softness: float = 0.35,
    raggedness: float = 0.25,
) -> Field:
    """Blobs scattered over an oval of ``extent`` pixels: (s, s) alpha."""
    side = int(np.ceil(extent * 1.1 + size[1] * 2.2 + 4))
    plane = np.zeros((side, side), np.float32)
    angle = rng.uniform(0, np.pi)
    for _ in range(count):
        along, across = rng.normal(0, 0.2, 2) * np.array([extent, extent * flatten])
        limit = extent / 2.0
        along, across = np.clip(along, -limit, limit), np.clip(across, -limit * flatten, limit * flatten)
        length = float(rng.uniform(*size))
        blob = ragged_blob(
            rng, length, length * rng.uniform(0.6, 1.0), rng.uniform(0, np.pi), softness=softness, raggedness=raggedness
        )
        x = side / 2.0 + along * np.cos(angle) - across * np.sin(angle)
        y = side / 2.0 + along * np.sin(angle) + across * np.cos(angle)
        paste_maximum(plane, blob * np.float32(rng.uniform(0.7, 1.0)), x, y)
    return plane


# Scattered classes -----------------------------------------------------------------------------------------


def _choroidal_focus(rng: np.random.Generator, unit: float) -> Drawing:
    """1 foyer_choroidien: cream foci under the vessels, alone or in a group, older ones with pigment."""
    size = _size(rng, 55, 150, 420, unit)
    count = int(rng.integers(1, 6))
    spot = (size * 0.35, size * 0.6) if count > 1 else (size * 0.8, size)
    plane = _cluster(rng, size if count > 1 else size * 0.2, count, spot, softness=0.5, raggedness=0.3)
    layers = [(BELOW_VESSELS, Layer(plane * np.float32(rng.uniform(0.6, 0.85)), CREAM))]
    if rng.random() < 0.45:
        speckle = smoothstep(smooth_noise(rng, plane.shape, max(14 * unit, 1.5), octaves=2), 0.5, 1.3)
        layers.append((BELOW_VESSELS, Layer(speckle * smoothstep(plane, 0.3, 0.8), PIGMENT, absorbs=True)))
    return Drawing(tuple(layers))


def _vitritis(rng: np.random.Generator, unit: float) -> Drawing:
    """2 hyalite: an out-of-focus veil with strands that washes out what lies behind."""
    length = _size(rng, 160, 380, 1100, unit)
    breadth = length * rng.uniform(0.5, 0.9)
    veil = ragged_blob(rng, length, breadth, rng.uniform(0, np.pi), softness=1.1, raggedness=0.5, grain=0.6)
    strands = smoothstep(np.abs(smooth_noise(rng, veil.shape, max(60 * unit, 2.0), octaves=2)), 0.5, 0.0)
    alpha = veil * (0.46 + 0.20 * strands)
    return Drawing(((IN_VITREOUS, Layer(alpha.astype(np.float32), (176.0, 182.0, 40.0))),))


def _haemorrhage(rng: np.random.Generator, unit: float) -> Drawing:
    """5 hemorragie: dark red blot, or a flame drawn out along the nerve fibres."""
    flame = rng.random() < 0.4
    length = _size(rng, 50, 120, 420, unit)
    angle = rng.uniform(0, np.pi)
    if not flame:
        alpha = ragged_blob(rng, length, length * rng.uniform(0.6, 0.95), angle, softness=0.35, raggedness=0.35)
    else:
        side = int(np.ceil(length * 1.6 + 6))
        alpha = np.zeros((side, side), np.float32)
        for _ in range(int(rng.integers(4, 9))):
            streak = ragged_blob(
                rng, length * rng.uniform(0.5, 0.95), length * rng.uniform(0.08, 0.2), angle + rng.normal(0, 0.12),
                softness=0.6, raggedness=0.35,
            )  # fmt: skip
            offset = rng.normal(0, 0.10, 2) * length
            paste_maximum(
                alpha,
                streak,
                side / 2 + offset[0] * np.cos(angle) - 0.9 * offset[1] * np.sin(angle),
                side / 2 + offset[0] * np.sin(angle) + 0.9 * offset[1] * np.cos(angle),
            )
    return Drawing(((ON_RETINA, Layer(alpha * np.float32(rng.uniform(0.7, 0.95)), BLOOD, absorbs=True)),))


def _choroidal_nodule(rng: np.random.Generator, unit: float) -> Drawing:
    """7 nodule_choroidien: round yellow-orange elevation, lit on one side, shaded on the other."""
    length = _size(rng, 66, 120, 330, unit)
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
            (BELOW_VESSELS, Layer(_ring_of(alpha, moved) * np.float32(0.6), PIGMENT, absorbs=True)),
        )
    )


def _granuloma(rng: np.random.Generator, unit: float) -> Drawing:
    """9 granulome_choroidien: fluffy white-yellow mass in a darker pool of subretinal fluid."""
    length = _size(rng, 60, 130, 300, unit)
    core = ragged_blob(
        rng, length, length * rng.uniform(0.75, 1.0), rng.uniform(0, np.pi), softness=0.75, raggedness=0.3
    )
    pool = ragged_blob(rng, length * 1.7, length * 1.55, 0.0, softness=0.6, raggedness=0.2)
    side = pool.shape[0]
    core = _centred(core, side)
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
    length = _size(rng, 120, 160, 230, unit)
    cuff = ragged_blob(rng, length * 1.5, length * 1.35, 0.0, softness=0.4, raggedness=0.12)
    side = cuff.shape[0]
    hole = _centred(
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
            (ON_RETINA, Layer(_ring_of(cuff, hole) * np.float32(0.5), (152.0, 162.0, 24.0))),
            (ON_RETINA, Layer(hole * np.float32(0.85), (150.0, 54.0, 8.0))),
            (IN_VITREOUS, Layer(lid * np.float32(0.75), (190.0, 188.0, 40.0))),
        )
    )


def _vitreous_condensation(rng: np.random.Generator, unit: float) -> Drawing:
    """14 condensations_vitre: grey-green floating clump with a few blurred strands."""
    length = _size(rng, 130, 220, 460, unit)
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
    clump = _centred(ragged_blob(rng, length * 0.45, length * 0.3, base, softness=0.8, raggedness=0.5), side)
    alpha = np.clip(np.maximum(strands * 1.2, clump * 0.7), 0, 1).astype(np.float32)
    if rng.random() < 0.5:
        return Drawing(((IN_VITREOUS, Layer(alpha * np.float32(0.75), (0.55, 0.55, 0.4), absorbs=True)),))
    return Drawing(((IN_VITREOUS, Layer(alpha * np.float32(0.6), (166.0, 182.0, 36.0))),))


def _hard_exudates(rng: np.random.Generator, unit: float) -> Drawing:
    """15 exudats: crisp yellow dots, clustered or in part of a ring."""
    extent = _size(rng, 75, 115, 330, unit)
    plane = _cluster(
        rng, extent, int(rng.integers(9, 26)), (max(extent * 0.08, 2.2), max(extent * 0.24, 3.5)),
        flatten=rng.uniform(0.5, 0.9), softness=0.15, raggedness=0.4,
    )  # fmt: skip
    return Drawing(((ON_RETINA, Layer(plane * np.float32(0.9), (226.0, 216.0, 34.0))),))


def _ischaemia(rng: np.random.Generator, unit: float) -> Drawing:
    """17 ischemie_retine: a dull, featureless dark sector."""
    length = _size(rng, 520, 760, 1150, unit)
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
    length = _size(rng, 85, 150, 380, unit)
    angle = rng.uniform(0, np.pi)
    alpha = ragged_blob(rng, length, length * rng.uniform(0.5, 0.75), angle, softness=0.7, raggedness=0.5, grain=0.35)
    return Drawing(((ON_RETINA, Layer(alpha * np.float32(rng.uniform(0.65, 0.85)), (186.0, 198.0, 44.0))),))


def _weiss_ring(rng: np.random.Generator, unit: float) -> Drawing:
    """19 anneau_weiss: blurred incomplete ring floating before the disc's surroundings."""
    length = _size(rng, 220, 270, 320, unit)
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
    length = _size(rng, 320, 520, 760, unit)
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


# Anchored classes ------------------------------------------------------------------------------------------


def _epiretinal_membrane(rng: np.random.Generator, scene: LesionScene) -> Drawing:
    """3 membrane_epiretinenne: glistening sheet over the macula, wrinkled."""
    unit = scene.pixels_per_unit
    length = _size(rng, 380, 480, 620, unit)
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
    return _around([(ON_RETINA, Layer(alpha.astype(np.float32), (148.0, 176.0, 26.0)))], *centre)


def _sheathed_vessel(rng: np.random.Generator, scene: LesionScene) -> Drawing | None:
    """4 vascularite: pale cuffs on both walls along a piece of vessel."""
    diameter, unit = scene.placement.disc_diameter, scene.pixels_per_unit
    able = [branch for branch in scene.branches if len(branch.points) >= 20 and branch.widths[0] > 0.026]
    if not able:
        return None
    branch = able[int(rng.integers(len(able)))]
    length = _size(rng, 160, 330, 760, 1.0) / (diameter / unit)
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
    cuff = widths * rng.uniform(1.9, 2.6) + rng.uniform(9, 20) * unit
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
    length = _size(rng, 380, 450, 540, unit)
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
    return _around(
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
    cup = _centred(ragged_blob(rng, size * 0.84, size * 0.78, 1.5, softness=0.2, raggedness=0.05), disc.shape[0])
    return _around(
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
    length = _size(rng, 150, 190, 250, scene.pixels_per_unit)
    side = int(np.ceil(length * 1.5 + 6))
    bulge = _centred(ragged_blob(rng, length * 0.42, length * 0.38, 0.0, softness=0.35, raggedness=0.08), side)
    exudate = np.zeros((side, side), np.float32)
    for angle in rng.uniform(0, 2 * np.pi, int(rng.integers(16, 30))):
        radius = length * rng.uniform(0.36, 0.46)
        dot = ragged_blob(rng, length * rng.uniform(0.05, 0.13), length * 0.07, angle, softness=0.25, raggedness=0.4)
        paste_maximum(exudate, dot, side / 2 + radius * np.cos(angle), side / 2 + radius * np.sin(angle))
    return _around(
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
    inner = _centred(ragged_blob(rng, diameter * 1.04, diameter * 0.98, 1.5, softness=0.15, raggedness=0.04), side)
    zone = _ring_of(outer, inner)
    pigment = smoothstep(outer, 0.05, 0.4) * smoothstep(outer, 0.98, 0.6)
    shift = scene.placement.temporal * diameter * 0.14
    return _around(
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
    return _around(
        [(ON_RETINA, Layer(alpha.astype(np.float32), (204.0, 184.0, 28.0)))],
        scene.placement.disc_x,
        scene.placement.disc_y,
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
