"""A detector as a graph of fixed input size, for exporters: one tile in, its detections out.

Nothing here names a backbone or a head: the detector's own modules are called, and only what depends on the input's
size, or gives proposals in a number of its own, is replaced by an equal form.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import boxes as box_operations

from uveitis_assets.detection.models.per_class_nms import per_class_nms

OUTPUTS = ("boxes", "scores", "labels", "corners")


class ExportableDetector(nn.Module):
    """A detector in evaluation mode whose input is one tile of its input size.

    It shares the weights of the detector it is made from.

    ``forward`` takes float32 (1, 3, S, S), RGB 0..1, and returns boxes (N, 4), scores (N,), labels (N,) and, of
    oriented detectors, corners (N, 4, 2), as the detector does for that tile.

    Raises:
        TypeError: the model is no detector of ``build_detector``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, GeneralizedRCNN) or not isinstance(model.rpn, RegionProposalNetwork):
            raise TypeError(f"expected a detector made by build_detector, found {type(model).__name__}")
        self.input_size = int(model.transform.max_size)
        self.detector = GeneralizedRCNN(
            model.backbone,
            _FixedNumberOfProposals(model.rpn),
            model.roi_heads,
            _FixedSizeTransform(model.transform),
        )
        self.eval()

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        (found,) = self.detector(list(tiles.unbind(0)))
        return tuple(found[name] for name in OUTPUTS if name in found)


class _FixedSizeTransform(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's normalization and padding, of tiles that need no resizing."""

    def __init__(self, transform: GeneralizedRCNNTransform) -> None:
        super().__init__(
            min_size=transform.min_size,
            max_size=transform.max_size,
            image_mean=transform.image_mean,
            image_std=transform.image_std,
            size_divisible=transform.size_divisible,
        )

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, None]:
        return image, None

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        return result


class _FixedNumberOfProposals(RegionProposalNetwork):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's proposals of one image, filled up with boxes without area.

    Heads then see a known number of regions. A box without area stays without area whatever a head adds to it, for
    offsets are multiples of its sides, and boxes without area are no detections.
    """

    def __init__(self, network: RegionProposalNetwork) -> None:
        before, after = network.pre_nms_top_n(), network.post_nms_top_n()
        super().__init__(
            network.anchor_generator,
            network.head,
            # The next four are of training.
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=1,
            positive_fraction=0.5,
            pre_nms_top_n={"training": before, "testing": before},
            post_nms_top_n={"training": after, "testing": after},
            nms_thresh=network.nms_thresh,
            score_thresh=network.score_thresh,
        )
        self.box_coder, self.min_size = network.box_coder, network.min_size

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Best proposals of each level, suppressed level by level, best score first."""
        logits = objectness.reshape(-1)
        best = [
            part.topk(min(self.pre_nms_top_n(), len(part))).indices
            for part in torch.split(logits, num_anchors_per_level)
        ]
        starts = [sum(num_anchors_per_level[:level]) for level in range(len(best))]
        rows = torch.cat([part + start for part, start in zip(best, starts, strict=True)])
        levels = torch.cat([torch.full_like(part, level) for level, part in enumerate(best)])
        scores, boxes = logits[rows].sigmoid(), proposals[0][rows]
        boxes = box_operations.clip_boxes_to_image(boxes, image_shapes[0])
        large = box_operations.remove_small_boxes(boxes, self.min_size)
        boxes, scores, levels = boxes[large], scores[large], levels[large]
        if self.score_thresh > 0:
            sure = torch.nonzero(scores >= self.score_thresh)[:, 0]
            boxes, scores, levels = boxes[sure], scores[sure], levels[sure]
        kept = per_class_nms(boxes, scores, levels, self.nms_thresh)
        limit = self.post_nms_top_n()
        filled = torch.cat([boxes[kept], boxes.new_zeros(limit, 4)])[:limit]
        return [filled], [filled.new_zeros(limit)]
