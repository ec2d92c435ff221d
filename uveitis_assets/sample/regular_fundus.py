"""Regular colour fundus images: round field of view, orange retina, lesions with one mask per class.

The anatomy and the brushes are those of the ultra-widefield images; colours, scale and lesions differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.sample.optic_disc import paint_optic_disc
from uveitis_assets.sample.painting import (
    Canvas,
    Field,
    Layer,
    absorb,
    add_sensor_noise,
    paint,
    random_generator,
    smooth_noise,
    smoothstep,
)
from uveitis_assets.sample.regular_lesions import RegularScene, draw_regular_lesions
from uveitis_assets.sample.vessels import FOVEA, Placement, draw_vessels, grow_vessel_trees

LESION_FOLDERS = (
    "HardExudate_Masks",
    "SoftExudate_Masks",
    "Hemohedge_Masks",
    "Microaneurysms_Masks",
    "IRMA_Masks",
    "Neovascularization_Masks",
)
"""Mask folders of the FGADR layout, spelt as the data set spells them."""

COARSE_SIZE = 700
MASK_LEVEL = 0.35
"""Alpha from which a pixel counts as lesion."""

BLOOD = (0.30, 0.66, 0.62)
VEIN_ABSORPTION = (0.24, 0.60, 0.55)
ARTERY_ABSORPTION = (0.12, 0.46, 0.42)


@dataclass(frozen=True, slots=True)
class RegularFundusSample:
    """One rendered image with its truth.

    Attributes:
        image_rgb: (size, size, 3) uint8, RGB.
        fov_mask: (size, size) bool, the camera's field of view.
        lesion_masks: folder name of FGADR's layout -> (size, size) bool; every folder is there, absent classes are
            all False.
    """

    image_rgb: NDArray[np.uint8]
    fov_mask: NDArray[np.bool_]
    lesion_masks: dict[str, NDArray[np.bool_]]


def render_regular_fundus(seed: int, size: int = 1280, *, draw_lesions: bool = True) -> RegularFundusSample:
    """Render one square regular fundus image.

    Args:
        seed: any non-negative integer; same seed and size give the same image.
        size: pixels of width and height; at least 128.
        draw_lesions: False leaves the lesions out and everything else as it is.

    Raises:
        ValueError: the size is too small.
    """
    if size < 128:
        raise ValueError(f"regular fundus image: expected at least 128 pixels, found {size}")
    rng = random_generator(seed, 11)
    fov_level, radius = _field_of_view(rng, size)
    fov = fov_level > 0
    placement = _place_anatomy(rng, size, radius)
    coarse = min(size, COARSE_SIZE)
    colour = _fundus_colour(rng, placement, coarse, size)
    canvas = cv2.resize(np.clip(colour + 0.5, 0, 255).astype(np.uint8), (size, size), interpolation=cv2.INTER_CUBIC)
    paint_optic_disc(canvas, rng, placement, ultra_widefield=False)
    branches = grow_vessel_trees(rng, reach=5.6, generations=5)
    densities = draw_vessels(branches, placement, size, size, optics=max(size / 1100.0, 0.45))
    scene = RegularScene(size, placement, fov)
    if draw_lesions:
        draw_regular_lesions(random_generator(seed, 12), scene)
    for folder in ("SoftExudate_Masks", "HardExudate_Masks"):
        if folder in scene.densities:
            tint = (250.0, 226.0, 96.0) if folder.startswith("Hard") else (232.0, 206.0, 150.0)
            paint(canvas, Layer(scene.densities[folder], tint), 0, 0)
    absorb(canvas, densities.veins, VEIN_ABSORPTION)
    absorb(canvas, densities.arteries, ARTERY_ABSORPTION)
    cv2.add(
        canvas, cv2.merge([(densities.reflex * factor).astype(np.uint8) for factor in (0.11, 0.07, 0.04)]), dst=canvas
    )
    for folder in ("IRMA_Masks", "Neovascularization_Masks", "Microaneurysms_Masks", "Hemohedge_Masks"):
        if folder in scene.densities:
            paint(canvas, Layer(scene.densities[folder], BLOOD, absorbs=True), 0, 0)
    masks = {
        folder: (scene.densities[folder] > MASK_LEVEL) & fov
        if folder in scene.densities
        else np.zeros((size, size), np.bool_)
        for folder in LESION_FOLDERS
    }
    _expose(canvas, rng, fov_level, placement)
    return RegularFundusSample(canvas, fov, masks)


def _field_of_view(rng: np.random.Generator, size: int) -> tuple[Field, float]:
    """Distance inside the field's edge in px (size, size), and its radius.

    Many cameras cut top and bottom.
    """
    radius = size * rng.uniform(0.465, 0.493)
    centre = size / 2.0 + rng.normal(0, 0.004, 2) * size
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) + 0.5
    level = radius - np.hypot(x - centre[0], y - centre[1])
    if rng.random() < 0.4:
        cut = radius * rng.uniform(0.84, 0.95)
        level = np.minimum(level, cut - np.abs(y - centre[1]))
    notch = rng.random()
    if notch < 0.35:
        # The orientation notch of some cameras: a small tab outside the circle.
        angle = -0.62 if notch < 0.2 else 0.62
        tab = np.hypot(x - centre[0] - radius * np.cos(angle), y - centre[1] - radius * np.sin(angle))
        level = np.maximum(level, size * 0.018 - tab)
    return level.astype(np.float32), float(radius)


def _place_anatomy(rng: np.random.Generator, size: int, radius: float) -> Placement:
    temporal = 1 if rng.random() < 0.5 else -1
    diameter = radius * 2 * rng.uniform(0.125, 0.15)
    macula_centred = rng.random() < 0.75
    fovea_x = size / 2.0 + temporal * size * (rng.normal(0, 0.02) if macula_centred else 0.24)
    return Placement(
        disc_x=fovea_x - temporal * FOVEA[0] * diameter,
        disc_y=size * (0.5 + rng.normal(0, 0.02)) - FOVEA[1] * diameter,
        disc_diameter=diameter,
        temporal=temporal,
        tilt=float(rng.normal(0, 0.05)),
    )


def _fundus_colour(rng: np.random.Generator, placement: Placement, coarse: int, size: int) -> Field:
    """Retina without vessels and disc: (coarse, coarse, 3) float32, 0..255."""
    shrink = coarse / size
    diameter = placement.disc_diameter * shrink
    y, x = np.mgrid[0:coarse, 0:coarse].astype(np.float32) + 0.5
    ax = (x - placement.disc_x * shrink) * (placement.temporal / diameter)
    ay = (y - placement.disc_y * shrink) / diameter
    from_disc = np.hypot(ax, ay)
    from_fovea = np.hypot(ax - FOVEA[0], ay - FOVEA[1])
    skin = float(rng.uniform(-1, 1))
    base = np.array([206 - 14 * skin, 108 - 22 * skin, 48 - 20 * skin], np.float32)
    tone = smooth_noise(rng, (coarse, coarse), coarse / 4.0, octaves=3)
    plane = base * (1.0 + 0.045 * tone[..., None] * np.array([0.7, 1.0, 1.2], np.float32))
    # Choroid shining through: a fine orange-grey network, more in light eyes.
    net = np.abs(smooth_noise(rng, (coarse, coarse), coarse / 26.0, octaves=2))
    network = smoothstep(net, 0.5, 0.0) * smoothstep(from_fovea, 1.0, 2.4) * float(rng.uniform(0.0, 1.0))
    plane += network[..., None] * np.array([12.0, 4.0, 1.0], np.float32)
    mottle = smooth_noise(rng, (coarse, coarse), 4.0, octaves=3, persistence=0.8)
    plane += mottle[..., None] * np.array([2.2, 2.4, 1.6], np.float32)
    halo = np.exp(-np.square(from_disc / 0.95))
    plane += halo[..., None] * np.array([12.0, 16.0, 10.0], np.float32)
    darkness = 0.22 * np.exp(-np.square(from_fovea / 0.95)) + 0.20 * np.exp(-np.square(from_fovea / 0.36))
    plane *= 1.0 - darkness[..., None] * np.array([0.75, 1.2, 1.2], np.float32) * float(rng.uniform(0.7, 1.1))
    glint = np.exp(-np.square(from_fovea / 0.05)) * float(rng.uniform(0, 30))
    return np.asarray(plane + glint[..., None], np.float32)


def _expose(canvas: Canvas, rng: np.random.Generator, level: Field, placement: Placement) -> None:
    """Light fall-off, sensor noise and the black surround, in place."""
    size = canvas.shape[0]
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    centre = rng.normal(0, 0.05, 2)
    fall = 1.0 - float(rng.uniform(0.25, 0.6)) * np.power((x - centre[0]) ** 2 + (y - centre[1]) ** 2, 0.9) * 2.2
    # The flash leaves a pale or dim crescent near the edge.
    side = float(rng.uniform(0, 2 * np.pi))
    crescent = np.exp(-np.maximum(level, 0) / (0.03 * size)) * np.clip(
        (x * np.cos(side) + y * np.sin(side)) * 2.0, 0, 1
    )
    gain = float(rng.uniform(0.82, 1.05)) * np.clip(fall, 0.2, 1.1)
    lit = canvas.astype(np.float32) * gain[..., None]
    lit += (float(rng.uniform(-30, 25)) * crescent)[..., None] * np.array([0.5, 1.0, 1.0], np.float32)
    canvas[:] = np.clip(lit + 0.5, 0, 255).astype(np.uint8)
    add_sensor_noise(
        canvas, rng, fine=float(rng.uniform(1.0, 2.2)), coarse=float(rng.uniform(1.2, 2.4)), grain=max(size / 900, 0.7)
    )
    # The aperture's edge is a pixel or two soft; the surround keeps a trace of sensor noise.
    edge = smoothstep(level, -0.5, 1.5)[..., None]
    surround = rng.integers(0, 4, (size, size, 1), dtype=np.uint8)
    canvas[:] = (canvas * edge + surround * (1.0 - edge) + 0.5).astype(np.uint8)
