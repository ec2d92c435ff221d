"""The optic disc: a yellow oval with a paler cup and a soft rim, as both kinds of image show it.

Diseased discs (swelling, deep cup, peripapillary atrophy) are lesions and stand in the lesion catalogue; this is
the disc underneath them.
"""

from __future__ import annotations

import numpy as np

from uveitis_assets.sample.painting import Canvas, Layer, paint, ragged_blob
from uveitis_assets.sample.vessels import Placement


def paint_optic_disc(canvas: Canvas, rng: np.random.Generator, placement: Placement, *, ultra_widefield: bool) -> None:
    """Paint the disc in place at ``placement``; colours differ between the two kinds of camera."""
    diameter = placement.disc_diameter
    angle = float(rng.uniform(1.2, 1.9))
    tall = float(rng.uniform(1.04, 1.16))
    if ultra_widefield:
        halo, rim, cup = (166.0, 124.0, 10.0), (222.0, 174.0, 22.0), (252.0, 242.0, 58.0)
    else:
        halo, rim, cup = (206.0, 122.0, 62.0), (244.0, 186.0, 112.0), (254.0, 228.0, 176.0)
    cup_size = diameter * float(rng.uniform(0.34, 0.55))
    strokes = (
        (halo, diameter * 1.2, 1.0, 0.45, 0.0),
        (rim, diameter, 0.32, 0.92, 0.0),
        (cup, cup_size, 0.8, 0.8, placement.temporal * diameter * 0.07),
    )
    for colour, size, softness, strength, shift in strokes:
        alpha = ragged_blob(rng, size * tall, size, angle, softness=softness, raggedness=0.06, grain=0.5)
        left = round(placement.disc_x + shift - alpha.shape[1] / 2.0)
        top = round(placement.disc_y - alpha.shape[0] / 2.0)
        paint(canvas, Layer(alpha * np.float32(strength), colour), left, top)
