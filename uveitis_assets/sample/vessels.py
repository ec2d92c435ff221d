"""Retinal vessel trees: grown in anatomical units around the optic disc, then drawn on a pixel grid.

A tree is a list of branches in disc diameters (disc centre at the origin, x towards the fovea, y downwards), so
that a regular and an ultra-widefield image share the anatomy and differ in reach. Arteries and veins form separate
trees that cross each other but not themselves. It draws densities, not colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.sample.painting import blur

FOVEA = np.array([2.45, 0.18])
"""Centre of the fovea in disc diameters: temporal of the disc and slightly below it."""

STEP = 0.06
"""Length of one growth step in disc diameters."""

_SUBPIXEL_BITS = 4
_GRID_CELL = 0.075


@dataclass(frozen=True, slots=True)
class VesselBranch:
    """Centre line (n, 2) and widths (n,) in disc diameters, from the disc outwards."""

    points: NDArray[np.float64]
    widths: NDArray[np.float64]
    is_vein: bool
    generation: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the anatomy lies in the image: disc centre and diameter in px, side and tilt.

    ``temporal`` is +1 where the fovea lies to the right of the disc (a left eye), -1 where it lies to the left.
    """

    disc_x: float
    disc_y: float
    disc_diameter: float
    temporal: int
    tilt: float

    def to_pixels(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 2) disc diameters -> (n, 2) pixel coordinates (x, y)."""
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        x = points[:, 0] * cos - points[:, 1] * sin
        y = points[:, 0] * sin + points[:, 1] * cos
        return np.stack(
            [self.disc_x + self.temporal * x * self.disc_diameter, self.disc_y + y * self.disc_diameter], axis=1
        )


@dataclass(slots=True)
class _Seeds:
    """State of the branches of one generation, one row each."""

    start: NDArray[np.float64]
    heading: NDArray[np.float64]
    width: NDArray[np.float64]
    length: NDArray[np.float64]
    guide: NDArray[np.int64]
    side: NDArray[np.float64]
    parent: NDArray[np.int64]


_ARCADE, _RADIAL, _FOVEAL = 0, 1, 2


def grow_vessel_trees(rng: np.random.Generator, reach: float, generations: int = 4) -> list[VesselBranch]:
    """Grow the arterial and the venous tree out to ``reach`` disc diameters from the disc.

    Returns:
        Branches, thinnest first: drawn in this order the trunks lie on top.
    """
    tortuosity = rng.uniform(0.035, 0.065)
    openness = rng.uniform(1.9, 3.0, 4)
    branches: list[VesselBranch] = []
    for is_vein in (True, False):
        branches += _grow_tree(
            rng,
            reach,
            generations,
            is_vein=is_vein,
            tortuosity=tortuosity * (1.0 if is_vein else 1.15),
            openness=openness,
        )
    return sorted(branches, key=lambda branch: float(branch.widths[0]))


def _grow_tree(
    rng: np.random.Generator,
    reach: float,
    generations: int,
    *,
    is_vein: bool,
    tortuosity: float,
    openness: NDArray[np.float64],
) -> list[VesselBranch]:
    cells = int(np.ceil(2 * (reach + 1) / _GRID_CELL))
    owner = np.zeros((cells, cells), np.int32)
    seeds = _trunks(rng, reach, is_vein)
    branches: list[VesselBranch] = []
    arcade_openness = np.resize(openness, len(seeds.start))
    for generation in range(generations):
        points = _walk(rng, seeds, reach, tortuosity, arcade_openness)
        order = np.argsort(-seeds.width, kind="stable")
        grown: list[int] = []
        for index in order:
            identity = len(branches) + 1
            path = _smoothed(
                _free_part(
                    points[index],
                    owner,
                    identity=identity,
                    parent=int(seeds.parent[index]),
                    reach=reach,
                    generation=generation,
                )
            )
            if len(path) < 5:
                continue
            widths = _taper(float(seeds.width[index]), len(path), len(points[index]), generation)
            branches.append(VesselBranch(path, widths, is_vein, generation))
            grown.append(identity)
        if generation + 1 == generations:
            break
        seeds = _children(rng, branches, grown, generation)
        if not len(seeds.start):
            break
        arcade_openness = np.full(len(seeds.start), 2.5)
    return branches


def _smoothed(path: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round off the corners of a path; both ends stay."""
    for _ in range(3):
        if len(path) > 2:
            path = np.concatenate([path[:1], (path[:-2] + 2.0 * path[1:-1] + path[2:]) / 4.0, path[-1:]])
    return path


def _taper(width: float, count: int, planned: int, generation: int) -> NDArray[np.float64]:
    """Widths along a branch: trunks keep a third of theirs, side branches thin out to almost nothing."""
    t = np.arange(count) / max(planned - 1, 1)
    final = 0.28 if generation == 0 else 0.22
    widths = width * (1.0 - (1.0 - final) * t**0.6)
    # The last steps fade, also where a branch was cut short: no vessel ends bluntly.
    fade = np.clip((count - np.arange(count)) / 14.0, 0.0, 1.0) if count < planned or generation else np.ones(count)
    return np.maximum(widths * np.sqrt(fade), 0.004)


