"""Diabetic lesions of regular fundus images, one alpha plane per class of FGADR's mask folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.sample.painting import Field, blur, paste_maximum, ragged_blob
from uveitis_assets.sample.vessels import FOVEA, Placement, draw_polyline


@dataclass(slots=True)
class RegularScene:
    """Anatomy and field of view of one regular image, and the alpha plane of each lesion class drawn."""

    size: int
    placement: Placement
    fov: NDArray[np.bool_]
    densities: dict[str, Field] = field(default_factory=dict)

    def density(self, folder: str) -> Field:
        """The alpha plane (size, size) of a class's mask folder, to be drawn into."""
        return self.densities.setdefault(folder, np.zeros((self.size, self.size), np.float32))


def draw_regular_lesions(rng: np.random.Generator, scene: RegularScene) -> None:
    """Draw the lesions of one image into the scene's planes."""
    for _, chance, draw in _LESIONS:
        present = rng.random() < chance
        # The stream of one class does not depend on whether another is present.
        if present:
            draw(rng.spawn(1)[0], scene)
        else:
            rng.spawn(1)


def _spots(
    rng: np.random.Generator, scene: RegularScene, count: int, spread: float, keep_off_disc: float = 0.9
) -> NDArray[np.float64]:
    """(n, 2) pixel positions around the fovea inside the field of view, off the disc; n <= count."""
    found: list[NDArray[np.float64]] = []
    for point in FOVEA + rng.normal(0, spread, (count * 4, 2)):
        if np.hypot(*point) < keep_off_disc:
            continue
        pixel = scene.placement.to_pixels(point[None])[0]
        column, row = int(pixel[0]), int(pixel[1])
        margin = int(scene.size * 0.02)
        if not (margin <= column < scene.size - margin and margin <= row < scene.size - margin):
            continue
        if scene.fov[row - margin : row + margin + 1, column - margin : column + margin + 1].all():
            found.append(pixel)
        if len(found) == count:
            break
    return np.array(found, np.float64).reshape(-1, 2)


def _hard_exudates(rng: np.random.Generator, scene: RegularScene) -> None:
    """Crisp yellow deposits, in clusters and in rings around a leak."""
    plane, unit = scene.density("HardExudate_Masks"), scene.size / 1280.0
    for centre in _spots(rng, scene, int(rng.integers(2, 6)), 1.1):
        ring = rng.random() < 0.4
        radius = rng.uniform(30, 95) * unit
        for _ in range(int(rng.integers(8, 40))):
            angle = rng.uniform(0, 2 * np.pi)
            distance = radius * (rng.normal(1, 0.1) if ring else abs(rng.normal(0, 0.55)))
            size = float(np.clip(rng.lognormal(1.9, 0.55), 3, 30)) * unit
            blob = ragged_blob(rng, max(size, 2.5), max(size * 0.7, 2.0), angle, softness=0.4, raggedness=0.3)
            x, y = centre[0] + distance * np.cos(angle), centre[1] + distance * np.sin(angle)
            paste_maximum(plane, blob * np.float32(rng.uniform(0.55, 0.9)), x, y)


def _soft_exudates(rng: np.random.Generator, scene: RegularScene) -> None:
    """Feathered pale patches of 25 to 70 pixels."""
    plane, unit = scene.density("SoftExudate_Masks"), scene.size / 1280.0
    for x, y in _spots(rng, scene, int(rng.integers(1, 6)), 1.8, keep_off_disc=1.1):
        size = rng.uniform(24, 68) * unit
        blob = ragged_blob(
            rng, size, size * rng.uniform(0.5, 0.8), rng.uniform(0, np.pi), softness=0.7, raggedness=0.5, grain=0.3
        )
        paste_maximum(plane, blob * np.float32(rng.uniform(0.55, 0.8)), x, y)


