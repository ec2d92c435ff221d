"""Rotated boxes in torch: corners and canonical rectangles, exact overlaps, suppression per class.

Everything works on CPU and CUDA, is vectorised, and computes in float64 whatever comes in. ``oriented_head``
predicts with it, evaluation and merging compare with it. Its sweep for overlapping pairs is that of
``inference.batched_nms`` in torch: inside a network it has to stay on the GPU.

Corners. A box travels as the four corners (N, 4, 2) of an oriented box, x before y, in px, pixel edges (see
``imaging.geometry``), y pointing down. **Any order of the corners means the same box**, crossing orders too: a box is
the convex hull of its corners. NaN corners are a lesion without an oriented box; they overlap nothing.

Canonical rectangle (cx, cy, w, h, angle): w is the longer side, w >= h >= 0; angle, in radians, is the direction of
that side against the x axis, clockwise on screen because y points down, in [-pi/2, pi/2). A square's two sides are
equally long: its angle is the one in [-pi/4, pi/4).

Labels are not rectangles. In the 98 published label files of UWF-700 none of the 745 quadrilaterals is one: all are
convex, drawn by hand in either direction from any corner, and fill between 51 % and 99 % (median 80 %) of the smallest
rectangle around them. Where a rectangle is wanted it is that minimum-area rectangle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# Relative to the boxes' size: differences in what is given below the first are rounding (float32 pixels carry seven
# digits, float64 sixteen); the second is what float64 arithmetic leaves in a length or an area just computed.
ROUNDING = 1e-9
COMPUTED_ROUNDING = 1e-12
# Pairs clipped at a time: bounds the memory (about 1 kB a pair) and keeps the work inside the processor's cache.
PAIRS_AT_ONCE = 16_384
COMPARISONS_AT_ONCE = 1_000_000
_PAIRS_OF_CORNERS = ((0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (1, 3))


def rectangles_from_corners(corners: Tensor) -> Tensor:
    """The minimum-area rectangle around each set of four corners, in the module's canonical form.

    A side of the smallest rectangle lies along an edge of the hull (Freeman and Shapira, 1975), so the directions of
    all six pairs of corners are tried and the order of the corners does not matter. Of equally small rectangles the
    one nearest to the axes is taken.

    Args:
        corners: (N, 4, 2), px.

    Returns:
        float64 (N, 5): cx, cy, w, h in px, angle in radians; NaN for NaN corners.
    """
    points = _checked(corners, "corners")
    if not len(points):
        return points.new_zeros((0, 5))
    first, second = torch.tensor(_PAIRS_OF_CORNERS, device=points.device).unbind(1)
    differences = points[:, second] - points[:, first]
    angles = torch.atan2(differences[..., 1], differences[..., 0])
    axes = torch.stack([angles.cos(), angles.sin()], dim=-1)
    normals = torch.stack([-axes[..., 1], axes[..., 0]], dim=-1)
    along, across = points @ axes.mT, points @ normals.mT
    lengths, heights = (values.amax(1) - values.amin(1) for values in (along, across))

    areas = lengths * heights
    size = lengths.square() + heights.square()
    smallest = areas <= areas.amin(1, keepdim=True) + COMPUTED_ROUNDING * size
    # Distinguishes directions modulo a quarter turn, which is what a rectangle's sides have.
    preference = torch.cos(4 * angles) + 0.5 * torch.sin(4 * angles)
    chosen = preference.masked_fill(~smallest, -math.inf).argmax(1, keepdim=True)

    def pick(values: Tensor) -> Tensor:
        return values.gather(1, chosen)[:, 0]

    length, height, angle = pick(lengths), pick(heights), pick(angles)
    middle_along = pick((along.amax(1) + along.amin(1)) / 2)
    middle_across = pick((across.amax(1) + across.amin(1)) / 2)
    centre_x = middle_along * angle.cos() - middle_across * angle.sin()
    centre_y = middle_along * angle.sin() + middle_across * angle.cos()
    return canonical_rectangles(torch.stack([centre_x, centre_y, length, height, angle], dim=1))


def canonical_rectangles(rectangles: Tensor) -> Tensor:
    """The same rectangles (N, 5) with w >= h and the angle in the module's range; float64."""
    centre_x, centre_y, width, height, angle = rectangles.double().unbind(1)
    angle = torch.where(height > width, angle + math.pi / 2, angle)
    longer, shorter = torch.maximum(width, height), torch.minimum(width, height)
    is_square = longer - shorter <= ROUNDING * longer
    period = torch.full_like(angle, math.pi).masked_fill(is_square, math.pi / 2)
    angle = torch.remainder(angle + period / 2, period) - period / 2
    # The remainder of an angle just below the range may be rounded up to the whole period.
    angle = torch.where(angle >= period / 2, angle - period, angle)
    return torch.stack([centre_x, centre_y, longer, shorter, angle], dim=1)