def _trunks(rng: np.random.Generator, reach: float, is_vein: bool) -> _Seeds:
    """Four large vessels to the quadrants and a few small ones straight from the disc."""
    angles = np.deg2rad([-80, 80, -126, 130]) + rng.normal(0, 0.10, 4) + (0.12 if is_vein else -0.05)
    small_count = int(rng.integers(4, 7))
    small = np.deg2rad(rng.uniform(0, 360, small_count))
    angle = np.concatenate([angles, small])
    base = (0.082 if is_vein else 0.062) * rng.uniform(0.9, 1.1)
    width = np.concatenate(
        [base * np.array([1.0, 1.0, 0.82, 0.82]) * rng.uniform(0.9, 1.1, 4), rng.uniform(0.018, 0.034, small_count)]
    )
    centre = np.array([rng.normal(-0.03, 0.02), rng.normal(0, 0.03) + (0.05 if is_vein else -0.02)])
    start = centre + 0.10 * np.stack([np.cos(angle), np.sin(angle)], axis=1) * rng.uniform(0.2, 1.0, (len(angle), 1))
    length = np.concatenate([np.full(4, reach * 1.3), rng.uniform(1.2, 4.5, small_count)])
    towards_fovea = np.abs(np.arctan2(np.sin(small), np.cos(small))) < 0.7
    guide = np.concatenate([[_ARCADE, _ARCADE, _RADIAL, _RADIAL], np.where(towards_fovea, _FOVEAL, _RADIAL)])
    return _Seeds(start, angle, width, length, guide, np.sign(np.sin(angle)), np.zeros(len(angle), np.int64))