def _haemorrhages(rng: np.random.Generator, scene: RegularScene) -> None:
    """Dark red blots, and flames along the nerve fibres."""
    plane, unit = scene.density("Hemohedge_Masks"), scene.size / 1280.0
    for x, y in _spots(rng, scene, int(rng.integers(4, 22)), 1.7):
        size = float(np.clip(rng.lognormal(3.0, 0.5), 10, 90)) * unit
        angle = rng.uniform(0, np.pi)
        if rng.random() < 0.7:
            blob = ragged_blob(rng, size, size * rng.uniform(0.6, 0.95), angle, softness=0.4, raggedness=0.45)
            paste_maximum(plane, blob * np.float32(rng.uniform(0.6, 0.95)), x, y)
            continue
        for _ in range(int(rng.integers(5, 10))):
            offset = rng.normal(0, 0.11, 2) * size
            streak = ragged_blob(
                rng, size * rng.uniform(0.7, 1.3), size * rng.uniform(0.16, 0.32), angle + rng.normal(0, 0.1),
                softness=0.9, raggedness=0.4,
            )  # fmt: skip
            paste_maximum(plane, streak * np.float32(rng.uniform(0.6, 0.9)), x + offset[0], y + offset[1])


def _microaneurysms(rng: np.random.Generator, scene: RegularScene) -> None:
    """Round red dots of 3 to 10 pixels at any image size: the smallest lesions a detector has to keep."""
    plane = scene.density("Microaneurysms_Masks")
    for x, y in _spots(rng, scene, int(rng.integers(6, 45)), 1.5, keep_off_disc=0.75):
        size = rng.uniform(3.4, 9.6)
        blob = ragged_blob(
            rng, size, size * rng.uniform(0.82, 1.0), rng.uniform(0, np.pi), softness=0.5, raggedness=0.08
        )
        paste_maximum(plane, blob * np.float32(rng.uniform(0.7, 0.95)), x, y)


def _tangle(
    rng: np.random.Generator, scene: RegularScene, folder: str, *, x: float, y: float, strands: int, reach: float
) -> None:
    """Fine winding vessels that start together; drawn into the class's density."""
    drawn = np.zeros((scene.size, scene.size), np.uint8)
    unit = scene.size / 1280.0
    for _ in range(strands):
        steps = int(rng.integers(14, 34))
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.42, steps))
        step = reach * rng.uniform(0.6, 1.2) / steps * 1.8
        path = np.array([x, y]) + np.cumsum(step * np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0)
        widths = np.linspace(rng.uniform(2.6, 4.2), 1.6, steps) * unit
        draw_polyline(drawn, path, np.maximum(widths, 1.2), 235.0)
    plane = scene.density(folder)
    soft = blur(drawn, max(0.8 * unit, 0.45)).astype(np.float32) / 255.0
    np.maximum(plane, soft, out=plane)


def _microvascular_abnormalities(rng: np.random.Generator, scene: RegularScene) -> None:
    """IRMA: short, kinked intraretinal vessels away from the large ones."""
    for x, y in _spots(rng, scene, int(rng.integers(1, 5)), 1.9, keep_off_disc=1.2):
        _tangle(
            rng,
            scene,
            "IRMA_Masks",
            x=x,
            y=y,
            strands=int(rng.integers(2, 5)),
            reach=rng.uniform(24, 52) * scene.size / 1280.0,
        )


def _new_vessels(rng: np.random.Generator, scene: RegularScene) -> None:
    """Fronds of new vessels, on the disc or elsewhere."""
    unit = scene.size / 1280.0
    on_disc = rng.random() < 0.4
    spots = _spots(rng, scene, int(rng.integers(1, 3)), 2.0, keep_off_disc=1.3)
    if on_disc:
        spots = np.concatenate([spots[:1], [[scene.placement.disc_x, scene.placement.disc_y]]])
    for x, y in spots:
        _tangle(
            rng,
            scene,
            "Neovascularization_Masks",
            x=x,
            y=y,
            strands=int(rng.integers(7, 14)),
            reach=rng.uniform(40, 85) * unit,
        )


_LESIONS: tuple[tuple[str, float, Callable[[np.random.Generator, RegularScene], None]], ...] = (
    ("HardExudate_Masks", 0.75, _hard_exudates),
    ("SoftExudate_Masks", 0.55, _soft_exudates),
    ("Hemohedge_Masks", 0.8, _haemorrhages),
    ("Microaneurysms_Masks", 0.85, _microaneurysms),
    ("IRMA_Masks", 0.4, _microvascular_abnormalities),
    ("Neovascularization_Masks", 0.3, _new_vessels),
)
"""Folder, share of images that show the class, and how it is drawn."""