def corners_from_rectangles(rectangles: Tensor) -> Tensor:
    """The corners of rectangles (N, 5): float64 (N, 4, 2), px, clockwise on screen.

    The first corner is the one that is top left when the rectangle is turned back to angle 0.
    """
    values = rectangles.double()
    if values.ndim != 2 or values.shape[1] != 5:
        raise ValueError(f"rectangles: expected shape (N, 5), found {tuple(values.shape)}")
    centre, sides, angle = values[:, :2], values[:, 2:4], values[:, 4]
    axis = torch.stack([angle.cos(), angle.sin()], dim=1)
    normal = torch.stack([-axis[:, 1], axis[:, 0]], dim=1)
    half_w, half_h = axis * sides[:, :1] / 2, normal * sides[:, 1:] / 2
    offsets = torch.stack([-half_w - half_h, half_w - half_h, half_w + half_h, half_h - half_w], dim=1)
    return centre[:, None] + offsets


def surrounding_boxes(corners: Tensor) -> Tensor:
    """The axis-aligned boxes around corners (N, 4, 2): (N, 4) as x0 y0 x1 y1, px, of the same dtype."""
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


def ordered_corners(corners: Tensor) -> Tensor:
    """The convex hull of each set of four corners, as float64 (N, 4, 2), clockwise on screen.

    A corner inside the triangle of the other three is replaced by its neighbour, so that there are always four.
    """
    points = _checked(corners, "corners")
    offsets = points - points.mean(1, keepdim=True)
    order = torch.atan2(offsets[..., 1], offsets[..., 0]).argsort(1)
    ring = points.gather(1, order[..., None].expand(-1, -1, 2))
    before, after = _previous(ring, 1), _next(ring, 1)
    dented = _cross(ring - before, after - ring) < 0
    return torch.where(dented[..., None], before, ring)


def rotated_iou(corners_a: Tensor, corners_b: Tensor) -> Tensor:
    """Intersection over union of every oriented box of ``a`` with every one of ``b``.

    Exact: the hulls are clipped against each other (Sutherland and Hodgman, 1974). Only pairs whose axis-aligned boxes
    overlap are clipped. Boxes without area, NaN boxes included, overlap nothing.

    Args:
        corners_a: (N, 4, 2), px, corners in any order.
        corners_b: (M, 4, 2), px, on the same device.

    Returns:
        float64 (N, M), 0..1.

    Raises:
        ValueError: wrong shapes.
    """
    hulls_a, hulls_b = ordered_corners(corners_a), ordered_corners(corners_b)
    overlaps = hulls_a.new_zeros((len(hulls_a), len(hulls_b)))
    if overlaps.numel():
        boxes_a, boxes_b = surrounding_boxes(hulls_a), surrounding_boxes(hulls_b)
        rows, columns = torch.nonzero(_boxes_overlap(boxes_a, boxes_b), as_tuple=True)
        overlaps[rows, columns] = _paired_iou(hulls_a, hulls_b, rows, columns)
    return overlaps


