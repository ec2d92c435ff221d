"""Ultra-widefield images: retina, vessels and lesions behind the eye's frame.

Large smooth layers are computed on a coarse grid and enlarged; vessels, disc, lesions and noise are drawn at the
image's own resolution, so that a 12-megapixel image takes about a second. Files are written elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from uveitis_assets.sample.eye_frame import REFERENCE_WIDTH, EyeFrame, draw_eye_frame
from uveitis_assets.sample.lesion_drawing import BELOW_VESSELS, IN_VITREOUS, ON_RETINA, LesionScene
from uveitis_assets.sample.lesions import PlacedLesion, place_lesions
from uveitis_assets.sample.optic_disc import paint_optic_disc
from uveitis_assets.sample.painting import (
    Canvas,
    Field,
    absorb,
    add_sensor_noise,
    paint,
    random_generator,
    smooth_noise,
    smoothstep,
)
from uveitis_assets.sample.vessels import FOVEA, Placement, VesselBranch, draw_vessels, grow_vessel_trees

DISC_DIAMETER = 205.0
"""Optic disc diameter in reference pixels of a 3900 pixel wide image."""

COARSE_WIDTH = 850
OUTSIDE_LEVEL = 4

VEIN_ABSORPTION = (0.42, 0.74, 0.6)
ARTERY_ABSORPTION = (0.20, 0.60, 0.5)


@dataclass(frozen=True, slots=True)
class UltraWidefieldSample:
    """One rendered image with its truth.

    Attributes:
        image_rgb: (height, width, 3) uint8, RGB.
        retina_mask: (height, width) bool, true where retina (not lid, rim or black surround) was imaged.
        objects: (class id 1..20, corners (4, 2) float64) in pixels, edge convention (pixel i spans [i, i + 1)),
            clockwise as seen on the screen, the smallest rotated rectangle around the drawn lesion.
    """

    image_rgb: NDArray[np.uint8]
    retina_mask: NDArray[np.bool_]
    objects: tuple[tuple[int, NDArray[np.float64]], ...]


def render_ultra_widefield(
    seed: int,
    width: int = 1560,
    height: int = 1228,
    *,
    classes: Sequence[int] | None = None,
    draw_lesions: bool = True,
) -> UltraWidefieldSample:
    """Render one ultra-widefield image.

    Args:
        seed: any non-negative integer; same seed, size and classes give the same image.
        width, height: pixels; at least 200 x 150.
        classes: lesion classes (1..20) to draw; None draws a mix at about the frequencies of real uveitis labels,
            an empty sequence a healthy eye.
        draw_lesions: False leaves the lesions out and everything else as it is (objects is then empty).

    Raises:
        ValueError: the size is too small or a class is unknown.
    """
    if width < 200 or height < 150:
        raise ValueError(f"ultra-widefield image: expected at least 200 x 150 pixels, found {width} x {height}")
    coarse_width = min(width, int(np.clip(width * 0.5, 400, COARSE_WIDTH)))
    coarse_height = max(round(height * coarse_width / width), 8)
    scale = width / REFERENCE_WIDTH
    frame = draw_eye_frame(random_generator(seed, 1), coarse_height, coarse_width)
    rng = random_generator(seed, 2)
    placement = _place_anatomy(rng, width, height, scale)
    branches = grow_vessel_trees(rng, reach=10.5)

    canvas = _enlarge(_fundus_colour(rng, placement, coarse_height, coarse_width, width), width, height)
    paint_optic_disc(canvas, rng, placement, ultra_widefield=True)
    lesions: list[PlacedLesion] = []
    if draw_lesions:
        scene = _lesion_scene(frame, placement, branches, width, height)
        lesions = place_lesions(random_generator(seed, 3), scene, classes)
    _paint_depth(canvas, lesions, BELOW_VESSELS)
    densities = draw_vessels(branches, placement, height, width, optics=max(1.6 * scale, 0.45))
    absorb(canvas, densities.veins, VEIN_ABSORPTION)
    absorb(canvas, densities.arteries, ARTERY_ABSORPTION)
    cv2.add(canvas, cv2.LUT(cv2.merge([densities.reflex] * 3), _reflex_table()), dst=canvas)
    _paint_depth(canvas, lesions, ON_RETINA)
    _paint_depth(canvas, lesions, IN_VITREOUS)

    _put_frame_in_front(canvas, frame, rng)
    fine = float(rng.uniform(2.0, 4.5))
    add_sensor_noise(canvas, rng, fine=fine, coarse=float(rng.uniform(2.5, 5.0)), grain=max(2.2 * scale, 0.7))
    size = (width, height)
    canvas[cv2.resize(frame.hull_level, size, interpolation=cv2.INTER_LINEAR) <= 0] = OUTSIDE_LEVEL
    retina = cv2.resize(frame.retina_level, size, interpolation=cv2.INTER_LINEAR) > 0
    return UltraWidefieldSample(canvas, retina, tuple((lesion.class_id, lesion.corners) for lesion in lesions))


def _place_anatomy(rng: np.random.Generator, width: int, height: int, scale: float) -> Placement:
    temporal = 1 if rng.random() < 0.5 else -1
    diameter = DISC_DIAMETER * scale * rng.uniform(0.9, 1.1)
    fovea_x = width * (0.5 + temporal * rng.uniform(-0.02, 0.06))
    return Placement(
        disc_x=fovea_x - temporal * FOVEA[0] * diameter,
        disc_y=height * rng.uniform(0.46, 0.55),
        disc_diameter=diameter,
        temporal=temporal,
        tilt=float(rng.normal(0, 0.06)),
    )


def _enlarge(plane: Field, width: int, height: int) -> NDArray[np.uint8]:
    rounded = np.clip(plane + 0.5, 0, 255).astype(np.uint8)
    if rounded.shape[:2] == (height, width):
        return np.asarray(rounded, np.uint8)
    return np.asarray(cv2.resize(rounded, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def _fundus_colour(rng: np.random.Generator, placement: Placement, height: int, width: int, full_width: int) -> Field:
    """Retina without vessels and disc on the coarse grid: (height, width, 3) float32, 0..255."""
    shrink = width / full_width
    diameter = placement.disc_diameter * shrink
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    # Anatomical coordinates in disc diameters; the tilt is too small to matter for colour.
    ax = ((x + 0.5) - placement.disc_x * shrink) * (placement.temporal / diameter)
    ay = ((y + 0.5) - placement.disc_y * shrink) / diameter
    from_disc = np.sqrt(ax**2 + ay**2)
    from_fovea = np.sqrt((ax - FOVEA[0]) ** 2 + (ay - FOVEA[1]) ** 2)

    green_shift = float(rng.uniform(-0.5, 1.0))
    tone = smooth_noise(rng, (height, width), width / 4.5, octaves=3)
    periphery = smoothstep(from_fovea, 3.0, 9.0)
    # Green light is scattered most in the mid periphery; farther out the choroid shines yellow-orange.
    middle = np.exp(-np.square((from_fovea - float(rng.uniform(3.2, 5.0))) / 2.2)) * (0.75 + 0.5 * tone)
    ring = float(rng.uniform(0.0, 1.0)) * middle
    red = 118.0 - 16.0 * green_shift + 7.0 * tone + 24.0 * periphery - 14.0 * ring
    green = 84.0 + 22.0 * green_shift - 9.0 * tone + 18.0 * periphery * (0.6 + 0.4 * green_shift) + 26.0 * ring
    # Reddish-brown clouds where the pigment shines through.
    cloud = smoothstep(smooth_noise(rng, (height, width), width / 7.0, octaves=3), 0.5, 1.8)
    red -= 10.0 * cloud
    green -= 16.0 * cloud

    strength = float(rng.uniform(0.3, 1.15))
    choroid = _choroidal_vessels(rng, ax, ay, from_disc)
    visible = smoothstep(
        smooth_noise(rng, (height, width), width / 6.0, octaves=2) + 0.9 * (from_fovea / 5.0 - 0.55), 0, 1.1
    )
    visible *= smoothstep(from_fovea, 1.2, 2.8) * strength
    red += visible * (56.0 * choroid - 16.0)
    green += visible * (10.0 * choroid - 14.0)

    mottle = smooth_noise(rng, (height, width), 5.0, octaves=3, persistence=0.8)
    red += 3.5 * mottle
    green += 3.0 * mottle + 2.0 * smooth_noise(rng, (height, width), 9.0, octaves=2)

    # Nerve fibres shine green-yellow along the arcades and around the disc.
    sheen = np.exp(-np.square((from_fovea - 2.4) / 1.3)) * np.exp(-np.square(from_disc / 3.2))
    green += 26.0 * float(rng.uniform(0.3, 1.0)) * sheen
    red += 9.0 * sheen
    halo = np.exp(-np.square(from_disc / float(rng.uniform(0.75, 1.0))))
    green += 16.0 * halo
    red -= 12.0 * halo
    # Macular pigment darkens, most at the fovea, which keeps a tiny reflex.
    macula = 0.30 * np.exp(-np.square(from_fovea / 1.0)) + 0.30 * np.exp(-np.square(from_fovea / 0.36))
    keep = 1.0 - macula * float(rng.uniform(0.7, 1.1))
    red *= keep
    green *= 0.25 + 0.75 * keep
    glint = np.exp(-np.square(from_fovea / 0.045)) * float(rng.uniform(0, 60))
    green = np.maximum(green, 0.44 * red)
    blue = 5.0 + 0.02 * green
    return np.stack([red + glint, green + glint, blue + 0.3 * glint], axis=-1).astype(np.float32)


def _choroidal_vessels(rng: np.random.Generator, ax: Field, ay: Field, from_disc: Field) -> Field:
    """Orange strands that fan out from the disc towards the vortex veins, 0..1 on the coarse grid."""
    height, width = ax.shape
    bend_x = smooth_noise(rng, (height, width), width / 9.0, octaves=3)
    bend_y = smooth_noise(rng, (height, width), width / 9.0, octaves=3)
    px = ax - 0.7 + 0.20 * bend_x
    py = ay + 0.20 * bend_y
    angle = np.arctan2(py, px) / (2.0 * np.pi) + 0.5
    radius = np.log1p(np.sqrt(px**2 + py**2))
    strands = np.zeros((height, width), np.float32)
    for count, low, high in ((210, 0.0, 3.5), (430, 2.5, 30.0)):
        # White noise, periodic in angle and drawn out along the radius: its crests are the strands.
        grid = rng.standard_normal((16, count), dtype=np.float32)
        grid = np.concatenate([grid, grid[:, :4]], axis=1)
        map_x = (angle * count).astype(np.float32)
        map_y = (1.0 + radius * 2.6).astype(np.float32)
        sampled = cv2.remap(grid, map_x, map_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        ridge = smoothstep(sampled, -0.1, 1.2)
        window = smoothstep(from_disc, low - 0.6, low + 1.0) * smoothstep(from_disc, high + 2.0, high)
        strands = np.maximum(strands, ridge * window)
    return np.asarray(strands, np.float32)


def _lesion_scene(
    frame: EyeFrame, placement: Placement, branches: Sequence[VesselBranch], width: int, height: int
) -> LesionScene:
    """Tell the lesion catalogue where it may draw: retina that is lit and not behind lids or lashes."""
    clear = (frame.retina_level > 55.0) & (frame.transmission > 0.42)
    return LesionScene(
        width=width,
        height=height,
        pixels_per_unit=width / REFERENCE_WIDTH,
        placement=placement,
        branches=branches,
        clear=clear,
    )


def _paint_depth(canvas: Canvas, lesions: Sequence[PlacedLesion], depth: str) -> None:
    for lesion in lesions:
        for layer_depth, layer in lesion.layers:
            if layer_depth == depth:
                paint(canvas, layer, lesion.left, lesion.top)


def _reflex_table() -> NDArray[np.uint8]:
    levels = np.arange(256, dtype=np.float32)
    return np.stack([levels * 0.13, levels * 0.10, levels * 0.01], axis=-1).astype(np.uint8).reshape(1, 256, 3)


def _put_frame_in_front(canvas: Canvas, frame: EyeFrame, rng: np.random.Generator) -> None:
    """Multiply by the passed light and add lids and rim, in place."""
    height, width = canvas.shape[:2]
    # Exposure and the balance of the two lasers differ from image to image; a gain above 1 needs head-room.
    exposure = float(rng.uniform(0.9, 1.35))
    gains = exposure * np.array([rng.uniform(0.9, 1.1), rng.uniform(0.85, 1.12), 1.0])
    passed = _enlarge(frame.transmission * 255.0, width, height)
    table = np.stack([np.arange(256) * gain / 1.5 for gain in gains], axis=-1)
    passed_rgb = cv2.LUT(cv2.merge([passed] * 3), np.clip(table, 0, 255).astype(np.uint8).reshape(1, 256, 3))
    cv2.multiply(canvas, passed_rgb, dst=canvas, scale=1.5 / 255.0)
    cv2.add(canvas, _enlarge(frame.light, width, height), dst=canvas)
