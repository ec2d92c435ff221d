"""Brushes of the sample generator: smooth noise, ragged blobs, and blending onto an RGB canvas.

All textures of the synthetic images are made with these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import cv2
import numpy as np
from numpy.typing import NDArray

Canvas = NDArray[np.uint8]
Field = NDArray[np.float32]

Pixel = TypeVar("Pixel", np.uint8, np.float32)

RED_GREEN_BLUE = 3


@dataclass(frozen=True, slots=True)
class Layer:
    """``alpha`` (h, w) float32 in 0..1 with a colour to blend towards, or an absorption.

    ``colour`` is RGB 0..255 for ``absorbs=False``; for ``absorbs=True`` it is the fraction of light taken away from
    each of R, G, B where alpha is 1 (blood, pigment and shadows darken; they do not cover).
    """

    alpha: Field
    colour: tuple[float, float, float]
    absorbs: bool = False


def random_generator(*seeds: int) -> np.random.Generator:
    """Generator that depends on the seeds and their order only, the same in every process."""
    return np.random.default_rng(np.random.SeedSequence(list(seeds)))


def smoothstep(value: NDArray[Any], low: float, high: float) -> Field:
    """Cubic ramp from 0 at ``low`` to 1 at ``high``; ``low`` may be the larger one."""
    t = np.asarray(value, np.float32) - np.float32(low)
    t *= np.float32(1.0 / (high - low))
    np.clip(t, 0.0, 1.0, out=t)
    ramp = t * -2.0
    ramp += 3.0
    ramp *= t
    ramp *= t
    return np.asarray(ramp, np.float32)


def smooth_noise(
    rng: np.random.Generator, shape: Sequence[int], cell: float, *, octaves: int = 1, persistence: float = 0.5
) -> Field:
    """Value noise of about zero mean and unit spread, float32 of ``shape`` (h, w).

    Features are ``cell`` px wide.
    """
    height, width = shape
    # Coarse features need no fine grid: four pixels per finest feature are enough, the rest is interpolation.
    finest = cell / 2.0 ** (octaves - 1)
    shrink = min(int(finest // 4), height, width)
    if shrink >= 2:
        small = (-(-height // shrink), -(-width // shrink))
        return enlarge(smooth_noise(rng, small, cell / shrink, octaves=octaves, persistence=persistence), shape)
    total = np.zeros((height, width), np.float32)
    power = 0.0
    for octave in range(octaves):
        size = max(cell / 2.0**octave, 1.0)
        # Each octave's lattice is turned and shifted at random: aligned lattices give square blobs.
        side = int(np.ceil(np.hypot(height, width) / size)) + 4
        grid = rng.standard_normal((side, side), dtype=np.float32)
        turn = rng.uniform(0, 2 * np.pi)
        cos, sin = np.cos(turn) / size, np.sin(turn) / size
        middle_x, middle_y = (side - 1) / 2.0 + rng.uniform(-0.5, 0.5, 2)
        matrix = np.array(
            [
                [cos, -sin, middle_x - cos * width / 2.0 + sin * height / 2.0],
                [sin, cos, middle_y - sin * width / 2.0 - cos * height / 2.0],
            ]
        )
        amplitude = persistence**octave
        total += amplitude * cv2.warpAffine(
            grid, matrix, (width, height), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
        )
        power += amplitude**2
    # Interpolating white noise loses about 0.35 of its variance; 1.25 brings the spread back to about one.
    return np.asarray(total * (1.25 / np.sqrt(power)), np.float32)


def blur(plane: NDArray[Pixel], spread: float) -> NDArray[Pixel]:
    """Gaussian blur of ``spread`` pixels; shape and type stay."""
    return cast("NDArray[Pixel]", cv2.GaussianBlur(plane, (0, 0), spread))


def enlarge(plane: NDArray[Pixel], shape: Sequence[int]) -> NDArray[Pixel]:
    """Resize a plane or image to (h, w) = ``shape``, linearly; the type stays."""
    return cast("NDArray[Pixel]", cv2.resize(plane, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR))


def ragged_blob(
    rng: np.random.Generator,
    length: float,
    breadth: float,
    angle: float,
    *,
    softness: float = 0.3,
    raggedness: float = 0.25,
    grain: float = 0.45,
) -> Field:
    """Alpha of an irregular oval on its own square patch.

    Args:
        length, breadth: extents in pixels along and across ``angle`` (radians, image axes).
        softness: width of the edge ramp as a fraction of the radius.
        raggedness: how far noise pushes the outline in and out, as a fraction of the radius.
        grain: noise feature size as a fraction of the breadth.

    Returns:
        (s, s) float32 in 0..1, the oval centred.
    """
    # The noise is clipped to 1.6, which bounds how far the outline reaches: the patch never cuts it off.
    reach = 1.0 + softness / 2.0 + 0.96 * raggedness
    side = max(int(np.ceil(max(length, breadth) * reach + 3)), 5)
    # Large soft shapes carry no detail worth computing at full size.
    shrink = max(1.0, side / 320.0)
    small = round(side / shrink)
    axis = (np.arange(small, dtype=np.float32) - (small - 1) / 2.0) * shrink
    x, y = axis[None, :], axis[:, None]
    along = (x * np.cos(angle) + y * np.sin(angle)) / max(length / 2.0, 0.6)
    across = (-x * np.sin(angle) + y * np.cos(angle)) / max(breadth / 2.0, 0.6)
    radius = np.sqrt(along**2 + across**2)
    if raggedness > 0:
        noise = smooth_noise(rng, (small, small), max(grain * breadth / shrink, 2.5), octaves=2, persistence=0.5)
        radius = radius + raggedness * 0.6 * np.clip(noise, -1.6, 1.6)
    alpha = smoothstep(radius, 1.0 + softness / 2.0, 1.0 - softness / 2.0)
    if small >= 12:
        # No tissue is flat: the inside varies a little.
        alpha = alpha * (
            0.9 + 0.1 * np.clip(smooth_noise(rng, (small, small), max(small / 9.0, 2.0), octaves=2), -1, 1)
        )
    if small != side:
        alpha = enlarge(alpha, (side, side))
    return alpha


def paste_maximum(target: Field, patch: Field, x: float, y: float) -> None:
    """Lay ``patch`` centred at (x, y) onto ``target`` keeping the larger alpha; parts outside are dropped."""
    height, width = patch.shape
    left, top = round(x - width / 2.0), round(y - height / 2.0)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + width, target.shape[1]), min(top + height, target.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    region = target[y0:y1, x0:x1]
    np.maximum(region, patch[y0 - top : y1 - top, x0 - left : x1 - left], out=region)


def paint(canvas: Canvas, layer: Layer, left: int, top: int) -> None:
    """Apply a layer in place, its upper left corner at (left, top); parts outside are dropped."""
    height, width = layer.alpha.shape
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + width, canvas.shape[1]), min(top + height, canvas.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    alpha = layer.alpha[y0 - top : y1 - top, x0 - left : x1 - left, None]
    region = canvas[y0:y1, x0:x1].astype(np.float32)
    colour = np.asarray(layer.colour, np.float32)
    mixed = region * (1.0 - alpha * colour) if layer.absorbs else region + alpha * (colour - region)
    canvas[y0:y1, x0:x1] = np.clip(mixed + 0.5, 0.0, 255.0).astype(np.uint8)


def absorb(canvas: Canvas, density: NDArray[np.uint8], strength: tuple[float, float, float]) -> None:
    """Darken the whole canvas in place by ``strength`` per channel where ``density`` (h, w) is 255."""
    levels = np.arange(256, dtype=np.float32)
    channels = [np.clip(255.0 - levels * fraction + 0.5, 0.0, 255.0).astype(np.uint8) for fraction in strength]
    table = np.stack(channels, axis=-1).reshape(1, 256, RED_GREEN_BLUE)
    cv2.multiply(canvas, cv2.LUT(cv2.merge([density] * RED_GREEN_BLUE), table), dst=canvas, scale=1.0 / 255.0)


def add_sensor_noise(
    canvas: Canvas, rng: np.random.Generator, *, fine: float, coarse: float, grain: float, tile: int = 768
) -> None:
    """Add noise in place, independent per channel: white noise of spread ``fine`` and grain of ``coarse``.

    One tile without seams is drawn and repeated, which the eye does not notice in noise and which makes
    12-megapixel images affordable.
    """
    height, width = canvas.shape[:2]
    tile = min(tile, max(height, width))
    white = rng.standard_normal((tile, tile, RED_GREEN_BLUE), dtype=np.float32)
    border = int(np.ceil(4 * grain)) + 1
    clump = np.pad(
        rng.standard_normal((tile, tile, RED_GREEN_BLUE), dtype=np.float32), ((border,), (border,), (0,)), "wrap"
    )
    clump = blur(clump, grain)[border:-border, border:-border]
    clump *= np.float32(coarse / max(float(clump.std()), 1e-6))
    noise = np.clip(np.round(white * fine + clump), -127, 127).astype(np.int8)
    columns = width // tile + 1
    for top in range(0, height, tile):
        rows = min(tile, height - top)
        strip = np.concatenate([noise[:rows]] * columns, axis=1)[:, :width]
        region = canvas[top : top + rows]
        cv2.add(region, strip, dst=region, dtype=cv2.CV_8U)
