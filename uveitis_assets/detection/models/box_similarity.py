"""Compares labels with anchors and proposals, by IoU or by a distance for tiny boxes.

torchvision's proposal network and box heads call ``box_similarity(labels, candidates)`` and compare the result with
their thresholds; what is defined here replaces that function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torchvision.ops import box_iou

Similarity = Callable[[Tensor, Tensor], Tensor]

_BOXES_PER_CHUNK = 16


def box_similarity(kind: str, nwd_constant: float) -> Similarity:
    """The function that compares boxes (N, 4) with anchors (A, 4), px: ``iou`` or ``nwd``.

    Returns similarities (N, A) in 0..1, 1 for equal boxes.
    """
    return overlaps if kind == "iou" else partial(wasserstein_similarity, constant=nwd_constant)


def overlaps(boxes: Tensor, anchors: Tensor) -> Tensor:
    """IoU (N, A) of boxes (N, 4) with anchors (A, 4), a few boxes at a time.

    torchvision's takes eight times the result's memory on the way: gigabytes for a tile of 150 lesions and 300,000
    anchors, and twice the time (measured).
    """
    return torch.cat([box_iou(rows, anchors) for rows in torch.split(boxes, _BOXES_PER_CHUNK)])


def wasserstein_similarity(boxes: Tensor, anchors: Tensor, *, constant: float) -> Tensor:
    """Normalized Wasserstein distance (N, A) of boxes (N, 4) and anchors (A, 4) x0 y0 x1 y1, px.

    Boxes are taken for normal distributions around their centres with half their sides as deviations. Their second
    Wasserstein distance W is the Euclidean one of (centre x, centre y, width / 2, height / 2), and the similarity is
    exp(-W / constant). Unlike IoU it falls smoothly with the distance where tiny boxes do not touch at all.

    Args:
        boxes: labels.
        anchors: anchors or proposals.
        constant: distance, px, at which the similarity is 1/e; about the boxes' usual side.

    Source: Wang et al., A Normalized Gaussian Wasserstein Distance for Tiny Object Detection, 2021.
    """
    own, other = _as_distribution(boxes.float()), _as_distribution(anchors.float())
    # Without a matrix product, whose rounding would leave equal boxes a distance apart.
    compute_mode = "donot_use_mm_for_euclid_dist"
    return torch.exp(torch.cdist(own, other, compute_mode=compute_mode).neg_().div_(constant))


def _as_distribution(boxes: Tensor) -> Tensor:
    low, high = boxes[:, :2], boxes[:, 2:]
    return torch.cat([(low + high) / 2, (high - low) / 2], dim=1)
