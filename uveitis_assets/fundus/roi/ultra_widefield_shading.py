"""Shading of an ultra-widefield photograph: the smooth fall of light from the middle to the periphery.

Without it, retina that is darker than the middle looks like the rim's shadow, and the fall of light like a border.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from uveitis_assets.fundus.roi.ultra_widefield_polar import N_ANGLES, N_RADII, RADIUS_STEP, Floats, PolarImage

_CERTAIN_RADIUS = 0.8  # half-frames; within it a first shading is fitted, before there is an outline
_SAMPLED = (slice(None, None, 3), slice(None, None, 3))  # angles and radii fitted; the shading is smooth
_MARGIN = 2  # radial samples left out inside the outline, which the border blurs
_RIDGE = 1e-3  # keeps the terms of nearly empty regions finite
_REWEIGHTINGS = 3
_SMALLEST_SCALE = 0.02  # of the residuals, in log brightness


def shading_of_the_middle(polar: PolarImage) -> Floats:
    """Shading fitted within 0.8 half-frames; lids and lashes that reach into it are given little weight.

    Iteratively reweighted least squares with Cauchy weights of the residuals' median absolute deviation.
    """
    circle = np.full(N_ANGLES, round(_CERTAIN_RADIUS / RADIUS_STEP), np.intp)
    return _fitted(polar, circle, _REWEIGHTINGS)


def shading_within(polar: PolarImage, outline: NDArray[np.intp]) -> Floats:
    """Shading of the retina within an outline, one radial index per direction."""
    return _fitted(polar, outline, 0)


def _fitted(polar: PolarImage, outline: NDArray[np.intp], n_reweightings: int) -> Floats:
    """Log brightness as a smooth function of the place; beyond the outline it keeps the outline's value.

    A quadratic, for light that comes from one side, and the fourth power of the radius, for optics.
    """
    retina = (np.arange(N_RADII) < outline[:, None] - _MARGIN) & polar.inside
    radius = polar.radii[np.minimum(np.arange(N_RADII), outline[:, None])]
    x, y = np.cos(polar.angles)[:, None] * radius, np.sin(polar.angles)[:, None] * radius
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y, (x * x + y * y) ** 2], axis=-1)
    sampled = retina[_SAMPLED]
    fitted_terms, values = terms[_SAMPLED][sampled], polar.brightness[_SAMPLED][sampled]
    # Polar samples stand for areas that grow with the radius.
    area = np.sqrt(np.broadcast_to(polar.radii, retina.shape)[_SAMPLED][sampled])
    coefficients = _least_squares(fitted_terms, values, area)
    for _ in range(n_reweightings):
        residual = values - fitted_terms @ coefficients
        scale = 1.4826 * float(np.median(np.abs(residual))) + _SMALLEST_SCALE
        coefficients = _least_squares(fitted_terms, values, area / (1 + (residual / (2 * scale)) ** 2))
    return cast(Floats, terms @ coefficients.astype(np.float32))


def _least_squares(terms: Floats, values: Floats, weights: Floats) -> NDArray[np.float64]:
    """Coefficients of the terms (n, k) that fit the weighted values (n,)."""
    weighted = terms * weights[:, None]
    normal = (weighted.T @ weighted).astype(np.float64) + _RIDGE * np.eye(terms.shape[1])
    return np.linalg.solve(normal, (weighted.T @ (values * weights)).astype(np.float64))
