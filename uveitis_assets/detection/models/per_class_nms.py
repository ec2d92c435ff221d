"""Non-maximum suppression within each class, and the box heads' post-processing around it.

torchvision's ``batched_nms`` moves the classes apart by adding an offset to float32 coordinates when there are few
boxes. The sum is rounded, so that an IoU close to the threshold may fall on its other side, and boxes left of zero may
meet the class before. Here every class is suppressed on its own, on the coordinates as they are. It runs inside
networks, in float32 on their device; ``inference.batched_nms`` suppresses merged images, in float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import boxes as box_operations

from uveitis_assets.detection.models.region_matching import MatchingRoIHeads

_SMALLEST_SIDE_PX = 1e-2


def per_class_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Rows kept by greedy NMS within each label, best score first; equal scores stay in the order given.

    ``boxes`` (N, 4) as x0 y0 x1 y1, ``scores`` (N,), ``labels`` (N,) integers; a box goes when its IoU with a better
    one of its label is above ``iou``. Returns int64 (K,).
    """
    if torch.compiler.is_exporting():
        exported: Tensor = per_class_nms_operator(boxes.float(), scores, labels, iou)
        return exported
    return _kept_rows(boxes, scores, labels, iou)


@torch.library.custom_op("uveitis_assets::per_class_nms", mutates_args=())
def per_class_nms_operator(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """The same as one operator of an exported graph, which cannot hold a loop over the labels that occur."""
    return _kept_rows(boxes, scores, labels, iou)


@per_class_nms_operator.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    return labels.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def _kept_rows(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    kept = [
        rows[box_operations.nms(boxes[rows].float(), scores[rows], iou)]
        for rows in (torch.nonzero(labels == label)[:, 0] for label in torch.unique(labels))
    ]
    if not kept:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    rows = torch.cat(kept).sort().values
    return rows[scores[rows].sort(descending=True, stable=True).indices]


class PerClassRoIHeads(MatchingRoIHeads):
    """torchvision's box heads with exact per-class NMS; parameter names and losses are torchvision's."""

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Boxes (N, 4) px, scores (N,) and labels (N,) from 1 on for each image, best score first.

        ``class_logits`` (R, classes) and ``box_regression`` (R, 4 x classes) of the R proposals of all images in turn.
        """
        return self.best_of_each_class(candidates(self, class_logits, box_regression, proposals, image_shapes))

    def best_of_each_class(self, images: Iterable[Candidates]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """What NMS and the limit per image leave of each image's candidates.

        It has the form of ``postprocess_detections``.
        """
        result: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for found in images:
            keep = per_class_nms(found.boxes, found.scores, found.labels, self.nms_thresh)[: self.detections_per_img]
            for column, values in zip(result, (found.boxes, found.scores, found.labels), strict=True):
                column.append(values[keep])
        return result


class Candidates(NamedTuple):
    """Rows (N,) of one image before suppression, each one class of one proposal.

    ``proposals`` int64 (N,), rows of the image's proposals; ``boxes`` float32 (N, 4), px, inside the image; ``scores``
    float32 (N,); ``labels`` int64 (N,) from 1 on.
    """

    proposals: Tensor
    boxes: Tensor
    scores: Tensor
    labels: Tensor


def candidates(
    heads: RoIHeads,
    class_logits: Tensor,
    box_regression: Tensor,
    proposals: list[Tensor],
    image_shapes: list[tuple[int, int]],
) -> Iterator[Candidates]:
    """Classes of each image's proposals above the score threshold of ``heads``, with non-empty boxes.

    Arguments are those of ``RoIHeads.postprocess_detections``.

    Raises:
        ValueError: NaN or infinite answers, or an image without proposals, see ``check_answers``.
    """
    check_answers(proposals, class_logits, box_regression)
    boxes = heads.box_coder.decode(box_regression, proposals)
    scores = functional.softmax(class_logits, -1)
    yield from scored_candidates(heads, scores, boxes, [len(of_image) for of_image in proposals], image_shapes)


def check_answers(proposals: Sequence[Tensor], *answers: Tensor) -> None:
    """Refuse answers that are not finite, and images without proposals.

    The network drops proposals that are NaN. No comparison would hold for such answers, and damaged weights would pass
    for ones that find nothing.

    Raises:
        ValueError: NaN or infinity, or no proposals.
    """
    # A graph cannot raise; what is exported is compared with a network that went through this.
    if torch.compiler.is_exporting():
        return
    finite = torch.stack([answer.isfinite().all() for answer in answers]).all()
    if not all(len(of_image) for of_image in proposals) or not bool(finite):
        raise ValueError(
            "the detector's answers: expected finite values for regions of every tile, found NaN, infinity or no "
            "regions; the weights are damaged, or the training diverged: lower training.learning_rate"
        )


def scored_candidates(
    heads: RoIHeads,
    scores: Tensor,
    boxes: Tensor,
    n_per_image: list[int],
    image_shapes: list[tuple[int, int]],
) -> Iterator[Candidates]:
    """Classes of each image's regions above the score threshold of ``heads``, with non-empty boxes.

    ``scores`` (R, classes) and ``boxes`` (R, classes, 4), px, are those of all images' regions in turn.
    """
    boxes_per_image, scores_per_image = torch.split(boxes, n_per_image), torch.split(scores, n_per_image)
    for all_boxes, all_scores, shape in zip(boxes_per_image, scores_per_image, image_shapes, strict=True):
        proposal, category = torch.nonzero(all_scores[:, 1:] > heads.score_thresh, as_tuple=True)
        labels = category + 1
        clipped = box_operations.clip_boxes_to_image(all_boxes[proposal, labels], shape)
        large = box_operations.remove_small_boxes(clipped, _SMALLEST_SIDE_PX)
        proposal, labels = proposal[large], labels[large]
        yield Candidates(proposal, clipped[large], all_scores[proposal, labels], labels)
