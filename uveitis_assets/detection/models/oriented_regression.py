"""Continuous regression terms of a rotated rectangle relative to its axis-aligned proposal.

A rectangle (w, h, angle) is the same as (h, w, angle + 90 deg) and (w, h, angle + 180 deg), so every code that names
an angle or a first corner jumps somewhere. Gliding vertex (Xu et al., TPAMI 2020) and the midpoint offsets of Oriented
R-CNN (Xie et al., ICCV 2021) jump where a rectangle passes through axis-aligned, which 16 % of the published UWF-700
labels are to within a degree. Here the rectangle is described as the ellipse-like matrix

    S = R(angle) diag(w^2, h^2) R(angle)^T = [[sx^2, c], [c, sy^2]]

which does not depend on which side is first (a rectangle as a Gaussian: Yang et al., "Rethinking Rotated Object
Detection with Gaussian Wasserstein Distance Loss", ICML 2021). Regressed are the offsets of the centre and ln(sx / W)
and ln(sy / H), the box coder's terms for a proposal of W x H px (Girshick et al., 2014), and arsinh(c / (w h)), the
inverse hyperbolic tangent of the matrix's correlation: for a rectangle at 45 deg it is ln(w / h), so all sizes are on
logarithmic scales. These five terms do not change when proposal and matrix are stretched together, as pooling a
proposal into a square does.

For a square S does not depend on the angle, so two more terms follow, cos(4 angle) and sin(4 angle): the second
frequency of Yu and Da, "Phase-Shifting Coder" (CVPR 2023). They count the more the squarer the rectangle is. The map
from rectangles to these seven numbers is continuous and one to one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from uveitis_assets.detection.models.rotated_boxes import canonical_rectangles

N_TERMS = 7
# Brings every term to about unit spread over matched proposals; the first four are torchvision's box coder weights.
TERM_WEIGHTS = (10.0, 10.0, 5.0, 5.0, 2.5, 1.0, 1.0)
# Labels reach 24 : 1. A thinner rectangle is taught as 100 : 1, so that no target grows beyond all bounds.
LARGEST_ASPECT = 100.0
# torchvision's bound of the logarithms, here on both sides: an untrained network's answers must stay rectangles.
_LARGEST_LOG_SCALE = math.log(1000.0 / 16)
_SMALLEST_SIDE_PX = 1e-3
_LARGEST_SHEAR = math.asinh(LARGEST_ASPECT / 2)


def encode_rectangles(rectangles: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
    """The seven terms that the head should answer for each proposal.

    Args:
        rectangles: (N, 5), canonical or not: cx, cy, w, h in px, angle in radians; see ``rotated_boxes``.
        proposals: (N, 4), x0 y0 x1 y1, px.

    Returns:
        float64 (N, 7), weighted by ``TERM_WEIGHTS``; and float64 (N, 7), how much each term counts in the loss, 0..1.
    """
    centre_x, centre_y, width, height, angle = canonical_rectangles(rectangles).unbind(1)
    width = width.clamp_min(_SMALLEST_SIDE_PX)
    height = torch.maximum(height, width / LARGEST_ASPECT)
    proposal_x, proposal_y, proposal_w, proposal_h = _centres_and_sides(proposals)
    sine, cosine = angle.sin(), angle.cos()
    spread_x = torch.hypot(width * cosine, height * sine)
    spread_y = torch.hypot(width * sine, height * cosine)
    shear = torch.asinh((width / height - height / width) * sine * cosine)
    terms = torch.stack(
        [
            (centre_x - proposal_x) / proposal_w,
            (centre_y - proposal_y) / proposal_h,
            torch.log(spread_x / proposal_w),
            torch.log(spread_y / proposal_h),
            shear,
            torch.cos(4 * angle),
            torch.sin(4 * angle),
        ],
        dim=1,
    )
    elongation = (width.square() - height.square()) / (width.square() + height.square())
    importance = torch.ones_like(terms)
    importance[:, 5:] = _squareness(elongation)[:, None]
    return terms * terms.new_tensor(TERM_WEIGHTS), importance


def decode_rectangles(terms: Tensor, proposals: Tensor) -> Tensor:
    """Canonical rectangles (N, 5), float64, from weighted ``terms`` (N, 7) and ``proposals`` (N, 4), px."""
    values = terms.double() / torch.tensor(TERM_WEIGHTS, dtype=torch.float64, device=terms.device)
    proposal_x, proposal_y, proposal_w, proposal_h = _centres_and_sides(proposals)
    shift_x, shift_y, scale_x, scale_y, shear, cosine_4, sine_4 = values.unbind(1)
    spread_x = proposal_w * scale_x.clamp(-_LARGEST_LOG_SCALE, _LARGEST_LOG_SCALE).exp()
    spread_y = proposal_h * scale_y.clamp(-_LARGEST_LOG_SCALE, _LARGEST_LOG_SCALE).exp()
    shear = shear.clamp(-_LARGEST_SHEAR, _LARGEST_SHEAR)

    # With the area w h and w^2 + h^2 known, the sides are half the sum and half the difference of w + h and w - h.
    area = spread_x * spread_y / shear.cosh()
    squares = spread_x.square() + spread_y.square()
    side_sum = (squares + 2 * area).sqrt()
    side_difference = (squares - 2 * area).clamp_min(0.0).sqrt()
    width, height = (side_sum + side_difference) / 2, (side_sum - side_difference) / 2

    twice_x, twice_y = spread_x.square() - spread_y.square(), 2 * spread_x * spread_y * shear.tanh()
    angle = torch.atan2(twice_y, twice_x) / 2
    elongation = torch.hypot(twice_x, twice_y) / squares
    # The fourfold angle refines the angle within an eighth of a turn; which side is longer follows from the matrix.
    trust = _squareness(elongation) / torch.hypot(cosine_4, sine_4).clamp_min(1.0)
    fourfold = torch.atan2(
        elongation * torch.sin(4 * angle) + trust * sine_4, elongation * torch.cos(4 * angle) + trust * cosine_4
    )
    quarter = math.pi / 2
    refinement = torch.remainder(fourfold / 4 - angle + quarter / 2, quarter) - quarter / 2
    centre_x, centre_y = proposal_x + shift_x * proposal_w, proposal_y + shift_y * proposal_h
    return canonical_rectangles(torch.stack([centre_x, centre_y, width, height, angle + refinement], dim=1))


def _squareness(elongation: Tensor) -> Tensor:
    """1 for a square, 0.25 for a rectangle of 1.7 : 1, falling to 0 for a line."""
    return (1 - elongation).square()


def _centres_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x0, y0, x1, y1 = boxes.double().unbind(1)
    # Proposals of no extent occur at the image's edge; they are background and must not divide by zero.
    sides = (x1 - x0).clamp_min(_SMALLEST_SIDE_PX), (y1 - y0).clamp_min(_SMALLEST_SIDE_PX)
    return (x0 + x1) / 2, (y0 + y1) / 2, *sides
