"""Matches the box heads' proposals with labels by the configured similarity.

torchvision's box heads have a ``box_similarity``, and compare by IoU whatever it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads

from uveitis_assets.detection.models.box_similarity import Similarity


class MatchingRoIHeads(RoIHeads):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's box heads, which match by their ``box_similarity``.

    Names of parameters, losses and answers are torchvision's.
    """

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As torchvision's, see ``matched_labels``."""
        return matched_labels(proposals, gt_boxes, gt_labels, self.box_similarity, self.proposal_matcher)


def matched_labels(
    proposals: Sequence[Tensor],
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    similarity: Similarity,
    matcher: Callable[[Tensor], Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """The most similar lesion of every proposal, and the class that the proposal is to be given.

    Args:
        proposals: (R_i, 4) for each image, px.
        boxes: lesions (N_i, 4) of each image, px.
        labels: their classes (N_i,), int64 from 1 on.
        similarity: compares boxes (N, 4) with proposals (R, 4) and returns (N, R).
        matcher: torchvision's ``Matcher`` without low-quality matches: rows of lesions, -1 below its lower threshold
            and -2 between both.

    Returns:
        For each image the lesions' rows (R_i,), int64, 0 where none matches, and the classes (R_i,), int64: 0 is
        background, -1 teaches nothing.
    """
    rows, classes = [], []
    for of_image, own_boxes, own_labels in zip(proposals, boxes, labels, strict=True):
        if len(own_boxes):
            matched = matcher(similarity(own_boxes, of_image))
        else:
            matched = torch.full((len(of_image),), -1, dtype=torch.int64, device=of_image.device)
        row = matched.clamp(min=0)
        # Without lesions there is no class to look up, and every proposal is background.
        known = own_labels[row].to(torch.int64) if len(own_boxes) else row
        rows.append(row)
        classes.append(torch.where(matched >= 0, known, matched + 1))
    return rows, classes