def rotated_nms(corners: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Greedy suppression per class: a better box removes those it overlaps by more than allowed.

    Equal scores: the first row wins. Boxes without area and NaN boxes neither suppress nor are suppressed.

    Args:
        corners: (N, 4, 2), px, corners in any order.
        scores: (N,).
        labels: (N,) integers; boxes of different labels leave each other alone.
        iou_threshold: largest IoU at which both boxes stay, 0..1.

    Returns:
        int64 rows that stay, best score first, as from ``torchvision.ops.nms``.

    Raises:
        ValueError: wrong shapes.
    """
    if torch.compiler.is_exporting():
        return _exported_nms(corners, scores, labels, iou_threshold)
    if scores.shape != (len(corners),) or labels.shape != (len(corners),):
        raise ValueError(
            f"expected a score and a label for each of {len(corners)} boxes, "
            f"found shapes {tuple(scores.shape)} and {tuple(labels.shape)}"
        )
    order = scores.argsort(descending=True, stable=True)
    hulls, ranked_labels = ordered_corners(corners)[order], labels[order]
    better, worse = _suppressing_pairs(hulls, ranked_labels, iou_threshold)
    stays = torch.ones(len(hulls), dtype=torch.bool, device=hulls.device)
    # Each round settles at least the best box that was not settled, so this ends, and it ends at the greedy answer:
    # the only choice in which exactly those go that overlap a better one that stays.
    while True:
        settled = torch.ones_like(stays)
        settled[worse[stays[better]]] = False
        if torch.equal(settled, stays):
            return order[stays]
        stays = settled


def _exported_nms(corners: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """``rotated_nms`` as one loop: each turn keeps the best box left and drops what it suppresses."""
    order = scores.topk(scores.shape[0]).indices  # exported, equal scores keep their order
    hulls, ranked_labels = ordered_corners(corners)[order], labels[order]
    boxes, ranks = surrounding_boxes(hulls), torch.arange(scores.shape[0])

    def any_left(left: Tensor, *_: Tensor) -> Tensor:
        # Not any(), which ONNX's exporter takes for true where there are no boxes.
        return left.sum() > 0

    def keep_best(left: Tensor, kept: Tensor, *columns: Tensor) -> tuple[Tensor, Tensor]:
        hulls, labels, boxes, ranks = columns
        best = torch.where(left, ranks, torch.iinfo(torch.int64).max).amin(0, keepdim=True)
        hull = hulls.index_select(0, best)
        near = left & (labels == labels.index_select(0, best)) & _boxes_overlap(surrounding_boxes(hull), boxes)[0]
        rows = torch.nonzero(near)[:, 0]
        above = _iou(hulls[rows], hull) > iou_threshold
        suppressed = torch.zeros_like(left).index_put((rows,), above)
        return left & ~suppressed & (ranks != best), kept | (ranks == best)

    everything = torch.ones_like(scores, dtype=torch.bool)
    start = (everything, torch.zeros_like(everything))
    # torch.while_loop itself would compile the loop, which fails for a number of boxes to come.
    _, kept = torch.ops.higher_order.while_loop(any_left, keep_best, start, (hulls, ranked_labels, boxes, ranks))
    return order[kept]


def _suppressing_pairs(hulls: Tensor, labels: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Rows (better, worse) of one class with an IoU above the threshold; ``hulls`` come best first."""
    boxes, areas = surrounding_boxes(hulls), _areas(hulls)
    better, worse = [labels.new_zeros(0, dtype=torch.int64)], [labels.new_zeros(0, dtype=torch.int64)]
    for one, other in _pairs_sharing_columns(boxes, labels):
        first, second = torch.minimum(one, other), torch.maximum(one, other)
        # No pair can share more than its axis-aligned boxes share, nor more than the smaller of the two.
        low = torch.maximum(boxes[first, :2], boxes[second, :2])
        high = torch.minimum(boxes[first, 2:], boxes[second, 2:])
        shared = torch.minimum((high - low).clamp_min(0.0).prod(1), torch.minimum(areas[first], areas[second]))
        least = (iou_threshold - ROUNDING) * (areas[first] + areas[second] - shared)
        first, second = (rows[(shared > 0) & (shared >= least)] for rows in (first, second))
        above = _paired_iou(hulls, hulls, first, second) > iou_threshold
        better.append(first[above])
        worse.append(second[above])
    return torch.cat(better), torch.cat(worse)


def _pairs_sharing_columns(boxes: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """All pairs of rows with one label whose axis-aligned boxes overlap in x, in portions, each pair once.

    Boxes are swept from left to right, one label after the other on one long axis: the partners of a box are those
    that begin before it ends.
    """
    rows = torch.nonzero(torch.isfinite(boxes).all(1))[:, 0]
    if not len(rows):
        return
    left, right = boxes[rows, 0], boxes[rows, 2]
    _, groups = torch.unique(labels[rows], return_inverse=True)
    start_of_group = groups * (right.max() - left.min() + 1) - left.min()
    begins, order = (start_of_group + left).sort()
    rows, ends = rows[order], (start_of_group + right)[order]
    position = torch.arange(len(rows), device=boxes.device)
    partners = (torch.searchsorted(begins, ends) - position - 1).clamp_min(0)
    total = partners.cumsum(0)
    _, portions = torch.unique_consecutive(total // COMPARISONS_AT_ONCE, return_counts=True)
    for portion in portions.tolist():
        taken, position = position[:portion], position[portion:]
        counts = partners[taken]
        one = taken.repeat_interleave(counts)
        steps = torch.arange(len(one), device=boxes.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        yield rows[one], rows[one + 1 + steps]


def _paired_iou(hulls_a: Tensor, hulls_b: Tensor, rows_a: Tensor, rows_b: Tensor) -> Tensor:
    """IoU of the hulls ``rows_a[k]`` and ``rows_b[k]``, float64 (K,)."""
    parts = [hulls_a.new_zeros(0)]
    for start in range(0, len(rows_a), PAIRS_AT_ONCE):
        a = hulls_a[rows_a[start : start + PAIRS_AT_ONCE]]
        b = hulls_b[rows_b[start : start + PAIRS_AT_ONCE]]
        parts.append(_iou(a, b))
    return torch.cat(parts)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (K,) of each hull of ``a`` (K, 4, 2) with that of ``b`` in its row, or the only one of it."""
    origin = a[:, :1]
    a, b = a - origin, b - origin
    shared = _clipped_areas(a, b)
    union = _areas(a) + _areas(b) - shared
    return torch.where(union > 0, shared / union.where(union > 0, 1.0), 0.0).clamp(0.0, 1.0)


def _clipped_areas(subject: Tensor, window: Tensor) -> Tensor:
    """Areas (K,) of the parts of each convex ``subject`` (K, 4, 2) inside its convex ``window`` (K, 4, 2).

    Both clockwise. The polygon under the knife is kept as (2, corners, K): the long axis last is what makes it fast.
    """
    size = torch.maximum(subject.abs().amax((1, 2)), window.abs().amax((1, 2)))
    polygon, window = subject.permute(2, 1, 0).contiguous(), window.permute(2, 1, 0).contiguous()
    for side in range(4):
        start = window[:, side]
        edge = window[:, (side + 1) % 4] - start
        length = torch.hypot(edge[0], edge[1])
        # The direction of an edge that is only rounding is noise; leaving it out moves the outline by rounding.
        direction = torch.where(length > ROUNDING * size, edge / length, 0.0)
        distance = direction[0] * (polygon[1] - start[1]) - direction[1] * (polygon[0] - start[0])
        polygon = _half_plane_clipped(polygon, distance, -COMPUTED_ROUNDING * size)
    x, y = polygon - polygon[:, :1]
    areas: Tensor = (x[:-1] * y[1:] - y[:-1] * x[1:]).sum(0) / 2
    return areas.clamp_min(0.0)


def _half_plane_clipped(polygon: Tensor, distance: Tensor, least: Tensor) -> Tensor:
    """Keep of each polygon (2, n, K) where ``distance`` (n, K) is at least ``least`` (K,): (2, n + 1, K).

    Unused places repeat the first corner, which adds no area; they are all zero where nothing is kept.
    """
    count = len(distance)
    inside = distance >= least
    crossing = inside != _next(inside, 0)
    fall = torch.where(crossing, distance - _next(distance, 0), 1.0)
    share = (distance / fall).clamp(0.0, 1.0)
    crossings = polygon + share * (_next(polygon, 1) - polygon)

    candidates = torch.stack([polygon, crossings], dim=2).flatten(1, 2)
    valid = torch.stack([inside, crossing], dim=1).flatten(0, 1)
    number = valid.cumsum(0)
    # A convex polygon gains at most one corner; the extra place takes what is not kept.
    place = torch.where(valid, number - 1, count + 1).clamp_max(count + 1)
    kept = polygon.new_zeros((2, count + 2, polygon.shape[2])).scatter_(1, place.expand(2, -1, -1), candidates)
    unused = torch.arange(1, count + 2, device=polygon.device)[:, None] > number[-1]
    return torch.where(unused, kept[:, :1] * (number[-1] > 0), kept[:, :-1])


def _boxes_overlap(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Whether axis-aligned boxes of ``a`` and of ``b`` share an area: bool (N, M); NaN boxes do not."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = boxes_a.T[..., None], boxes_b.T
    overlap: Tensor = (ax0 < bx1) & (bx0 < ax1) & (ay0 < by1) & (by0 < ay1)
    return overlap


def _areas(polygons: Tensor) -> Tensor:
    """Areas (K,) of clockwise polygons (K, n, 2)."""
    spokes = polygons - polygons[:, :1]
    return (_cross(spokes, _next(spokes, 1)).sum(1) / 2).clamp_min(0.0)


def _next(corners: Tensor, dimension: int) -> Tensor:
    """The corner after each around its polygon; ``roll`` cannot be exported for any number of boxes."""
    n = corners.shape[dimension]
    return torch.cat([corners.narrow(dimension, 1, n - 1), corners.narrow(dimension, 0, 1)], dimension)


def _previous(corners: Tensor, dimension: int) -> Tensor:
    """The corner before each around its polygon."""
    n = corners.shape[dimension]
    return torch.cat([corners.narrow(dimension, n - 1, 1), corners.narrow(dimension, 0, n - 1)], dimension)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _checked(corners: Tensor, name: str) -> Tensor:
    if corners.ndim != 3 or corners.shape[1:] != (4, 2):
        raise ValueError(f"{name}: expected shape (N, 4, 2), found {tuple(corners.shape)}")
    return corners.double()