def _walk(
    rng: np.random.Generator, seeds: _Seeds, reach: float, tortuosity: float, openness: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Advance all branches of a generation together; headings follow a guide field plus coloured noise."""
    count = len(seeds.start)
    steps = np.minimum(np.ceil(seeds.length / STEP), np.ceil(2.2 * reach / STEP)).astype(int)
    # Small vessels wind more than trunks.
    winding = tortuosity * np.clip(0.05 / np.maximum(seeds.width, 1e-3), 0.8, 1.7) ** 0.5
    bend = np.zeros(count)
    x, y = seeds.start[:, 0].copy(), seeds.start[:, 1].copy()
    heading = seeds.heading.copy()
    track = np.empty((int(steps.max()) + 1, count, 2))
    track[0] = seeds.start
    noise = winding * rng.standard_normal((int(steps.max()), count))
    arcade, foveal = seeds.guide == _ARCADE, seeds.guide == _FOVEAL
    pull = np.select([arcade, foveal], [0.15, 0.06], 0.028)
    for step in range(int(steps.max())):
        wanted = np.arctan2(y, x - 0.9)
        if foveal.any():
            wanted[foveal] = np.arctan2(FOVEA[1] - y[foveal], FOVEA[0] - x[foveal])
        if arcade.any():
            # Arcades follow a parabola around the macula, then flatten towards the horizontal.
            slope = np.arctan2(openness[arcade], 2.0 * np.maximum(np.abs(y[arcade]), 0.12))
            slope -= 0.45 * np.clip((x[arcade] - 1.2) / 2.5, 0.0, 1.0)
            wanted[arcade] = seeds.side[arcade] * slope
        heading += pull * (np.remainder(wanted - heading + np.pi, 2.0 * np.pi) - np.pi)
        # The winding swings around the course instead of adding up, so that no vessel curls into a loop.
        bend = 0.86 * bend + noise[step]
        course = heading + 3.4 * bend
        x += STEP * np.cos(course)
        y += STEP * np.sin(course)
        track[step + 1, :, 0] = x
        track[step + 1, :, 1] = y
    return [track[: steps[index] + 1, index] for index in range(count)]


def _free_part(
    path: NDArray[np.float64], owner: NDArray[np.int32], *, identity: int, parent: int, reach: float, generation: int
) -> NDArray[np.float64]:
    """Cut a path where it leaves the reach, meets the foveal avascular zone or another vessel of its tree."""
    fovea_distance = np.linalg.norm(path - FOVEA, axis=1)
    stop = (np.linalg.norm(path, axis=1) > reach) | (fovea_distance < 0.33)
    cells = np.clip(((path + reach + 1) / _GRID_CELL).astype(int), 0, len(owner) - 1)
    holder = owner[cells[:, 1], cells[:, 0]]
    # Vessels crowd on the disc, and a branch leaves its parent's own cells during its first steps.
    taken = (holder != 0) & (np.linalg.norm(path, axis=1) > 0.7)
    taken[:6] &= holder[:6] != parent
    if generation == 0:
        taken &= np.linalg.norm(path, axis=1) > 2.0
    stop |= taken
    end = int(np.argmax(stop)) if stop.any() else len(path)
    if end >= 5:
        owner[cells[:end, 1], cells[:end, 0]] = identity
    return path[:end]


def _children(
    rng: np.random.Generator, branches: Sequence[VesselBranch], parents: Sequence[int], generation: int
) -> _Seeds:
    """Sprout side branches along the branches just grown; a parent keeps its course."""
    rows: list[tuple[float, float, float, float, float, int, float, int]] = []
    for identity in parents:
        branch = branches[identity - 1]
        count = len(branch.points)
        position = 3 + int(rng.uniform(0.15, 0.9) / STEP * (1.0 if generation else 0.6))
        side = 1.0 if rng.random() < 0.5 else -1.0
        while position < count - 3:
            width = float(branch.widths[position]) * (
                rng.uniform(0.45, 0.75) if rng.random() < 0.7 else rng.uniform(0.75, 0.92)
            )
            if width < 0.0075:
                break
            ahead = branch.points[position + 2] - branch.points[position - 2]
            point = branch.points[position]
            heading = float(np.arctan2(ahead[1], ahead[0])) + side * np.deg2rad(rng.uniform(26, 60))
            outward = float(np.arctan2(point[1], point[0] - 0.9))
            to_fovea = FOVEA - point
            inward = np.cos(heading) * to_fovea[0] + np.sin(heading) * to_fovea[1] > 0
            distance = float(np.hypot(*to_fovea))
            guide = _FOVEAL if inward and distance < 2.7 and point[0] > 0.3 else _RADIAL
            side = -side if rng.random() < 0.75 else side
            position += int(rng.uniform(0.5, 1.7) * (0.8 + 9.0 * width) / STEP)
            # A branch that would have to turn round to reach the periphery is not one.
            if guide == _RADIAL and np.cos(heading - outward) < 0.2:
                continue
            length = rng.uniform(60, 130) * width
            if guide == _FOVEAL:
                length = min(length, distance * 1.1)
            rows.append((point[0], point[1], heading, width, length, guide, 1.0, identity))
    table = np.array(rows, np.float64).reshape(-1, 8)
    return _Seeds(
        table[:, 0:2],
        table[:, 2],
        table[:, 3],
        table[:, 4],
        table[:, 5].astype(np.int64),
        table[:, 6],
        table[:, 7].astype(np.int64),
    )


def draw_polyline(
    target: NDArray[np.uint8], points: NDArray[np.float64], widths: NDArray[np.float64], value: float = 255.0
) -> None:
    """Draw a tapering line in place: points (n, 2) and widths (n,) in pixels, anti-aliased.

    Lines thinner than a pixel are drawn fainter instead of thicker.
    """
    if len(points) < 2:
        return
    height, width = target.shape
    margin = float(widths.max()) + 2
    inside = (
        (points[:, 0] > -margin)
        & (points[:, 1] > -margin)
        & (points[:, 0] < width + margin)
        & (points[:, 1] < height + margin)
    )
    if not inside.any():
        return
    tangent = np.gradient(points, axis=0)
    norm = np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1) / norm
    half = np.maximum(widths, 0.9)[:, None] / 2.0
    # fillConvexPoly's anti-aliased outline reaches about half a pixel beyond the polygon.
    half = np.maximum(half - 0.25, 0.2)
    scale = 1 << _SUBPIXEL_BITS
    left = np.round((points + normal * half) * scale).astype(np.int32)
    right = np.round((points - normal * half) * scale).astype(np.int32)
    shade = value * np.clip(widths / 1.3, 0.3, 1.0)
    quads = np.stack([left[:-1], left[1:], right[1:], right[:-1]], axis=1)
    for index in np.flatnonzero(inside[:-1] | inside[1:]):
        cv2.fillConvexPoly(target, quads[index], float(shade[index]), cv2.LINE_AA, _SUBPIXEL_BITS)


@dataclass(frozen=True, slots=True)
class VesselDensities:
    """Blood columns on the pixel grid, (h, w) uint8 each, 255 = full; ``reflex``: centre line."""

    veins: NDArray[np.uint8]
    arteries: NDArray[np.uint8]
    reflex: NDArray[np.uint8]


def draw_vessels(
    branches: Sequence[VesselBranch], placement: Placement, height: int, width: int, *, optics: float
) -> VesselDensities:
    """Draw the trees; ``optics`` is the spread in pixels of the optics."""
    veins = np.zeros((height, width), np.uint8)
    arteries = np.zeros((height, width), np.uint8)
    reflex = np.zeros((height, width), np.uint8)
    for branch in branches:
        points = placement.to_pixels(branch.points)
        widths = branch.widths * placement.disc_diameter
        # Capillary-sized branches carry less blood in the light path: fainter, not only thinner.
        contrast = float(np.clip(0.35 + branch.widths[0] / 0.05, 0.45, 1.0))
        draw_polyline(veins if branch.is_vein else arteries, points, widths, 255.0 * contrast)
        wide = widths > 4.0
        if wide.sum() > 2:
            keep = slice(0, int(np.flatnonzero(wide)[-1]))
            draw_polyline(reflex, points[keep], widths[keep] * 0.3, 150.0 if branch.is_vein else 255.0)
    if optics > 0.2:
        veins, arteries, reflex = (blur(plane, optics) for plane in (veins, arteries, reflex))
    return VesselDensities(veins, arteries, reflex)
